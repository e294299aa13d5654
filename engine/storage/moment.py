"""One version of a store, as a transaction sees it: clusters, trees, members, and the order they come in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import lmdb
import numpy as np

from engine.errors import CorruptStore, InputError, NotFound
from engine.storage import schema
from engine.storage.tables import Tables
from engine.types import Clusters

MAX_STEPS = 1_000  # from an ended cluster to those that have its members now
Answer = dict[str, Any]


class Moment:
    """One version of the store, for as long as the block lasts."""

    def __init__(self, txn: lmdb.Transaction[bytes], handles: dict[str, Any]) -> None:
        self.tables = Tables(txn, handles)
        state = self.tables.json("state") or {}
        self.version = int(state.get("version", 0))
        self.time_ms = int(state.get("time_ms", 0))
        self.epoch = state.get("epoch")
        self.levels = int(state.get("counters", {}).get("levels", 1))

    def need(self, table: str, key: bytes) -> bytes:
        return self.tables.need(table, key)

    def cluster(self, cluster: int) -> Answer:
        key = schema.u64(cluster) if 0 < cluster < 2**63 else b""
        body = self.tables.get("clusters", key) if key else None
        if body is None:
            raise NotFound(f"there is no cluster {cluster}, or the log has forgotten it")
        return self.describe(key, body)

    def describe(self, key: bytes, body: bytes) -> Answer:
        found = schema.read_cluster(key, body)
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
            key = schema.u64(cluster)
            if schema.read_cluster(key, self.need("clusters", key)).finest <= level:
                return cluster
        raise CorruptStore(f"cluster {ids[-1]} does not reach down to level 0; `shoal rebuild` mends it")

    def successors(self, cluster: int) -> list[int]:
        """The living final clusters that an ended one's members have led to, as far as the log remembers."""
        seen, ahead, found = {cluster}, [cluster], []
        while ahead and len(seen) <= MAX_STEPS:
            key = schema.u64(ahead.pop())
            body = self.tables.get("clusters", key)
            if body is None:
                continue
            record = schema.read_cluster(key, body)
            onward = record.into if record.ended else (record.parent,) if record.parent else ()
            if not onward and not record.ended:
                found.append(record.id)
            fresh = [other for other in onward if other not in seen]
            seen.update(fresh)
            ahead += fresh
        return sorted(found)

    def trees(self, cluster: int, start: int = 0) -> Iterator[int]:
        prefix = schema.u64(cluster)
        for key, _ in self.tables.rows("cluster_trees", schema.pair(cluster, start), prefix):
            yield schema.read_pair(key)[1]

    def _key_of(self, item: int) -> str | None:
        key = schema.u64(item)
        body = self.tables.get("items", key)
        return schema.read_items([key], [body]).keys[0].decode() if body is not None else None


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
    start = schema.u64(read_cursor(cursor, 1)[0]) if cursor else b""
    for key, body in found.tables.rows_back("clusters", start):
        record = found.describe(key, body)
        if not record["ended"] and record["finest"] <= at <= record["coarsest"]:
            yield record


def living(found: Moment) -> Clusters:
    table = schema.read_living(*found.tables.read("clusters"))
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
    for handle in found.trees(cluster, tree):
        start = schema.pair(handle, item if handle == tree else 0)
        for key, _ in found.tables.rows("members", start, schema.u64(handle)):
            yield {"tree": handle, "item": schema.read_pair(key)[1]}


def read_cursor(cursor: str, parts: int) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in cursor.split("-") if re.fullmatch("[0-9]{1,18}", part))
    if len(numbers) != parts or len(cursor.split("-")) != parts:
        raise InputError(f"{cursor!r} is not the cursor of such a page")
    return numbers
