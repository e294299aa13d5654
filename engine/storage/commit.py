"""A commit: writes a change to the tables, in one transaction.

Each table is written in key order, so that rows that share a page cost one copy of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import orjson

from engine.errors import CorruptStore
from engine.storage import schema
from engine.storage.schema import Commit, LogRecord, StateRecord
from engine.storage.tables import Tables
from engine.types import Assignment, Change, Cluster, DeadLetter, Erased, Event, Renumbered, Shift, Vectors


def clear_derived(tables: Tables) -> None:
    """Clear the derived tables before a new generation; keep items, nodes and cluster records."""
    derived = (tables.lists, tables.places, tables.members, tables.trees, tables.cluster_trees)
    for table in (*derived, tables.sizes, tables.endings):
        table.clear()
    clusters = [cluster for _, cluster in tables.clusters.rows()]
    versions = {version for version, _ in tables.commits.rows()}
    tables.sizes.add((c.size, c.id) for c in clusters if not (c.parent or c.ended))
    tables.endings.add((c.ended, c.id) for c in clusters if c.ended in versions)
    for cluster in clusters:
        if cluster.ended and cluster.ended not in versions:
            tables.clusters.delete(cluster.id)


def renumber(tables: Tables, renumbered: Renumbered) -> None:
    """Give all items other nodes, with the vectors that another adapter makes; keep the incoming vectors."""
    items = tables.items.columns()
    assert np.array_equal(items.ids, renumbered.items)
    if not renumbered.adapted:
        tables.incoming.clear()
    elif not tables.incoming.count():
        nodes = tables.nodes.columns()
        at = np.searchsorted(nodes.ids, items.nodes)
        tables.incoming.put_columns(Vectors(items.ids, nodes.vectors[at]))
    tables.items.put_columns(replace(items, nodes=renumbered.nodes))
    tables.nodes.clear()
    tables.nodes.put_columns(renumbered.vectors)
    tables.copies.clear()
    tables.copies.add(zip(renumbered.nodes.tolist(), items.ids.tolist(), strict=True))


def apply(tables: Tables, change: Change) -> int:
    """Write a version: its state and its events. Return how many items have another payload, the same vector.

    Raises CorruptStore.
    """
    updated = _updated(tables, change)
    _write_items(tables, change, int(tables.meta.state.counters.get("next_item", 1)))
    tables.nodes.put_columns(change.vectors)
    tables.incoming.put_columns(change.incoming)
    tables.lists.put_columns(change.lists)
    _write_places(tables, change.places)
    _write_trees(tables, change.trees)
    _write_clusters(tables, change.clusters)
    tables.positions.put_all(change.positions.items())
    tables.copies.shift(change.copies)
    tables.members.shift(change.places)
    tables.meta.put_state(StateRecord(change.version, change.time_ms, change.epoch, change.counters))
    size = tables.events.put_version(change.version, change.events)
    tables.commits.put(change.version, Commit(change.version, change.time_ms, len(change.events), size))
    log = tables.meta.log
    tables.meta.put_log(log._replace(bytes=log.bytes + size))
    return updated


def _updated(tables: Tables, change: Change) -> int:
    """Count the items that come again with the same vector and another payload."""
    items = change.upserts
    again = np.flatnonzero(items.versions < change.version)
    if not len(again):
        return 0
    before = tables.items.pick(items.ids[again]).payloads
    if len(before) != len(again):
        raise CorruptStore("an item has no row in the table items; restore a backup")
    return sum(items.payloads[at] != was for at, was in zip(again.tolist(), before, strict=True))


def _write_items(tables: Tables, change: Change, next_item: int) -> None:
    """Write upserts and deletes; items from `next_item` on bring new keys."""
    items = change.upserts
    tables.items.put_columns(items)
    rows = zip(items.keys, items.ids.tolist(), strict=True)
    tables.keys.put_all((key, item) for key, item in rows if item >= next_item)
    gone = [item for item, _ in change.removed]
    tables.items.delete_all(gone)
    tables.keys.delete_all(key for _, key in change.removed)
    if tables.incoming.count():  # with an adapter
        tables.incoming.delete_all(gone)


def _write_places(tables: Tables, places: Shift) -> None:
    """Write the places of nodes; a node that is gone takes its vector and its list along."""
    here = places.after > 0
    tables.places.put_columns(places.ids[here], places.after[here])
    gone = places.ids[~here & (places.before > 0)].tolist()
    for table in (tables.places, tables.nodes, tables.lists):
        table.delete_all(gone)


def _write_trees(tables: Tables, trees: Mapping[int, tuple[int, ...]]) -> None:
    """Write `trees`, tree -> path (an empty path deletes the tree), and `cluster_trees`."""
    before = {tree: tables.trees.get(tree) or () for tree in sorted(trees)}
    tables.cluster_trees.delete_all((c, tree) for tree in trees for c in set(before[tree]) - set(trees[tree]))
    tables.cluster_trees.add((c, tree) for tree in trees for c in set(trees[tree]) - set(before[tree]))
    tables.trees.put_all((tree, path) for tree, path in trees.items() if path)
    tables.trees.delete_all(tree for tree, path in trees.items() if before[tree] and not path)


def _write_clusters(tables: Tables, clusters: Sequence[Cluster]) -> None:
    """Write `clusters`, `sizes` (the living final ones) and `endings`."""
    ids = sorted(cluster.id for cluster in clusters)
    before = [cluster for i in ids if (cluster := tables.clusters.get(i)) is not None]
    tables.sizes.delete_all((c.size, c.id) for c in before if not c.parent)
    tables.clusters.put_all((cluster.id, cluster) for cluster in clusters)
    tables.endings.add((c.ended, c.id) for c in clusters if c.ended)
    tables.sizes.add((c.size, c.id) for c in clusters if not (c.ended or c.parent))


def forget(
    tables: Tables, change: Change, max_bytes: int, max_age_ms: int, retain_from_version: int | None = None
) -> None:
    """Forget the oldest versions while the event log exceeds its bounds; `change`: the newest one.

    Versions from `retain_from_version` on stay. The place of the last forgotten event is recorded, so that a
    version without events never looks like a gap to readers of the log.
    """
    total, forgot = tables.meta.log
    newest = change.version if retain_from_version is None else min(retain_from_version, change.version)
    oldest = list(_oldest(tables, change, total, max_bytes, max_age_ms, newest))
    for record in oldest:
        version = record.version
        tables.events.delete_all((version, ordinal) for ordinal in range(record.events))
        ended = list(tables.endings.of(version))
        tables.clusters.delete_all(ended)
        tables.endings.delete_all((version, cluster) for cluster in ended)
        tables.commits.delete_all([version])
        total -= record.bytes
        forgot = record.last if record.events else forgot
    if oldest:  # `apply` has written the record
        tables.meta.put_log(LogRecord(total, forgot))


def _oldest(
    tables: Tables, change: Change, total: int, max_bytes: int, max_age_ms: int, newest: int
) -> Iterator[Commit]:
    """Yield the oldest versions that exceed the bounds, none from the version `newest` on."""
    for version, record in tables.commits.rows():
        late = record.time_ms < change.time_ms - max_age_ms
        if version >= newest or not (late or total > max_bytes):
            return
        total -= record.bytes
        yield record


def erase_mentions(tables: Tables, key: bytes) -> int:
    """Replace events that mention a key by empty ones; return how many."""
    needles = {key, orjson.dumps(key.decode(errors="replace"))[1:-1]}
    mentions = [
        (place, len(body))
        for place, body in tables.events.stored()
        if any(needle in body for needle in needles) and _mentions(schema.unpack_event(body), key)
    ]
    blank, saved = len(schema.pack_event(Erased())), 0
    for (version, ordinal), size in mentions:
        tables.events.put((version, ordinal), Erased())
        record = tables.commits.need(version)
        tables.commits.put(version, record._replace(bytes=record.bytes - (size - blank)))
        saved += size - blank
    if mentions:
        log = tables.meta.log
        tables.meta.put_log(log._replace(bytes=log.bytes - saved))
    return len(mentions)


def _mentions(event: Event, key: bytes) -> bool:
    """Return whether an event concerns the item with this key; dead letters are searched for it."""
    if isinstance(event, Assignment):
        return event.key == key
    if isinstance(event, DeadLetter):
        texts = (event.value or b"", event.reason.encode(), event.origin.encode())
        quoted = [quote + key + quote for quote in (b'"', b"'")]
        return event.key == key or any(form in text for text in texts for form in quoted)
    return False
