"""What a change does to the tables, within one transaction.

Each table is written in the order of its keys: rows that share a page then cost one copy of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import orjson

from engine.storage import schema
from engine.storage.tables import Tables
from engine.types import Change, Cluster, Erased, Int64

_DERIVED = ("lists", "places", "members", "trees", "cluster_trees")


def clear_derived(found: Tables) -> None:
    """Makes room for a new generation: what the items and the clusters' names do not need is gone."""
    for table in (*_DERIVED, "sizes", "endings"):
        found.clear(table)
    clusters = [schema.read_cluster(key, body) for key, body in found.rows("clusters")]
    told = {schema.read_u64(key) for key, _ in found.rows("commits")}
    found.put_keys(
        "sizes", sorted(schema.size_key(c.size, c.id) for c in clusters if not (c.parent or c.ended))
    )
    found.put_keys("endings", sorted(schema.pair(c.ended, c.id) for c in clusters if c.ended in told))
    for cluster in clusters:
        if cluster.ended and cluster.ended not in told:
            found.delete("clusters", schema.u64(cluster.id))


def apply(found: Tables, change: Change) -> None:
    """Writes the state of the new version; each table in the order of its keys."""
    state = found.json("state") or {"counters": {}}
    _write_items(found, change, int(state["counters"].get("next_item", 1)))
    order = np.argsort(change.lists.ids)
    lists = replace(
        change.lists,
        ids=change.lists.ids[order],
        neighbors=change.lists.neighbors[order],
        dots=change.lists.dots[order],
    )
    found.put_rows("lists", schema.u64_keys(lists.ids), schema.list_bodies(lists))
    _write_places(found, *change.moved)
    _write_trees(found, change.trees)
    _write_clusters(found, change.clusters)
    for source, position in sorted(change.positions.items()):
        found.put("positions", source.encode(), position)
    epoch = [change.epoch.mean, change.epoch.deviation, change.epoch.items]
    state = {"version": change.version, "time_ms": change.time_ms, "epoch": epoch}
    found.put("meta", b"state", schema.dump_json(state | {"counters": dict(change.counters)}))


def _write_items(found: Tables, change: Change, next_item: int) -> None:
    """Items from `next_item` on have keys that are new."""
    items = change.upserts
    order = np.argsort(items.ids)
    keys, bodies = schema.u64_keys(items.ids), schema.item_bodies(items)
    found.put_rows("items", [keys[i] for i in order.tolist()], [bodies[i] for i in order.tolist()])
    fresh = np.flatnonzero(items.ids >= next_item).tolist()
    numbers = schema.number_bodies(items.ids)
    names = sorted((items.keys[i], numbers[i]) for i in fresh)
    found.put_rows("keys", [name for name, _ in names], [number for _, number in names])
    for item, key in sorted(change.removed):
        found.delete_all("items", [schema.u64(item)])
        found.delete("lists", schema.u64(item))
        found.delete_all("keys", [key])


def _write_places(found: Tables, ids: Int64, before: Int64, after: Int64) -> None:
    order = np.argsort(ids)
    ids, before, after = ids[order], before[order], after[order]
    here, gone, left = after > 0, after == 0, before > 0
    found.put_rows("places", schema.u64_keys(ids[here]), schema.number_bodies(after[here]))
    found.delete_all("places", schema.u64_keys(ids[gone & left]))
    found.delete_all("members", sorted(schema.pair_keys(before[left], ids[left])))
    found.put_keys("members", sorted(schema.pair_keys(after[here], ids[here])))


def _write_trees(found: Tables, trees: Mapping[int, tuple[int, ...]]) -> None:
    """Rows of `trees`, handle -> path (an empty one: the tree is gone), and of `cluster_trees`."""
    handles = sorted(trees)
    before = {h: schema.read_ids(found.get("trees", schema.u64(h)) or b"") for h in handles}
    left = [schema.pair(c, h) for h in handles for c in set(before[h]) - set(trees[h])]
    joined = [schema.pair(c, h) for h in handles for c in set(trees[h]) - set(before[h])]
    found.delete_all("cluster_trees", sorted(left))
    found.put_keys("cluster_trees", sorted(joined))
    here = [h for h in handles if trees[h]]
    found.put_rows("trees", [schema.u64(h) for h in here], [schema.ids_body(trees[h]) for h in here])
    found.delete_all("trees", [schema.u64(h) for h in handles if before[h] and not trees[h]])


def _write_clusters(found: Tables, clusters: Sequence[Cluster]) -> None:
    """Rows of `clusters`, of `sizes` (the living final ones) and of `endings`."""
    clusters = sorted(clusters, key=lambda cluster: cluster.id)
    keys = [schema.u64(cluster.id) for cluster in clusters]
    before = [schema.read_cluster(key, body) for key in keys if (body := found.get("clusters", key))]
    found.delete_all("sizes", sorted(schema.size_key(c.size, c.id) for c in before if not c.parent))
    found.put_rows("clusters", keys, map(schema.cluster_body, clusters))
    found.put_keys("endings", sorted(schema.pair(c.ended, c.id) for c in clusters if c.ended))
    standing = [c for c in clusters if not (c.ended or c.parent)]
    found.put_keys("sizes", sorted(schema.size_key(c.size, c.id) for c in standing))


def write_history(
    found: Tables, change: Change, max_bytes: int, max_age_ms: int, keep_from: int | None = None
) -> None:
    """Writes the version's events; then forgets the oldest versions while the log is beyond its bounds.

    Versions from `keep_from` on stay. The place of the last event forgotten is remembered: versions without
    events do not count for those who follow the log.
    """
    keys = [schema.event_key(change.version, ordinal) for ordinal in range(len(change.events))]
    bodies = [schema.event_body(event) for event in change.events]
    found.put_rows("events", keys, bodies)
    size = sum(map(len, bodies))
    found.put("commits", schema.u64(change.version), schema.commit_body(change.time_ms, len(keys), size))
    log = found.json("log") or {"bytes": 0}
    total, forgot = log["bytes"] + size, log.get("forgot")
    newest = change.version if keep_from is None else min(keep_from, change.version)
    for key, body in list(_oldest(found, change, total, max_bytes, max_age_ms, newest)):
        version = schema.read_u64(key)
        _, events, forgotten = schema.read_commit(body)
        found.delete_all("events", [schema.event_key(version, ordinal) for ordinal in range(events)])
        for ending, _ in list(found.rows("endings", prefix=key)):
            found.delete_all("clusters", [ending[8:]])
            found.delete_all("endings", [ending])
        found.delete_all("commits", [key])
        total -= forgotten
        forgot = [version, events - 1] if events else forgot
    found.put("meta", b"log", schema.dump_json({"bytes": total, "forgot": forgot}))


def _oldest(
    found: Tables, change: Change, total: int, max_bytes: int, max_age_ms: int, newest: int
) -> Iterator[schema.Row]:
    """The oldest commits that are beyond the bounds, none from the version `newest` on."""
    for key, body in found.rows("commits"):
        time_ms, _, size = schema.read_commit(body)
        late = time_ms < change.time_ms - max_age_ms
        if schema.read_u64(key) >= newest or not (late or total > max_bytes):
            return
        total -= size
        yield key, body


def erase_mentions(found: Tables, key: bytes) -> int:
    """Events that mention a key become empty ones in their places; returns how many."""
    needles = {key, orjson.dumps(key.decode(errors="replace"))[1:-1]}
    mentions = [
        (place, body)
        for place, body in found.rows("events")
        if any(needle in body for needle in needles) and schema.mentions(schema.parse_event(body), key)
    ]
    blank, saved = schema.event_body(Erased()), 0
    for place, body in mentions:
        found.put("events", place, blank)
        version, less = place[:8], len(body) - len(blank)
        time_ms, events, size = schema.read_commit(found.get("commits", version) or b"")
        found.put("commits", version, schema.commit_body(time_ms, events, size - less))
        saved += less
    if mentions:
        log = found.json("log") or {"bytes": 0}
        found.put("meta", b"log", schema.dump_json({**log, "bytes": log["bytes"] - saved}))
    return len(mentions)
