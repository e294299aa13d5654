"""The tables of a store within one transaction, each with the encoding of its rows.

So no caller pairs a table with an encoding. Every value is compared with its checksum when it is read, and
given one when it is written. `schema` documents and encodes the bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from operator import itemgetter
from typing import Any, Generic, NoReturn, TypeVar

import lmdb
import numpy as np
import orjson
from xxhash import xxh32_digest

from engine.errors import CorruptStore
from engine.events import EventId
from engine.storage import schema
from engine.storage.schema import (
    BYTES,
    CHECKSUM_BYTES,
    ID,
    PAIR,
    PLACE,
    SEEDS,
    SIZE,
    TEXT,
    BodyCodec,
    K,
    KeyCodec,
    LogRecord,
    Pair,
    Row,
    StateRecord,
    show_key,
    split_rows,
    unpack_ids,
)
from engine.types import Cluster, Clusters, Epoch, Event, Int64, Item, Items, Lists, Shift, Vectors

T = TypeVar("T")
V = TypeVar("V")
C = TypeVar("C", bound=Items | Lists | Vectors)


class RawTable:
    """The rows of a table as bytes, in the order of their keys."""

    __slots__ = ("_db", "_seed", "_txn", "name")

    def __init__(self, txn: lmdb.Transaction[bytes], db: Any, name: str) -> None:
        self._txn, self._db, self._seed, self.name = txn, db, SEEDS[name], name

    def get(self, key: bytes) -> bytes | None:
        """Return the body under a key, None if there is none. Raises CorruptStore."""
        value = self._txn.get(key, db=self._db)
        return None if value is None else self.unseal(key, value)

    def need(self, key: bytes) -> bytes:
        """Return the body of a row that must exist. Raises CorruptStore."""
        body = self.get(key)
        if body is None:
            raise CorruptStore(
                f"table {self.name}, key {show_key(self.name, key)} is missing; restore a backup"
            )
        return body

    def rows(self, start: bytes = b"", prefix: bytes = b"") -> Iterator[Row]:
        """Yield rows from `start` on while their keys begin with `prefix`. Raises CorruptStore."""
        with self.cursor() as cursor:
            more = cursor.set_range(max(start, prefix)) if start or prefix else cursor.first()
            while more and cursor.key().startswith(prefix):
                yield cursor.key(), self.unseal(*cursor.item())
                more = cursor.next()

    def rows_back(self, start: bytes = b"") -> Iterator[Row]:
        """Yield rows from `start` (by default the last row) backwards. Raises CorruptStore."""
        with self.cursor() as cursor:
            if start and cursor.set_range(start):
                more = cursor.key() == start or cursor.prev()
            else:
                more = cursor.last()
            while more:
                yield cursor.key(), self.unseal(*cursor.item())
                more = cursor.prev()

    def cursor(self) -> lmdb.Cursor[bytes]:
        """Return a cursor over keys and values as they are on disk, checksums included."""
        return self._txn.cursor(self._db)

    def read(self) -> tuple[list[bytes], list[bytes]]:
        """Return all keys and their bodies, in key order. Raises CorruptStore."""
        seed, digest = self._seed, xxh32_digest
        keys: list[bytes] = []
        bodies: list[bytes] = []
        with self.cursor() as cursor:
            for key, value in cursor:
                body = value[:-CHECKSUM_BYTES]
                if digest(key + body, seed) != value[-CHECKSUM_BYTES:]:
                    self.refuse(key, "the checksum does not match")
                keys.append(key)
                bodies.append(body)
        return keys, bodies

    def count(self) -> int:
        """Return the number of rows."""
        return int(self._txn.stat(self._db)["entries"])

    def put(self, key: bytes, body: bytes) -> None:
        """Write one row."""
        self._txn.put(key, body + xxh32_digest(key + body, self._seed), db=self._db)

    def put_all(self, rows: Iterable[Row]) -> None:
        """Write rows, in the order of their keys: rows that share a page then cost one copy of it.

        Rows behind the last one are appended, which fills pages; LMDB otherwise leaves each a quarter empty.
        """
        seed, digest, key_of = self._seed, xxh32_digest, itemgetter(0)
        ordered = sorted(rows, key=key_of)
        sealed = [(key, body + digest(key + body, seed)) for key, body in ordered]
        with self.cursor() as cursor:
            last = cursor.key() if cursor.last() else b""
            inner = bisect_right(sealed, last, key=key_of)
            cursor.putmulti(sealed[:inner])
            cursor.putmulti(sealed[inner:], append=True)

    def delete(self, key: bytes) -> bool:
        """Delete a row; return whether it existed."""
        return bool(self._txn.delete(key, db=self._db))

    def delete_all(self, keys: Iterable[bytes]) -> None:
        """Delete rows, each of which must exist, in the order of their keys."""
        for key in sorted(keys):
            existed = self.delete(key)
            assert existed, f"table {self.name} has no key {show_key(self.name, key)}"

    def clear(self) -> None:
        """Delete all rows."""
        self._txn.drop(self._db, delete=False)

    def unseal(self, key: bytes, value: bytes) -> bytes:
        """Return the body of a stored value. Raises CorruptStore."""
        body = value[:-CHECKSUM_BYTES]
        if xxh32_digest(key + body, self._seed) != value[-CHECKSUM_BYTES:]:
            self.refuse(key, "the checksum does not match")
        return body

    def refuse(self, key: bytes, reason: str) -> NoReturn:
        """Raise CorruptStore for a row."""
        raise CorruptStore(
            f"table {self.name}, key {show_key(self.name, key)}: {reason}; "
            "restore a backup, or rebuild from the source"
        )


class Keyed(Generic[K]):
    """What every table does by key alone."""

    def __init__(self, raw: RawTable, key: KeyCodec[K]) -> None:
        self.raw, self._key = raw, key

    def count(self) -> int:
        """Return the number of rows."""
        return self.raw.count()

    def delete(self, key: K) -> bool:
        """Delete a row; return whether it existed."""
        return self.raw.delete(self._key.pack(key))

    def delete_all(self, keys: Iterable[K]) -> None:
        """Delete rows, each of which must exist, in the order of their keys."""
        self.raw.delete_all(map(self._key.pack, keys))

    def clear(self) -> None:
        """Delete all rows."""
        self.raw.clear()


class Table(Keyed[K], Generic[K, V]):
    """The rows of a table as keys and values."""

    def __init__(self, raw: RawTable, key: KeyCodec[K], body: BodyCodec[K, V]) -> None:
        super().__init__(raw, key)
        self._pack, self._unpack = body.pack, body.unpack

    def get(self, key: K) -> V | None:
        """Return the value under a key, None if there is none. Raises CorruptStore."""
        body = self.raw.get(self._key.pack(key))
        return None if body is None else self._unpack(key, body)

    def need(self, key: K) -> V:
        """Return the value of a row that must exist. Raises CorruptStore."""
        return self._unpack(key, self.raw.need(self._key.pack(key)))

    def rows(self, start: K | None = None) -> Iterator[tuple[K, V]]:
        """Yield rows in the order of keys, from `start` on. Raises CorruptStore."""
        for raw_key, body in self.raw.rows(b"" if start is None else self._key.pack(start)):
            key = self._key.unpack(raw_key)
            yield key, self._unpack(key, body)

    def rows_back(self, start: K | None = None) -> Iterator[tuple[K, V]]:
        """Yield rows backwards, from `start` (by default the last row). Raises CorruptStore."""
        for raw_key, body in self.raw.rows_back(b"" if start is None else self._key.pack(start)):
            key = self._key.unpack(raw_key)
            yield key, self._unpack(key, body)

    def put(self, key: K, value: V) -> None:
        """Write one row."""
        self.raw.put(self._key.pack(key), self._pack(value))

    def put_all(self, rows: Iterable[tuple[K, V]]) -> None:
        """Write rows, in the order of their keys."""
        self.raw.put_all((self._key.pack(key), self._pack(value)) for key, value in rows)


class PairTable(Keyed[Pair]):
    """A table of pairs of numbers without values, used as an index."""

    def pairs(self, start: Pair | None = None) -> Iterator[Pair]:
        """Yield pairs in the order of keys, from `start` on. Raises CorruptStore."""
        for key, _ in self.raw.rows(b"" if start is None else self._key.pack(start)):
            yield self._key.unpack(key)

    def of(self, first: int, start: int = 0) -> Iterator[int]:
        """Yield the second numbers of the pairs that begin with `first`, from `start` on."""
        for key, _ in self.raw.rows(self._key.pack((first, start)), self._key.pack((first, 0))[:8]):
            yield self._key.unpack(key)[1]

    def add(self, pairs: Iterable[Pair]) -> None:
        """Write pairs, in the order of their keys."""
        self.raw.put_all((self._key.pack(pair), b"") for pair in pairs)

    def shift(self, shift: Shift) -> None:
        """Replace the pairs (before, id) by (after, id), where 0 is no place."""
        left, here = shift.before > 0, shift.after > 0
        self.delete_all(zip(shift.before[left].tolist(), shift.ids[left].tolist(), strict=True))
        self.add(zip(shift.after[here].tolist(), shift.ids[here].tolist(), strict=True))


class ColumnTable(Keyed[int], Generic[C]):
    """Rows by id that are read and written side by side. `pack` and `unpack`: of columns."""

    def __init__(
        self,
        raw: RawTable,
        pack: Callable[[C], list[bytes]],
        unpack: Callable[[Sequence[bytes], Sequence[bytes]], C],
    ) -> None:
        super().__init__(raw, ID)
        self._pack, self._unpack = pack, unpack

    def columns(self) -> C:
        """Return all rows by rising id. Raises CorruptStore."""
        return self._unpack(*self.raw.read())

    def pick(self, ids: Int64) -> C:
        """Return those of these rows that exist, in the order of `ids`. Raises CorruptStore."""
        rows = [(key, body) for key in _pack_ids(ids) if (body := self.raw.get(key)) is not None]
        return self._unpack([key for key, _ in rows], [body for _, body in rows])

    def put_columns(self, columns: C) -> None:
        """Write rows."""
        self.raw.put_all(zip(_pack_ids(columns.ids), self._pack(columns), strict=True))


class ItemTable(ColumnTable[Items]):
    """Items by id."""

    def get(self, number: int) -> Item | None:
        """Return the item of this id, None if there is none. Raises CorruptStore."""
        body = self.raw.get(ID.pack(number))
        return None if body is None else schema.unpack_item(number, body)

    def need(self, number: int) -> Item:
        """Return the item of this id, which must exist. Raises CorruptStore."""
        return schema.unpack_item(number, self.raw.need(ID.pack(number)))


class ListTable(ColumnTable[Lists]):
    """Neighbour lists of level 0 by node id."""

    def pick(self, ids: Int64) -> Lists:
        """Return the lists of these nodes, each of which must exist. Raises CorruptStore."""
        keys = _pack_ids(ids)
        return self._unpack(keys, [self.raw.need(key) for key in keys])


class PlaceTable(Table[int, int]):
    """The level-0 tree of each node."""

    def columns(self) -> tuple[Int64, Int64]:
        """Return node ids, rising, and their trees. Raises CorruptStore."""
        keys, rows = self.raw.read()
        return unpack_ids(keys), np.frombuffer(b"".join(rows), "<u8").astype(np.int64)

    def put_columns(self, ids: Int64, trees: Int64) -> None:
        """Write the trees of nodes."""
        self.raw.put_all(zip(_pack_ids(ids), split_rows(trees.astype("<u8")), strict=True))


class TreeTable(Table[int, tuple[int, ...]]):
    """The path of each level-0 tree: distinct cluster ids, final first."""

    def columns(self) -> tuple[Int64, list[tuple[int, ...]]]:
        """Return trees, rising, and their paths. Raises CorruptStore."""
        keys, rows = self.raw.read()
        ids = unpack_ids(keys)
        return ids, list(map(self._unpack, ids.tolist(), rows))


class ClusterTable(Table[int, Cluster]):
    """Clusters by id, the ended ones too."""

    def living(self) -> Clusters:
        """Return the clusters that have not ended, by rising id. Raises CorruptStore."""
        return schema.unpack_living(*self.raw.read())


class EventTable(Table[EventId, Event]):
    """Events by version and ordinal."""

    def stored(self, start: EventId = (0, 0)) -> Iterator[tuple[EventId, bytes]]:
        """Yield (place, body) from a place on; see `schema.unpack_event`. Raises CorruptStore."""
        for key, body in self.raw.rows(PLACE.pack(start)):
            yield PLACE.unpack(key), body

    def put_version(self, version: int, events: Sequence[Event]) -> int:
        """Write the events of a version; return the bytes of their bodies."""
        rows = list(map(schema.pack_event, events))
        self.raw.put_all((PLACE.pack((version, ordinal)), body) for ordinal, body in enumerate(rows))
        return sum(map(len, rows))


class MetaTable:
    """Store-wide records: configuration, identity, state of the last version, size of the log."""

    def __init__(self, raw: RawTable) -> None:
        self.raw = raw

    @property
    def config(self) -> dict[str, Any] | None:
        """What the stored clusters depend on; None in a store that is just being made."""
        return self._get("config")

    @property
    def identity(self) -> str:
        """The store's random id, kept by copies."""
        return str((self._get("identity") or {}).get("id", ""))

    @property
    def state(self) -> StateRecord:
        """The last version; version 0 before the first commit."""
        json = self._get("state") or {}
        epoch = Epoch(*json.get("epoch", (0.0, 0.0, 0)))
        return StateRecord(json.get("version", 0), json.get("time_ms", 0), epoch, json.get("counters", {}))

    @property
    def log(self) -> LogRecord:
        """The size of the event log, and what it has forgotten."""
        json = self._get("log") or {}
        forgot = json.get("forgot")
        return LogRecord(json.get("bytes", 0), (forgot[0], forgot[1]) if forgot else None)

    def put_config(self, config: Mapping[str, Any]) -> None:
        self._put("config", dict(config))

    def put_identity(self, identity: str) -> None:
        self._put("identity", {"id": identity})

    def put_state(self, state: StateRecord) -> None:
        epoch = [state.epoch.mean, state.epoch.deviation, state.epoch.items]
        self._put("state", {**state._asdict(), "epoch": epoch, "counters": dict(state.counters)})

    def put_log(self, log: LogRecord) -> None:
        self._put("log", log._asdict())

    def _get(self, name: str) -> dict[str, Any] | None:
        body = self.raw.get(name.encode())
        if body is None:
            return None
        value = orjson.loads(body)
        if not isinstance(value, dict):
            self.raw.refuse(name.encode(), "not a JSON object")
        return value

    def _put(self, name: str, value: Mapping[str, Any]) -> None:
        self.raw.put(name.encode(), orjson.dumps(value, option=orjson.OPT_SORT_KEYS))


def _pack_ids(ids: Int64) -> list[bytes]:
    """Encode ids (n,) as n keys of eight bytes."""
    return split_rows(ids.astype(">u8"))


def _vectors(raw: RawTable) -> ColumnTable[Vectors]:
    """Make a table of vectors, (d,) int16 each, by the id of a node (distinct ones) or an item (incoming)."""

    def unpack(keys: Sequence[bytes], rows: Sequence[bytes]) -> Vectors:
        size = len(rows[0]) if rows else 0
        odd = next((key for key, row in zip(keys, rows, strict=True) if len(row) != size), None)
        if odd is not None:
            raw.refuse(odd, f"its dimension is not that of the others, {size // 2}")
        grid = np.frombuffer(b"".join(rows), "<i2").astype(np.int16)
        return Vectors(unpack_ids(keys), grid.reshape(len(keys), size // 2))

    return ColumnTable(raw, lambda columns: split_rows(columns.vectors.astype("<i2")), unpack)


def _table(name: str, make: Callable[[RawTable], T]) -> cached_property[T]:
    """Declare a table of `Tables`, which is made when it is first used."""
    return cached_property(lambda tables: make(tables.open(name)))


class Tables:
    """All tables of a store, as one transaction sees them."""

    def __init__(self, txn: lmdb.Transaction[bytes], handles: Mapping[str, Any]) -> None:
        self._txn, self._handles = txn, handles

    @cached_property
    def raw(self) -> dict[str, RawTable]:
        """Return the tables in bytes. A store of an earlier release lacks some until a writer opens it."""
        return {name: self.open(name) for name in schema.TABLES if name in self._handles}

    def open(self, name: str) -> RawTable:
        """Return a table in bytes."""
        return RawTable(self._txn, self._handles[name], name)

    meta = _table("meta", MetaTable)
    items = _table("items", lambda raw: ItemTable(raw, schema.pack_items, schema.unpack_items))
    keys = _table("keys", lambda raw: Table(raw, BYTES, schema.NUMBER))
    nodes = _table("nodes", _vectors)
    copies = _table("copies", lambda raw: PairTable(raw, PAIR))
    incoming = _table("incoming", _vectors)  # by item id
    lists = _table("lists", lambda raw: ListTable(raw, schema.pack_lists, schema.unpack_lists))
    places = _table("places", lambda raw: PlaceTable(raw, ID, schema.NUMBER))
    members = _table("members", lambda raw: PairTable(raw, PAIR))
    trees = _table("trees", lambda raw: TreeTable(raw, ID, schema.PATH))
    cluster_trees = _table("cluster_trees", lambda raw: PairTable(raw, PAIR))
    clusters = _table("clusters", lambda raw: ClusterTable(raw, ID, schema.CLUSTER))
    sizes = _table("sizes", lambda raw: PairTable(raw, SIZE))
    endings = _table("endings", lambda raw: PairTable(raw, PAIR))
    commits = _table("commits", lambda raw: Table(raw, ID, schema.COMMIT))
    events = _table("events", lambda raw: EventTable(raw, PLACE, schema.EVENT))
    positions = _table("positions", lambda raw: Table(raw, TEXT, schema.RAW))
