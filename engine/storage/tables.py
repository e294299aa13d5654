"""The tables of a store within one transaction, each with the types of its keys and values.

Tables that are loaded as a whole or written by the batch also take and give columns (`Items`, `Lists`,
`Clusters`, arrays).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import lmdb
import numpy as np

from engine.events import EventId
from engine.storage import codecs, schema
from engine.storage.codecs import LogRecord, StateRecord
from engine.storage.table import PairTable, RawTable, Table
from engine.types import Cluster, Clusters, Event, Int16, Int64, Item, Items, Lists, Vectors

T = TypeVar("T")


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
        return StateRecord.of(self._get("state") or {})

    @property
    def log(self) -> LogRecord:
        """The size of the event log, and what it has forgotten."""
        return LogRecord.of(self._get("log") or {})

    def put_config(self, config: Mapping[str, Any]) -> None:
        self._put("config", dict(config))

    def put_identity(self, identity: str) -> None:
        self._put("identity", {"id": identity})

    def put_state(self, state: StateRecord) -> None:
        self._put("state", state.as_json())

    def put_log(self, log: LogRecord) -> None:
        self._put("log", log.as_json())

    def _get(self, name: str) -> dict[str, Any] | None:
        body = self.raw.get(name.encode())
        return None if body is None else schema.load_json("meta", name.encode(), body)

    def _put(self, name: str, value: Mapping[str, Any]) -> None:
        self.raw.put(name.encode(), schema.dump_json(value))


class ItemTable(Table[int, Item]):
    """Items by id."""

    def columns(self) -> Items:
        """Return all items by rising id. Raises CorruptStore."""
        return schema.read_items(*self.raw.read())

    def pick(self, ids: Int64) -> Items:
        """Return those of these items that exist, in the order of `ids`. Raises CorruptStore."""
        return schema.read_items(*self.raw.pick(schema.u64_keys(ids)))

    def put_columns(self, items: Items) -> None:
        """Write items, in the order of their ids."""
        keys, bodies, order = schema.u64_keys(items.ids), schema.item_bodies(items), np.argsort(items.ids)
        self.raw.put_sorted([keys[i] for i in order.tolist()], [bodies[i] for i in order.tolist()])


class VectorTable(Table[int, Int16]):
    """Vectors, (d,) int16 each, by the id of a node (distinct ones) or of an item (incoming ones)."""

    def columns(self) -> Vectors:
        """Return all vectors by rising id. Raises CorruptStore."""
        return schema.read_vectors(*self.raw.read())

    def pick(self, ids: Int64) -> Vectors:
        """Return those of these that exist, in the order of `ids`. Raises CorruptStore."""
        return schema.read_vectors(*self.raw.pick(schema.u64_keys(ids)))

    def put_columns(self, vectors: Vectors) -> None:
        """Write vectors, in the order of their ids."""
        order = np.argsort(vectors.ids)
        self.raw.put_sorted(schema.u64_keys(vectors.ids[order]), schema.vector_bodies(vectors.vectors[order]))


class ListTable(Table[int, Lists]):
    """Neighbour lists of level 0 by node id; the value is a single row of `Lists`."""

    def columns(self) -> Lists:
        """Return all lists by rising node id. Raises CorruptStore."""
        return schema.read_lists(*self.raw.read())

    def pick(self, ids: Int64) -> Lists:
        """Return the lists of these nodes, each of which must exist. Raises CorruptStore."""
        keys = schema.u64_keys(ids)
        return schema.read_lists(keys, [self.raw.need(key) for key in keys])

    def put_columns(self, lists: Lists) -> None:
        """Write lists, in the order of their ids."""
        order = np.argsort(lists.ids)
        ordered = Lists(lists.ids[order], lists.neighbors[order], lists.dots[order])
        self.raw.put_sorted(schema.u64_keys(ordered.ids), schema.list_bodies(ordered))


class PlaceTable(Table[int, int]):
    """The level-0 tree of each node."""

    def columns(self) -> tuple[Int64, Int64]:
        """Return node ids, rising, and their trees. Raises CorruptStore."""
        keys, bodies = self.raw.read()
        return schema.read_u64_keys(keys), schema.read_numbers(bodies)

    def put_columns(self, ids: Int64, trees: Int64) -> None:
        """Write the trees of nodes. `ids` rise."""
        self.raw.put_sorted(schema.u64_keys(ids), schema.number_bodies(trees))


class TreeTable(Table[int, tuple[int, ...]]):
    """The path of each level-0 tree: distinct cluster ids, final first."""

    def columns(self) -> tuple[Int64, list[tuple[int, ...]]]:
        """Return trees, rising, and their paths. Raises CorruptStore."""
        keys, bodies = self.raw.read()
        return schema.read_u64_keys(keys), list(map(schema.read_ids, bodies))


class ClusterTable(Table[int, Cluster]):
    """Clusters by id, the ended ones too."""

    def living(self) -> Clusters:
        """Return the clusters that have not ended, by rising id. Raises CorruptStore."""
        return schema.read_living(*self.raw.read())


class EventTable(Table[EventId, Event]):
    """Events by version and ordinal."""

    def stored(self, start: EventId = (0, 0)) -> Iterator[tuple[EventId, bytes]]:
        """Yield (place, body) from a place on; see `schema.event_body`. Raises CorruptStore."""
        for key, body in self.raw.rows(schema.event_key(*start)):
            yield schema.read_event_key(key), body

    def put_version(self, version: int, events: Sequence[Event]) -> int:
        """Write the events of a version; return the bytes of their bodies."""
        keys = [schema.event_key(version, ordinal) for ordinal in range(len(events))]
        bodies = list(map(schema.event_body, events))
        self.raw.put_sorted(keys, bodies)
        return sum(map(len, bodies))


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
    items = _table("items", lambda raw: ItemTable(raw, codecs.ID, codecs.ITEM))
    keys = _table("keys", lambda raw: Table(raw, codecs.BYTES, codecs.NUMBER))
    nodes = _table("nodes", lambda raw: VectorTable(raw, codecs.ID, codecs.VECTOR))
    copies = _table("copies", lambda raw: PairTable(raw, codecs.PAIR))
    incoming = _table("incoming", lambda raw: VectorTable(raw, codecs.ID, codecs.VECTOR))  # by item id
    lists = _table("lists", lambda raw: ListTable(raw, codecs.ID, codecs.LIST))
    places = _table("places", lambda raw: PlaceTable(raw, codecs.ID, codecs.NUMBER))
    members = _table("members", lambda raw: PairTable(raw, codecs.PAIR))
    trees = _table("trees", lambda raw: TreeTable(raw, codecs.ID, codecs.IDS))
    cluster_trees = _table("cluster_trees", lambda raw: PairTable(raw, codecs.PAIR))
    clusters = _table("clusters", lambda raw: ClusterTable(raw, codecs.ID, codecs.CLUSTER))
    sizes = _table("sizes", lambda raw: PairTable(raw, codecs.SIZE))
    endings = _table("endings", lambda raw: PairTable(raw, codecs.PAIR))
    commits = _table("commits", lambda raw: Table(raw, codecs.ID, codecs.COMMIT))
    events = _table("events", lambda raw: EventTable(raw, codecs.PLACE, codecs.EVENT))
    positions = _table("positions", lambda raw: Table(raw, codecs.TEXT, codecs.RAW))
