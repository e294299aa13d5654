"""The tables of a store within one transaction: rows in, rows out, every value checked."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import lmdb
import numpy as np

from engine.errors import CorruptStore
from engine.storage import schema
from engine.types import NO_TREES, Clusters, Epoch, Int64, Lists, Loaded, Trees


class Tables:
    """One transaction's view of the tables. Bodies go in and come out; checksums stay inside."""

    def __init__(self, txn: lmdb.Transaction[bytes], handles: Mapping[str, Any]) -> None:
        self.txn = txn
        self._handles = handles

    def get(self, table: str, key: bytes) -> bytes | None:
        """The body under a key, None: there is none. Raises CorruptStore."""
        value = self.txn.get(key, db=self._handles[table])
        return None if value is None else schema.unseal(table, key, value)

    def need(self, table: str, key: bytes) -> bytes:
        """As `get`, of a row that has to be there. Raises CorruptStore."""
        body = self.get(table, key)
        if body is None:
            raise CorruptStore(
                f"table {table}, key {schema.show_key(table, key)} is missing; restore a backup"
            )
        return body

    def rows(self, table: str, start: bytes = b"", prefix: bytes = b"") -> Iterator[schema.Row]:
        """Rows from `start` on, in the order of keys, while they begin with `prefix`. Raises CorruptStore."""
        with self.txn.cursor(self._handles[table]) as cursor:
            found = cursor.set_range(max(start, prefix)) if start or prefix else cursor.first()
            while found and cursor.key().startswith(prefix):
                yield cursor.key(), schema.unseal(table, cursor.key(), cursor.value())
                found = cursor.next()

    def rows_back(self, table: str, start: bytes = b"") -> Iterator[schema.Row]:
        """Rows from `start` (the last one without) backwards. Raises CorruptStore."""
        with self.txn.cursor(self._handles[table]) as cursor:
            if start and cursor.set_range(start):
                found = cursor.key() == start or cursor.prev()
            else:
                found = cursor.last()
            while found:
                yield cursor.key(), schema.unseal(table, cursor.key(), cursor.value())
                found = cursor.prev()

    def cursor(self, table: str) -> lmdb.Cursor[bytes]:
        """Keys and values as they are stored."""
        return self.txn.cursor(self._handles[table])

    def first(self, table: str) -> schema.Row | None:
        return next(self.rows(table), None)

    def read(self, table: str) -> tuple[list[bytes], list[bytes]]:
        """All keys and bodies of a table. Raises CorruptStore."""
        with self.txn.cursor(self._handles[table]) as cursor:
            return schema.unseal_rows(table, cursor)

    def count(self, table: str) -> int:
        return int(self.txn.stat(self._handles[table])["entries"])

    def put(self, table: str, key: bytes, body: bytes = b"") -> None:
        self.txn.put(key, schema.seal(table, key, body), db=self._handles[table])

    def put_rows(self, table: str, keys: Sequence[bytes], bodies: Iterable[bytes]) -> None:
        """Keys in rising order: neighbours share pages, so each page is copied once.

        Rows behind the last one are appended, which fills pages (else LMDB leaves each a quarter empty).
        """
        rows = schema.seal_rows(table, keys, bodies)
        with self.txn.cursor(self._handles[table]) as cursor:
            last = cursor.key() if cursor.last() else b""
            inner = bisect_right(keys, last)
            cursor.putmulti(rows[:inner])
            cursor.putmulti(rows[inner:], append=True)

    def put_keys(self, table: str, keys: Sequence[bytes]) -> None:
        """Rows without a body."""
        self.put_rows(table, keys, [b""] * len(keys))

    def delete(self, table: str, key: bytes) -> bool:
        return bool(self.txn.delete(key, db=self._handles[table]))

    def delete_all(self, table: str, keys: Iterable[bytes]) -> None:
        for key in keys:
            found = self.delete(table, key)
            assert found, f"table {table} has no key {schema.show_key(table, key)}"

    def clear(self, table: str) -> None:
        self.txn.drop(self._handles[table], delete=False)

    def json(self, name: str) -> dict[str, Any] | None:
        """A value of the table `meta`."""
        body = self.get("meta", name.encode())
        return None if body is None else schema.load_json("meta", name.encode(), body)


def load(tables: Tables) -> Loaded:
    """Everything but history. Raises CorruptStore where tables contradict each other."""
    state = tables.json("state") or {}
    counters = state.get("counters", {})
    levels = int(counters.get("levels", 1))
    items = schema.read_items(*tables.read("items"))
    lists = schema.read_lists(*tables.read("lists"))
    if not np.array_equal(lists.ids, items.ids):
        raise CorruptStore("the tables items and lists do not hold the same items; restore a backup")
    keys, bodies = tables.read("places")
    places = schema.read_numbers(bodies)
    if not np.array_equal(schema.read_u64_keys(keys), items.ids):
        raise CorruptStore("the tables items and places do not hold the same items; `shoal rebuild` mends it")
    clusters = _clusters(tables, levels)
    trees = _trees(tables, clusters, levels)
    if not np.array_equal(np.unique(places), trees.handles):
        raise CorruptStore("the tables places and trees do not hold the same trees; `shoal rebuild` mends it")
    positions = {key.decode(): body for key, body in tables.rows("positions")}
    version, time_ms = int(state.get("version", 0)), int(state.get("time_ms", 0))
    epoch = Epoch(*state.get("epoch", (0.0, 0.0, 0)))
    return Loaded(version, time_ms, epoch, counters, positions, items, lists, places, trees, clusters)


def load_to_rebuild(tables: Tables) -> Loaded:
    """As `load`; where derived tables contradict each other, all items are as new, and keep no names.

    Raises CorruptStore where values are damaged.
    """
    try:
        return load(tables)
    except CorruptStore:
        state = tables.json("state") or {}
        counters = state.get("counters", {})
        items = schema.read_items(*tables.read("items"))
        count = len(items.ids)
        lists = Lists(items.ids, np.full((count, 0), -1, np.int64), np.zeros((count, 0), np.int32))
        clusters = _clusters(tables, int(counters.get("levels", 1)))
        return Loaded(
            int(state.get("version", 0)), int(state.get("time_ms", 0)), Epoch(*state["epoch"]), counters, {},
            items, lists, np.zeros(count, np.int64), NO_TREES, clusters,
        )  # fmt: skip


def _clusters(tables: Tables, levels: int) -> Clusters:
    clusters = schema.read_living(*tables.read("clusters"))
    final = clusters.parent == 0  # not rewritten when the number of levels changes
    clusters.coarsest[final] = levels - 1
    return clusters


def _trees(tables: Tables, clusters: Clusters, levels: int) -> Trees:
    """Paths by level from distinct ids: a level has the coarsest cluster that reaches down to it."""
    keys, bodies = tables.read("trees")
    packed = np.zeros((len(keys), levels), np.int64)
    for row, body in enumerate(bodies):
        path = schema.read_ids(body)
        if len(path) > levels:
            raise CorruptStore(f"table trees, key {schema.show_key('trees', keys[row])}: too long a path")
        packed[row, : len(path)] = path
    at = np.minimum(np.searchsorted(clusters.ids, packed), max(len(clusters.ids) - 1, 0))
    if len(keys) and not ((clusters.ids[at] == packed) | (packed == 0)).all():
        raise CorruptStore("the table trees names clusters that are not there; `shoal rebuild` mends it")
    finest = np.where(packed > 0, clusters.finest[at], -1) if len(keys) else packed
    rows = np.arange(len(keys))
    paths = np.stack([packed[rows, _reach(finest, level)] for level in range(levels)], axis=1)
    return Trees(schema.read_u64_keys(keys), paths)


def _reach(finest: Int64, level: int) -> Int64:
    index: Int64 = np.minimum((finest > level).sum(axis=1), finest.shape[1] - 1)
    return index
