"""The tables of a store within one transaction, each with the encoding of its rows; see `schema`.

Tables that are loaded as a whole or written by the batch take and give columns (`Items`, `Lists`, `Clusters`,
arrays).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import lmdb
import numpy as np
import orjson

from engine.events import EventId
from engine.storage import event_body, schema
from engine.storage.schema import BYTES, ID, PAIR, PLACE, SIZE, TEXT, K
from engine.storage.table import ColumnTable, PairTable, RawTable, Table, pack_ids, split_rows, unpack_ids
from engine.types import Cluster, Clusters, Epoch, Event, Int64, Item, Items, Lists, Vectors

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StateRecord:
    """The last committed version."""

    version: int  # 0: nothing was committed yet
    time_ms: int  # of the commit
    epoch: Epoch
    counters: Mapping[str, int]

    @property
    def levels(self) -> int:
        return int(self.counters.get("levels", 1))


@dataclass(frozen=True, slots=True)
class LogRecord:
    """The event log as a whole."""

    bytes: int  # of the bodies of its events
    forgot: EventId | None  # the last event that was forgotten


class Commit(NamedTuple):
    """A version in the event log."""

    version: int
    time_ms: int
    events: int
    bytes: int  # of their bodies

    @property
    def last(self) -> EventId:
        """The place of its last event; the next version is behind it."""
        return self.version, max(self.events - 1, 0)


class MetaTable:
    """What holds of the whole store: configuration, identity, state of the last version, size of the log."""

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
        counters = dict(state.counters)
        json = {"version": state.version, "time_ms": state.time_ms, "epoch": epoch, "counters": counters}
        self._put("state", json)

    def put_log(self, log: LogRecord) -> None:
        self._put("log", {"bytes": log.bytes, "forgot": log.forgot})

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


class ItemTable(ColumnTable[Items]):
    """Items by id: a head of fixed length, key, payload."""

    _HEAD = struct.Struct("<qqQH")
    _HEADS = np.dtype([("time", "<i8"), ("version", "<i8"), ("node", "<u8"), ("key", "<u2")])  # the same

    def get(self, number: int) -> Item | None:
        """Return the item of this id, None if there is none. Raises CorruptStore."""
        body = self.raw.get(ID.pack(number))
        return None if body is None else self._item(number, body)

    def need(self, number: int) -> Item:
        """Return the item of this id, which must exist. Raises CorruptStore."""
        return self._item(number, self.raw.need(ID.pack(number)))

    def _item(self, number: int, body: bytes) -> Item:
        time, version, node, length = self._HEAD.unpack_from(body)
        start = self._HEAD.size
        end = start + length
        return Item(number, body[start:end], node, time, body[end:], version)

    def pack(self, columns: Items) -> list[bytes]:
        head = np.zeros(len(columns.ids), self._HEADS)
        head["time"], head["version"], head["node"] = columns.times, columns.versions, columns.nodes
        head["key"] = [len(key) for key in columns.keys]
        return list(map(b"".join, zip(split_rows(head), columns.keys, columns.payloads, strict=True)))

    def unpack(self, keys: Sequence[bytes], bodies: Sequence[bytes]) -> Items:
        start = self._HEADS.itemsize
        head = np.frombuffer(b"".join([body[:start] for body in bodies]), self._HEADS)
        ends = (start + head["key"].astype(np.int64)).tolist()
        return Items(
            unpack_ids(keys),
            [body[start:end] for body, end in zip(bodies, ends, strict=True)],
            head["node"].astype(np.int64),
            head["time"].astype(np.int64),
            [body[end:] for body, end in zip(bodies, ends, strict=True)],
            head["version"].astype(np.int64),
        )


class VectorTable(ColumnTable[Vectors]):
    """Vectors, (d,) int16 each, by the id of a node (distinct ones) or of an item (incoming ones)."""

    def pack(self, columns: Vectors) -> list[bytes]:
        return split_rows(columns.vectors.astype("<i2"))

    def unpack(self, keys: Sequence[bytes], bodies: Sequence[bytes]) -> Vectors:
        size = len(bodies[0]) if bodies else 0
        odd = next((key for key, body in zip(keys, bodies, strict=True) if len(body) != size), None)
        if odd is not None:
            self.raw.refuse(odd, f"its dimension is not that of the others, {size // 2}")
        grid = np.frombuffer(b"".join(bodies), "<i2").astype(np.int16)
        return Vectors(unpack_ids(keys), grid.reshape(len(keys), size // 2))


class ListTable(ColumnTable[Lists]):
    """Neighbour lists of level 0 by node id: 160 bytes for sixteen neighbours."""

    def pick(self, ids: Int64) -> Lists:
        """Return the lists of these nodes, each of which must exist. Raises CorruptStore."""
        keys = pack_ids(ids)
        return self.unpack(keys, [self.raw.need(key) for key in keys])

    def pack(self, columns: Lists) -> list[bytes]:
        row = np.zeros(len(columns.ids), self._layout(columns.neighbors.shape[1]))
        row["low"] = columns.neighbors & 0xFFFFFFFF
        row["high"] = (columns.neighbors >> 32) & 0xFFFF
        row["dot"] = columns.dots
        return split_rows(row)

    def unpack(self, keys: Sequence[bytes], bodies: Sequence[bytes]) -> Lists:
        """Return lists in the order of their rows, all as wide as the widest."""
        ids = unpack_ids(keys)
        sizes = np.array([len(body) for body in bodies], np.int64)
        width = int(sizes.max(initial=0)) // 10
        neighbors = np.full((len(ids), width), -1, np.int64)
        dots = np.zeros((len(ids), width), np.int32)
        for size in np.unique(sizes).tolist():
            rows, w = np.flatnonzero(sizes == size), size // 10
            block = np.frombuffer(b"".join([bodies[i] for i in rows.tolist()]), self._layout(w))
            listed = block["low"].astype(np.int64) | (block["high"].astype(np.int64) << 32)
            listed[listed == 2**48 - 1] = -1
            neighbors[rows, :w] = listed
            dots[rows, :w] = block["dot"]
        return Lists(ids, neighbors, dots)

    @staticmethod
    def _layout(width: int) -> np.dtype[np.void]:
        return np.dtype([("low", "<u4", (width,)), ("high", "<u2", (width,)), ("dot", "<i4", (width,))])


class NumberTable(Table[K, int]):
    """A number by key."""

    def pack(self, value: int) -> bytes:
        return value.to_bytes(8, "little")

    def unpack(self, key: bytes, body: bytes) -> int:
        return int.from_bytes(body, "little")


class PlaceTable(NumberTable[int]):
    """The level-0 tree of each node."""

    def columns(self) -> tuple[Int64, Int64]:
        """Return node ids, rising, and their trees. Raises CorruptStore."""
        keys, bodies = self.raw.read()
        return unpack_ids(keys), np.frombuffer(b"".join(bodies), "<u8").astype(np.int64)

    def put_columns(self, ids: Int64, trees: Int64) -> None:
        """Write the trees of nodes."""
        self.raw.put_all(zip(pack_ids(ids), split_rows(trees.astype("<u8")), strict=True))


class TreeTable(Table[int, tuple[int, ...]]):
    """The path of each level-0 tree: distinct cluster ids, final first."""

    def pack(self, value: tuple[int, ...]) -> bytes:
        return struct.pack(f"<{len(value)}Q", *value)

    def unpack(self, key: bytes, body: bytes) -> tuple[int, ...]:
        return struct.unpack(f"<{len(body) // 8}Q", body)

    def columns(self) -> tuple[Int64, list[tuple[int, ...]]]:
        """Return trees, rising, and their paths. Raises CorruptStore."""
        keys, bodies = self.raw.read()
        return unpack_ids(keys), list(map(self.unpack, keys, bodies))


class ClusterTable(Table[int, Cluster]):
    """Clusters by id, the ended ones too."""

    _HEAD = 8 * 8  # bytes; `into` follows

    def pack(self, value: Cluster) -> bytes:
        numbers = (value.size, value.finest, value.coarsest, value.peak)
        times = (value.parent, value.born, value.changed, value.ended)
        return struct.pack(f"<{8 + len(value.into)}Q", *numbers, *times, *value.into)

    def unpack(self, key: bytes, body: bytes) -> Cluster:
        number, numbers = ID.unpack(key), struct.unpack(f"<{len(body) // 8}Q", body)
        size, finest, coarsest, peak, parent, born, changed, ended, *into = numbers
        return Cluster(number, size, finest, coarsest, peak, parent, born, changed, ended, tuple(into))

    def living(self) -> Clusters:
        """Return the clusters that have not ended, by rising id. Raises CorruptStore."""
        keys, bodies = self.raw.read()
        columns = np.frombuffer(b"".join([body[: self._HEAD] for body in bodies]), "<u8").reshape(-1, 8)
        living = columns[:, 7] == 0
        table = Clusters(unpack_ids(keys)[living], *columns[living, :7].T.astype(np.int64))
        assert len(fields(table)) == 8
        return table


class CommitTable(Table[int, Commit]):
    """What the event log knows of each version."""

    _BODY = struct.Struct("<qQQ")

    def pack(self, value: Commit) -> bytes:
        return self._BODY.pack(*value[1:])

    def unpack(self, key: bytes, body: bytes) -> Commit:
        return Commit(ID.unpack(key), *self._BODY.unpack(body))


class EventTable(Table[EventId, Event]):
    """Events by version and ordinal."""

    def pack(self, value: Event) -> bytes:
        return event_body.pack(value)

    def unpack(self, key: bytes, body: bytes) -> Event:
        return event_body.unpack(body)

    def stored(self, start: EventId = (0, 0)) -> Iterator[tuple[EventId, bytes]]:
        """Yield (place, body) from a place on; see `event_body`. Raises CorruptStore."""
        for key, body in self.raw.rows(PLACE.pack(start)):
            yield PLACE.unpack(key), body

    def put_version(self, version: int, events: Sequence[Event]) -> int:
        """Write the events of a version; return the bytes of their bodies."""
        bodies = list(map(event_body.pack, events))
        self.raw.put_all((PLACE.pack((version, ordinal)), body) for ordinal, body in enumerate(bodies))
        return sum(map(len, bodies))


class PositionTable(Table[str, bytes]):
    """The next position of each source."""

    def pack(self, value: bytes) -> bytes:
        return value

    def unpack(self, key: bytes, body: bytes) -> bytes:
        return body


def _table(name: str, make: Callable[[RawTable], T]) -> cached_property[T]:
    """Declare a table of `Tables`, which is made when it is first used."""
    return cached_property(lambda tables: make(tables.open(name)))


class Tables:
    """All tables of a store, as one transaction sees them."""

    def __init__(self, txn: lmdb.Transaction[bytes], handles: Mapping[str, Any]) -> None:
        self._txn, self._handles = txn, handles

    @cached_property
    def raw(self) -> dict[str, RawTable]:
        """The tables in bytes. A store of an earlier release lacks some until a writer opens it."""
        return {name: self.open(name) for name in schema.TABLES if name in self._handles}

    def open(self, name: str) -> RawTable:
        """Return a table in bytes."""
        return RawTable(self._txn, self._handles[name], name)

    meta = _table("meta", MetaTable)
    items = _table("items", lambda raw: ItemTable(raw, ID))
    keys = _table("keys", lambda raw: NumberTable(raw, BYTES))
    nodes = _table("nodes", lambda raw: VectorTable(raw, ID))
    copies = _table("copies", lambda raw: PairTable(raw, PAIR))
    incoming = _table("incoming", lambda raw: VectorTable(raw, ID))  # by item id
    lists = _table("lists", lambda raw: ListTable(raw, ID))
    places = _table("places", lambda raw: PlaceTable(raw, ID))
    members = _table("members", lambda raw: PairTable(raw, PAIR))
    trees = _table("trees", lambda raw: TreeTable(raw, ID))
    cluster_trees = _table("cluster_trees", lambda raw: PairTable(raw, PAIR))
    clusters = _table("clusters", lambda raw: ClusterTable(raw, ID))
    sizes = _table("sizes", lambda raw: PairTable(raw, SIZE))
    endings = _table("endings", lambda raw: PairTable(raw, PAIR))
    commits = _table("commits", lambda raw: CommitTable(raw, ID))
    events = _table("events", lambda raw: EventTable(raw, PLACE))
    positions = _table("positions", lambda raw: PositionTable(raw, TEXT))
