"""Verification of a store: values against checksums, tables against each other, the log against the items.

Nothing is recomputed here; `engine.collection.check` does that.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.errors import CorruptStore, counted
from engine.storage import schema
from engine.storage.environment import reading
from engine.storage.load import load
from engine.storage.schema import Commit, Pair, show_key
from engine.storage.tables import RawTable, Tables
from engine.types import Assignment, Cluster, Loaded, Vectors

_REBUILD = "run `shoal rebuild` to repair it"


def walk(path: str | os.PathLike[str], beside: str = "") -> int:
    """Compare every value with its checksum and look up every key; return the number of rows.

    `beside`: not empty if another process may be writing the store. Raises CorruptStore.
    """
    with reading(path, lock=bool(beside)) as tables:
        if tables is None:
            return 0
        counts = {name: _count(table) for name, table in tables.raw.items()}
        for name, count in counts.items():
            if count != (wanted := tables.raw[name].count()):
                found = counted(count, "row")
                raise CorruptStore(f"table {name} has {found}, not {wanted}; restore a backup")
        return sum(counts.values())


def _count(table: RawTable) -> int:
    """Count the rows of a table that are in order, match their checksum, and are found by a search."""
    count, before = 0, b""
    with table.cursor() as rows, table.cursor() as search:
        for key, value in rows:
            table.unseal(key, value)
            if key <= before or not search.set_key(key):
                shown = show_key(table.name, key)
                raise CorruptStore(f"table {table.name}, key {shown} is in a wrong place; restore a backup")
            count, before = count + 1, key
    return count


@dataclass(slots=True)
class Contents:
    """One version of a store in memory."""

    loaded: Loaded
    config: dict[str, Any]
    numbers: dict[bytes, int]  # the table keys
    copies: set[Pair]  # node, item
    incoming: Vectors | None  # by item, with an adapter
    places: dict[int, int]  # node -> tree
    members: set[Pair]  # tree, node
    paths: dict[int, tuple[int, ...]]  # the table trees
    cluster_trees: set[Pair]
    clusters: dict[int, Cluster]  # the ended ones too
    sizes: set[Pair]  # size, cluster
    endings: set[Pair]  # version, cluster
    commits: dict[int, Commit]
    log_bytes: int
    events: dict[int, Pair] = field(default_factory=dict)  # version -> events, bytes found
    last: dict[bytes, Assignment] = field(default_factory=dict)  # key -> its last event in the log
    strange: list[str] = field(default_factory=list)  # events that cannot be read


def read(tables: Tables) -> Contents:
    """Read one version as a whole. Raises CorruptStore."""
    config = tables.meta.config or {}
    contents = Contents(
        loaded=load(tables),
        config=config,
        numbers=dict(tables.keys.rows()),
        copies=set(tables.copies.pairs()),
        incoming=tables.incoming.columns() if config.get("adapter") else None,
        places=dict(tables.places.rows()),
        members=set(tables.members.pairs()),
        paths=dict(tables.trees.rows()),
        cluster_trees=set(tables.cluster_trees.pairs()),
        clusters=dict(tables.clusters.rows()),
        sizes=set(tables.sizes.pairs()),
        endings=set(tables.endings.pairs()),
        commits=dict(tables.commits.rows()),
        log_bytes=tables.meta.log.bytes,
    )
    _read_events(tables, contents)
    return contents


def _read_events(tables: Tables, contents: Contents) -> None:
    for (version, ordinal), body in tables.events.stored():
        count, size = contents.events.get(version, (0, 0))
        contents.events[version] = (count + 1, size + len(body))
        if ordinal != count:
            contents.strange.append(f"event {version}-{ordinal} stands where {version}-{count} should")
        try:
            event = schema.unpack_event(body)
        except (ValueError, KeyError, TypeError):
            contents.strange.append(f"event {version}-{ordinal} cannot be read")
            continue
        if isinstance(event, Assignment):
            contents.last[event.key] = event


def tables(contents: Contents) -> list[str]:
    """Return where tables contradict each other, a sentence each."""
    return [*_items(contents), *_trees(contents), *_clusters(contents)]


def history(contents: Contents) -> list[str]:
    """Return where the event log contradicts itself or the items, a sentence each."""
    return [*_log(contents), *_replayed(contents)]


def _items(contents: Contents) -> Iterator[str]:
    loaded = contents.loaded
    items = loaded.items
    if contents.numbers != dict(zip(items.keys, items.ids.tolist(), strict=True)):
        yield "the tables keys and items do not name the same items; restore a backup"
    if contents.copies != set(zip(items.nodes.tolist(), items.ids.tolist(), strict=True)):
        yield "the tables copies and items do not say the same; restore a backup"
    nodes = loaded.vectors.ids.tolist()
    for name, ids in (("lists", loaded.lists.ids.tolist()), ("places", sorted(contents.places))):
        if ids != nodes:
            yield f"the tables {name} and nodes do not hold the same nodes; " + _REBUILD
    if contents.members != {(tree, node) for node, tree in contents.places.items()}:
        yield "the tables members and places do not say the same; " + _REBUILD
    counters = loaded.counters
    if int(items.ids.max(initial=0)) >= counters.get("next_item", 1):
        yield "an item has an id not below `next_item`; restore a backup"
    if max(nodes, default=0) >= counters.get("next_node", 1):
        yield "a node has an id not below `next_node`; restore a backup"
    if max(contents.paths, default=0) >= counters.get("next_tree", 1):
        yield "a tree has a number not below `next_tree`; restore a backup"
    if max(contents.clusters, default=0) >= counters.get("next_cluster", 1):
        yield "a cluster has an id not below `next_cluster`; restore a backup"
    if int(items.versions.max(initial=0)) > loaded.version:
        yield f"a vector is of a version after {loaded.version}, the store's; restore a backup"
    grid = loaded.vectors.vectors
    given = grid if contents.incoming is None else contents.incoming.vectors
    if contents.incoming is not None and not np.array_equal(contents.incoming.ids, items.ids):
        yield "the tables incoming and items do not hold the same items; restore a backup"
    if contents.config.get("dim") not in (None, given.shape[1]) and len(given):
        yield "the vectors do not have the dimension of the collection; restore a backup"
    empty = np.flatnonzero(~grid.any(axis=1)).tolist() if len(nodes) else []
    yield from (f"the vector of node {nodes[row]} is zero; restore a backup" for row in empty)
    if len({vector.tobytes() for vector in grid}) < len(nodes):
        yield "two nodes have the same vector; restore a backup"


def _trees(contents: Contents) -> Iterator[str]:
    if set(contents.places.values()) != set(contents.paths):
        yield "the tables places and trees do not hold the same trees; " + _REBUILD
    listed = {(cluster, tree) for tree, path in contents.paths.items() for cluster in path}
    if contents.cluster_trees != listed:
        yield "the tables cluster_trees and trees do not say the same; " + _REBUILD
    for tree, path in contents.paths.items():
        if not path or len(set(path)) != len(path):
            yield f"the path of tree {tree} is empty or names a cluster twice; " + _REBUILD
        for cluster, parent in zip(path, (0, *path[:-1]), strict=True):
            record = contents.clusters.get(cluster)
            if record is None or record.ended or record.parent != parent:
                wrong = "is missing, has ended or has another parent"
                yield f"tree {tree} lists cluster {cluster}, which {wrong}; {_REBUILD}"


def _clusters(contents: Contents) -> Iterator[str]:
    sizes = _counted(contents)
    levels = int(contents.loaded.counters.get("levels", 1))
    final, ended = set(), set()
    for cluster in contents.clusters.values():
        if cluster.ended:
            ended.add((cluster.ended, cluster.id))
            continue
        if not cluster.parent:
            final.add((cluster.size, cluster.id))
        if sizes.get(cluster.id) != cluster.size:
            found = counted(sizes.get(cluster.id, 0), "item")
            yield f"cluster {cluster.id} has {found}, not {cluster.size}; {_REBUILD}"
        if cluster.peak not in contents.places:
            yield f"the peak of cluster {cluster.id} is a node that does not exist; {_REBUILD}"
        top = levels - 1 if not cluster.parent else cluster.coarsest
        if not 0 <= cluster.finest <= top < levels:
            yield f"cluster {cluster.id} is at levels {cluster.finest} to {top} of {levels}; {_REBUILD}"
    if contents.sizes != final:
        yield f"the table sizes does not hold the final clusters; {_REBUILD}"
    if contents.endings != ended:
        yield f"the table endings does not hold the ended clusters; {_REBUILD}"
    if set(sizes) != {c.id for c in contents.clusters.values() if not c.ended}:
        yield f"a live cluster has no items, or an ended one has some; {_REBUILD}"


def _counted(contents: Contents) -> dict[int, int]:
    """Count the items of each cluster by places and paths."""
    trees = Counter(contents.loaded.places.tolist())
    sizes: dict[int, int] = {}
    for tree, path in contents.paths.items():
        for cluster in path:
            sizes[cluster] = sizes.get(cluster, 0) + trees[tree]
    return sizes


def _log(contents: Contents) -> Iterator[str]:
    commits, version = contents.commits, contents.loaded.version
    yield from (f"{problem}; restore a backup" for problem in contents.strange)
    if version and sorted(commits) != list(range(min(commits, default=0), version + 1)):
        yield f"the versions of the log do not lead without a gap to version {version}; restore a backup"
    for number, commit in commits.items():
        if contents.events.get(number, (0, 0)) != (commit.events, commit.bytes):
            events, size = contents.events.get(number, (0, 0))
            found = f"{counted(events, 'event')} of {size} bytes"
            wanted = f"{commit.events} of {commit.bytes}"
            yield f"version {number} has {found}, its commit records {wanted}; restore a backup"
    for number in contents.events.keys() - commits.keys():
        yield f"events of version {number} are left without their commit; restore a backup"
    if sum(commit.bytes for commit in commits.values()) != contents.log_bytes:
        yield "the log's size differs from the recorded one; restore a backup"
    if any(ended not in commits for ended, _ in contents.endings):
        yield f"a cluster ended in a version that the log has forgotten; {_REBUILD}"


def _replayed(contents: Contents) -> Iterator[str]:
    """Compare the last event of each key with the place of its item."""
    items, numbers, paths = contents.loaded.items, contents.numbers, contents.paths
    place = dict(zip(items.keys, contents.loaded.places.tolist(), strict=True))
    for key, event in contents.last.items():
        now = paths.get(place.get(key, 0), ())
        if (now[0] if now else 0) != event.cluster:
            name = key.decode(errors="replace")
            yield f"the last event of {name!r} is not where the item is; restore a backup"
    if contents.commits and min(contents.commits) == 1:
        silent = numbers.keys() - contents.last.keys()
        yield from (
            f"no event mentions item {key.decode(errors='replace')!r}; restore a backup" for key in silent
        )
