"""One version of a store, as a transaction sees it: clusters, trees, members, and the order they come in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from engine.errors import CorruptStore, InputError, NotFound
from engine.storage.tables import Tables
from engine.types import Cluster, Clusters

MAX_STEPS = 1_000  # from an ended cluster to those that have its members now
Answer = dict[str, Any]


class Moment:
    """One version of the store, for as long as the block lasts."""

    def __init__(self, tables: Tables) -> None:
        self.tables, state = tables, tables.meta.state
        self.version, self.time_ms, self.levels = state.version, state.time_ms, state.levels
        self.epoch = [state.epoch.mean, state.epoch.deviation, state.epoch.items] if state.version else None

    def cluster(self, cluster: int) -> Answer:
        found = self.tables.clusters.get(cluster) if 0 < cluster < 2**63 else None
        if found is None:
            raise NotFound(f"there is no cluster {cluster}, or the log has forgotten it")
        return self.describe(found)

    def describe(self, found: Cluster) -> Answer:
        top = found.parent == 0 and not found.ended
        return {
            "cluster": found.id,
            "size": found.size,
            "finest": found.finest,
            "coarsest": self.levels - 1 if top else found.coarsest,
            "peak": self._key_of(found.peak),
            "parent": found.parent or None,
            "born": found.born,
            "changed": found.changed,
            "ended": found.ended or None,
            "into": list(found.into),
        }

    def at_level(self, path: Iterable[int], level: int | None) -> int:
        """The cluster of a path at a level: the coarsest that reaches down to it."""
        ids = list(path)
        if level is None or level >= self.levels - 1:
            return ids[0]
        for cluster in ids:
            if self.tables.clusters.need(cluster).finest <= level:
                return cluster
        raise CorruptStore(f"cluster {ids[-1]} does not reach down to level 0; `shoal rebuild` mends it")

    def successors(self, cluster: int) -> list[int]:
        """The living final clusters that an ended one's members have led to, as far as the log remembers."""
        seen, ahead, found = {cluster}, [cluster], []
        while ahead and len(seen) <= MAX_STEPS:
            record = self.tables.clusters.get(ahead.pop())
            if record is None:
                continue
            onward = record.into if record.ended else (record.parent,) if record.parent else ()
            if not onward and not record.ended:
                found.append(record.id)
            fresh = [other for other in onward if other not in seen]
            seen.update(fresh)
            ahead += fresh
        return sorted(found)

    def _key_of(self, item: int) -> str | None:
        found = self.tables.items.get(item)
        return None if found is None else found.key.decode()


def clusters_at(found: Moment, level: int | None, order: str, cursor: str | None) -> Iterator[Answer]:
    """The living clusters of a level from the cursor on."""
    table = living(found)
    at = found.levels - 1 if level is None else min(max(level, 0), found.levels - 1)
    rows = np.flatnonzero((table.finest <= at) & (table.coarsest >= at))
    if order == "size":
        rows = rows[np.lexsort((table.ids[rows], -table.size[rows]))]
        if cursor:
            size, first = read_cursor(cursor, 2)
            later = (table.size[rows] < size) | ((table.size[rows] == size) & (table.ids[rows] >= first))
            rows = rows[later]
    elif cursor:
        rows = rows[table.ids[rows] >= read_cursor(cursor, 1)[0]]
    return (found.cluster(int(cluster)) for cluster in table.ids[rows])


def newest(found: Moment, level: int | None, cursor: str | None) -> Iterator[Answer]:
    """The living clusters of a level from the highest id down: ids are given in order."""
    at = found.levels - 1 if level is None else min(max(level, 0), found.levels - 1)
    start = read_cursor(cursor, 1)[0] if cursor else None
    for _, cluster in found.tables.clusters.rows_back(start):
        record = found.describe(cluster)
        if not record["ended"] and record["finest"] <= at <= record["coarsest"]:
            yield record


def living(found: Moment) -> Clusters:
    table = found.tables.clusters.living()
    table.coarsest[table.parent == 0] = found.levels - 1
    return table


def measure_levels(found: Moment) -> list[Answer]:
    table, measured = living(found), []
    for level in range(found.levels):
        size = table.size[(table.finest <= level) & (table.coarsest >= level)]
        measured.append({"level": level, "clusters": len(size), "singletons": int((size == 1).sum())})
    return measured


def members(found: Moment, cluster: int, tree: int, item: int) -> Iterator[Answer]:
    """(tree, item) of a cluster's members from a place on."""
    for handle in found.tables.cluster_trees.of(cluster, tree):
        for number in found.tables.members.of(handle, item if handle == tree else 0):
            yield {"tree": handle, "item": number}


def read_cursor(cursor: str, parts: int) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in cursor.split("-") if re.fullmatch("[0-9]{1,18}", part))
    if len(numbers) != parts or len(cursor.split("-")) != parts:
        raise InputError(f"{cursor!r} is not the cursor of such a page")
    return numbers


def read_size_cursor(cursor: str) -> tuple[int, int]:
    size, cluster = read_cursor(cursor, 2)
    return size, cluster
