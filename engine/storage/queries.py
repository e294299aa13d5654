"""Queries on one version of a store: items, clusters, members and levels; `reader.View` documents them.

`level` asks for another granularity than the final clusters: 0 is the finest, and a level above the
top one means the final clusters. A page continues at the `cursor` of the page before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import index
from typing import SupportsIndex, TypeVar

import numpy as np
import orjson

from engine.config import LMDB_KEY_MAX_BYTES
from engine.errors import CorruptStore, InputError, NotFound
from engine.storage import eventlog
from engine.storage.answers import (
    ClusterDetail,
    ClusterPage,
    ClusterRow,
    ItemDetail,
    ItemRow,
    LevelRow,
    Lookup,
    Member,
    MemberPage,
    Stamped,
    Summary,
)
from engine.storage.tables import Tables
from engine.types import Cluster, Clusters, Int16, Item, Items

MAX_PAGE = 10_000
MAX_STEPS = 1_000  # from an ended cluster to those that have its members now
ORDERS = ("size", "id", "newest")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Peaks:
    """The largest final clusters, and their peaks."""

    version: int
    total: int  # final clusters there are
    clusters: list[ClusterRow]
    items: Items | None  # the oldest with each peak's vector; None: there are no clusters
    vectors: Int16  # (n, d), of the peaks


class Snapshot:
    """One version of a store, as a read transaction sees it."""

    def __init__(self, collection: str, tables: Tables) -> None:
        self.tables, self.state = tables, tables.meta.state
        self.stamp: Stamped = {"collection": collection, "version": self.state.version}

    def summary(self) -> Summary:
        """Return what the store holds."""
        epoch = self.state.epoch
        return {
            **self.stamp,
            "items": self.tables.items.count(),
            "clusters": self.tables.sizes.count(),
            "levels": self.state.levels,
            "time": self.state.time_ms,
            "epoch": [epoch.mean, epoch.deviation, epoch.items] if self.state.version else None,
            "changes_from": eventlog.oldest(self.tables),
        }

    def levels(self) -> list[LevelRow]:
        """Count the clusters of each level, and those of one item; finest first."""
        table = self._living()
        rows: list[LevelRow] = []
        for level in range(self.state.levels):
            sizes = table.size[(table.finest <= level) & (table.coarsest >= level)]
            singletons = int((sizes == 1).sum())
            rows.append({"level": level, "clusters": len(sizes), "singletons": singletons})
        return rows

    def item(self, key: bytes, level: int | None) -> ItemDetail:
        """Return an item and its clusters. Raises NotFound."""
        item = self._stored(key)
        if item is None:
            raise NotFound(f"no item has the key {key.decode(errors='backslashreplace')!r}")
        return {**self.stamp, **self._item(item, level)}

    def lookup(self, keys: Sequence[bytes], level: int | None, payload_bytes: int) -> Lookup:
        """See `View.lookup`."""
        found = [self._stored(key) for key in keys]
        size = sum(len(item.payload) for item in found if item)
        if size > payload_bytes:
            raise InputError(f"{size} bytes of payloads, at most {payload_bytes}: ask for fewer items")
        rows = [self._item(item, level) if item else None for item in found]
        missing = [key.decode() for key, item in zip(keys, found, strict=True) if item is None]
        return {**self.stamp, "items": rows, "missing": missing}

    def _stored(self, key: bytes) -> Item | None:
        number = self.tables.keys.get(key) if 0 < len(key) <= LMDB_KEY_MAX_BYTES else None
        return None if number is None else self.tables.items.need(number)

    def _item(self, item: Item, level: int | None) -> ItemRow:
        path = self.tables.trees.need(self.tables.places.need(item.node))
        return {
            "key": item.key.decode(),
            "cluster": self.at_level(path, level),
            "path": list(path),
            "time": item.time,
            "payload": orjson.loads(item.payload) if item.payload else None,
            "updated": item.version,
        }

    def cluster(self, number: int) -> ClusterDetail:
        """Return a cluster, also an ended one. Raises NotFound."""
        cluster = self._cluster(number)
        finer: dict[int, None] = {}
        for tree in islice(self.tables.cluster_trees.of(number), MAX_PAGE):
            path = self.tables.trees.need(tree)
            below = path.index(number) + 1
            finer |= dict.fromkeys(path[below : below + 1])
        now = self._successors(number) if cluster.ended else []
        return {**self.stamp, **self._row(cluster), "children": sorted(finer), "now": now}

    def clusters(self, level: int | None, order: str, cursor: str | None, limit: int) -> ClusterPage:
        """See `View.clusters`."""
        if order not in ORDERS:
            raise InputError(
                f"clusters are ordered by 'size' or by 'id', or 'newest' first, not by {order!r}"
            )
        at = self._level(level)
        if order == "size" and at == self.state.levels - 1:
            rows = self._largest(cursor)
        elif order == "newest":
            rows = self._newest(at, cursor)
        else:
            rows = self._at(at, order, cursor)
        page, following = _page(rows, limit)
        after = None
        if following:
            number = str(following["cluster"])
            after = f"{following['size']}-{number}" if order == "size" else number
        return {**self.stamp, "clusters": page, "cursor": after}

    def final(self, clusters: Iterable[int], limit: int) -> list[ClusterRow]:
        """Return the first `limit` of these clusters that are living final ones."""
        found = (cluster for cluster in map(self.tables.clusters.get, clusters) if cluster is not None)
        living = (self._row(cluster) for cluster in found if not (cluster.ended or cluster.parent))
        return list(islice(living, limit))

    def members(self, cluster: int, cursor: str | None, limit: int, payload_bytes: int | None) -> MemberPage:
        """See `View.members`."""
        size = self._cluster(cluster).size
        start = _numbers(cursor, 3) if cursor else (0, 0, 0)
        rows = islice(self._members(cluster, start), page_size(limit) + 1)
        items: list[Member] = []
        spent, after = 0, None
        for place in rows:
            if len(items) == limit or spent > (payload_bytes or 0):
                after = "-".join(map(str, place))
                break
            tree, _, number = place
            item = self.tables.items.need(number)
            member: Member = {"key": item.key.decode(), "time": item.time, "tree": tree}
            if payload_bytes is not None:
                member["payload"] = orjson.loads(item.payload) if item.payload else None
                spent += len(item.payload)
            items.append(member)
        return {**self.stamp, "cluster": cluster, "size": size, "items": items, "cursor": after}

    def peaks(self, limit: int) -> Peaks:
        """Return the largest final clusters with the vector and the oldest item of each one's peak."""
        clusters = [self.tables.clusters.need(c) for _, c in islice(self.tables.sizes.pairs(), limit)]
        nodes = np.array([cluster.peak for cluster in clusters], np.int64)
        vectors = self.tables.nodes.pick(nodes)
        items = self.tables.items.pick(np.array([*map(self._oldest, nodes.tolist())], np.int64))
        if not len(vectors.ids) == len(items.ids) == len(nodes):
            raise CorruptStore("a cluster's peak is no node of the store; run `shoal rebuild` to repair it")
        rows = [self._row(cluster) for cluster in clusters]
        total = self.tables.sizes.count()
        return Peaks(self.state.version, total, rows, items if clusters else None, vectors.vectors)

    def peak_of(self, cluster: int) -> str | None:
        """Return the key of a cluster's densest item, None: it is gone."""
        return self._row(self._cluster(cluster))["peak"]

    def _oldest(self, node: int) -> int:
        """Return the oldest item that has a node's vector, 0: there is none."""
        return next(self.tables.copies.of(node), 0)

    def _cluster(self, number: int) -> Cluster:
        cluster = self.tables.clusters.get(number) if 0 < number < 2**63 else None
        if cluster is None:
            raise NotFound(f"there is no cluster {number}, or the log has forgotten it")
        return cluster

    def _row(self, cluster: Cluster) -> ClusterRow:
        final = cluster.parent == 0 and not cluster.ended
        peak = self.tables.items.get(self._oldest(cluster.peak))
        return {
            "cluster": cluster.id,
            "size": cluster.size,
            "finest": cluster.finest,
            "coarsest": self.state.levels - 1 if final else cluster.coarsest,
            "peak": None if peak is None else peak.key.decode(),
            "parent": cluster.parent or None,
            "born": cluster.born,
            "changed": cluster.changed,
            "ended": cluster.ended or None,
            "into": list(cluster.into),
        }

    def _level(self, level: int | None) -> int:
        """Return a level of this version; None and levels above the top mean the top one."""
        top = self.state.levels - 1
        return top if level is None else min(max(level, 0), top)

    def at_level(self, path: tuple[int, ...], level: int | None) -> int:
        """Return the cluster of a path at a level: the coarsest that reaches down to it."""
        if level is None or level >= self.state.levels - 1:
            return path[0]
        for cluster in path:
            if self.tables.clusters.need(cluster).finest <= level:
                return cluster
        raise CorruptStore(f"cluster {path[-1]} has no tree of level 0; run `shoal rebuild` to repair it")

    def _living(self) -> Clusters:
        table = self.tables.clusters.living()
        table.coarsest[table.parent == 0] = self.state.levels - 1
        return table

    def _largest(self, cursor: str | None) -> Iterator[ClusterRow]:
        """Yield final clusters by falling size, from an index."""
        for _, number in self.tables.sizes.pairs(pair_of(cursor) if cursor else None):
            yield self._row(self._cluster(number))

    def _newest(self, level: int, cursor: str | None) -> Iterator[ClusterRow]:
        """Yield the living clusters of a level by falling id: ids are assigned in order."""
        for _, cluster in self.tables.clusters.rows_back(number_of(cursor) if cursor else None):
            row = self._row(cluster)
            if not row["ended"] and row["finest"] <= level <= row["coarsest"]:
                yield row

    def _at(self, level: int, order: str, cursor: str | None) -> Iterator[ClusterRow]:
        """Yield the living clusters of a level by falling size or by rising id, sorted here."""
        table = self._living()
        rows = np.flatnonzero((table.finest <= level) & (table.coarsest >= level))
        if order == "size":
            rows = rows[np.lexsort((table.ids[rows], -table.size[rows]))]
            if cursor:
                size, first = pair_of(cursor)
                later = (table.size[rows] < size) | ((table.size[rows] == size) & (table.ids[rows] >= first))
                rows = rows[later]
        elif cursor:
            rows = rows[table.ids[rows] >= number_of(cursor)]
        return (self._row(self._cluster(number)) for number in table.ids[rows].tolist())

    def _members(self, cluster: int, start: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
        """Yield (tree, node, item id) of a cluster's members from a place on."""
        first_tree, first_node, first_item = start
        for tree in self.tables.cluster_trees.of(cluster, first_tree):
            for node in self.tables.members.of(tree, first_node if tree == first_tree else 0):
                begins = (tree, node) == (first_tree, first_node)
                for item in self.tables.copies.of(node, first_item if begins else 0):
                    yield tree, node, item

    def _successors(self, cluster: int) -> list[int]:
        """Return the living final clusters that an ended one's members have led to, as far as is known."""
        seen, ahead, final = {cluster}, [cluster], []
        while ahead and len(seen) <= MAX_STEPS:
            record = self.tables.clusters.get(ahead.pop())
            if record is None:
                continue
            onward = record.into if record.ended else (record.parent,) if record.parent else ()
            if not onward and not record.ended:
                final.append(record.id)
            fresh = [other for other in onward if other not in seen]
            seen.update(fresh)
            ahead += fresh
        return sorted(final)


def page_size(limit: int) -> int:
    """Return a page's size if it is within the bounds. Raises InputError."""
    if not (isinstance(limit, SupportsIndex) and 1 <= index(limit) <= MAX_PAGE):
        raise InputError(f"a page has 1 to {MAX_PAGE} entries, not {limit!r}")
    return index(limit)


def _page(rows: Iterator[R], limit: int) -> tuple[list[R], R | None]:
    """Return the page, and the first row of the next one."""
    return list(islice(rows, page_size(limit))), next(rows, None)


def _numbers(cursor: str, count: int) -> tuple[int, ...]:
    parts = cursor.split("-")
    if len(parts) != count or not all(re.fullmatch("[0-9]{1,18}", part) for part in parts):
        raise InputError(f"{cursor!r} is not the cursor of such a page")
    return tuple(map(int, parts))


def number_of(cursor: str) -> int:
    """Return the number that a cursor is. Raises InputError."""
    return _numbers(cursor, 1)[0]


def pair_of(cursor: str) -> tuple[int, int]:
    """Return the two numbers of a cursor. Raises InputError."""
    first, second = _numbers(cursor, 2)
    return first, second
