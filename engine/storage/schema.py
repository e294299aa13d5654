"""The on-disk format: the bytes of keys and values of every table, in one LMDB environment.

Integers in keys are unsigned and big-endian, so that LMDB's order is numeric; in values they are
little-endian. Every value ends with a checksum: `body + xxh32(key + body, seed = number of the
table)`, four bytes, big-endian. A mismatch raises `CorruptStore`.

| table | key | body |
|---|---|---|
| meta | name | `config`, `state`, `log`, `identity`: JSON (see `tables.MetaTable`) |
| items | item u64 | time i64, version i64, node u64, key length u16; key; payload |
| keys | key (1-511 bytes) | item u64 |
| lists | node u64 | ids, low part u32 x w; ids, high part u16 x w; dots i32 x w. All ones: no neighbour |
| places | node u64 | level-0 tree u64 |
| members | tree u64, node u64 | none |
| trees | tree u64 | cluster u64 x 1..levels: the distinct ids of the path, final first |
| cluster_trees | cluster u64, tree u64 | none |
| clusters | cluster u64 | size, finest, coarsest, peak, parent, born, changed, ended u64; into u64 x n |
| sizes | 2^64 - 1 - size u64, cluster u64 | none; the living final clusters, largest first |
| endings | version u64, cluster u64 | none; the ended clusters that the log still records |
| commits | version u64 | time i64, events u64, bytes of their bodies u64 |
| events | version u64, ordinal u32 | JSON without what key and configuration imply; see `pack_event` |
| positions | source (UTF-8) | the next position |
| nodes | node u64 | vector i16 x d; identical vectors are one node |
| copies | node u64, item u64 | none; the items that have the node's vector |
| incoming | item u64 | vector i16 x d, as it came in; only with an adapter, whose results `nodes` then has |

`items`, `keys`, `nodes`, `copies`, `incoming` and `positions` are the input; `lists` depends on history (an
approximate index search does); `places`, `members`, `trees` and `cluster_trees` follow from them and are
rewritten by a rebuild. A cluster's peak is a node; people see the key of its oldest item.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from engine.errors import ConfigMismatch
from engine.events import EventId
from engine.types import (
    Assignment,
    Cluster,
    Clusters,
    DeadLetter,
    Epoch,
    Erased,
    Event,
    Int64,
    Item,
    Items,
    LineageEvent,
    Lists,
)

FORMAT = 2
REBUILT_FROM = 1  # stores of this format are brought over by a rebuild, see `engine.storage.upgrade`
TABLES = (
    "meta",
    "items",
    "keys",
    "lists",
    "places",
    "members",
    "trees",
    "cluster_trees",
    "clusters",
    "sizes",
    "endings",
    "commits",
    "events",
    "positions",
    "nodes",
    "copies",
    "incoming",
)
ADDED = ("nodes", "copies", "incoming")  # not in stores of earlier releases, until a writer opens them
SEEDS = {table: number for number, table in enumerate(TABLES, 1)}
CHECKSUM_BYTES = 4

Row = tuple[bytes, bytes]
Pair = tuple[int, int]
K = TypeVar("K")
V = TypeVar("V")

_U64, _PAIR, _EVENT = struct.Struct(">Q"), struct.Struct(">QQ"), struct.Struct(">QI")
_TOP = 2**64 - 1
_ITEM = struct.Struct("<qqQH")  # the head of an item; key and payload follow
_ITEMS = np.dtype([("time", "<i8"), ("version", "<i8"), ("node", "<u8"), ("key", "<u2")])  # the same
_COMMIT = struct.Struct("<qQQ")
_CLUSTER = 8 * 8  # bytes; `into` follows


class StateRecord(NamedTuple):
    """The last committed version."""

    version: int  # 0: nothing was committed yet
    time_ms: int  # of the commit
    epoch: Epoch
    counters: Mapping[str, int]

    @property
    def levels(self) -> int:
        return int(self.counters.get("levels", 1))


class LogRecord(NamedTuple):
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


def require_format(path: Path, config: Mapping[str, Any]) -> None:
    """Raise ConfigMismatch if this release cannot read a store with that configuration."""
    found = config.get("format")
    if found == REBUILT_FROM:
        raise ConfigMismatch(
            f"{path} was made by an earlier release (format {found}); run `shoal rebuild` once to upgrade it"
        )
    if found != FORMAT:
        raise ConfigMismatch(
            f"{path} has format {found}, this release reads {FORMAT}; "
            "use the release that made it, or ingest the data into a new store"
        )


@dataclass(frozen=True, slots=True)
class KeyCodec(Generic[K]):
    """How the keys of a table are written and read."""

    pack: Callable[[K], bytes]
    unpack: Callable[[bytes], K]


@dataclass(frozen=True, slots=True)
class BodyCodec(Generic[K, V]):
    """How the bodies of a table that is no column are written and read."""

    pack: Callable[[V], bytes]
    unpack: Callable[[K, bytes], V]


def _read_size(key: bytes) -> Pair:
    rest, cluster = _PAIR.unpack(key)
    return _TOP - rest, cluster


ID: KeyCodec[int] = KeyCodec(_U64.pack, lambda key: _U64.unpack(key)[0])
PAIR: KeyCodec[Pair] = KeyCodec(lambda pair: _PAIR.pack(*pair), _PAIR.unpack)
SIZE: KeyCodec[Pair] = KeyCodec(lambda pair: _PAIR.pack(_TOP - pair[0], pair[1]), _read_size)  # largest first
PLACE: KeyCodec[EventId] = KeyCodec(lambda place: _EVENT.pack(*place), _EVENT.unpack)
BYTES: KeyCodec[bytes] = KeyCodec(bytes, bytes)
TEXT: KeyCodec[str] = KeyCodec(str.encode, bytes.decode)


def show_key(table: str, key: bytes) -> str:
    """Return a key for messages: its numbers where the table has numbers."""
    if table in ("meta", "keys", "positions"):
        return repr(key.decode(errors="backslashreplace"))
    layout = {8: _U64, 12: _EVENT, 16: _PAIR}.get(len(key))
    return key.hex() if layout is None else "/".join(map(str, layout.unpack(key)))


# --- the bodies of rows, as columns: tables that are loaded as a whole or written by the batch ----


def unpack_item(number: int, body: bytes) -> Item:
    """Decode a body of the table items; `number`: the row's key, an item id."""
    time, version, node, length = _ITEM.unpack_from(body)
    end = _ITEM.size + length
    return Item(number, body[_ITEM.size : end], node, time, body[end:], version)


def pack_items(columns: Items) -> list[bytes]:
    """Encode n items; return n bodies in the order of the columns."""
    head = np.zeros(len(columns.ids), _ITEMS)
    head["time"], head["version"], head["node"] = columns.times, columns.versions, columns.nodes
    head["key"] = [len(key) for key in columns.keys]
    return list(map(b"".join, zip(split_rows(head), columns.keys, columns.payloads, strict=True)))


def unpack_items(keys: Sequence[bytes], bodies: Sequence[bytes]) -> Items:
    """Decode n rows of the table items into columns, in the order of the rows."""
    start = _ITEMS.itemsize
    head = np.frombuffer(b"".join([body[:start] for body in bodies]), _ITEMS)
    ends = (start + head["key"].astype(np.int64)).tolist()
    return Items(
        unpack_ids(keys),
        [body[start:end] for body, end in zip(bodies, ends, strict=True)],
        head["node"].astype(np.int64),
        head["time"].astype(np.int64),
        [body[end:] for body, end in zip(bodies, ends, strict=True)],
        head["version"].astype(np.int64),
    )


def pack_lists(columns: Lists) -> list[bytes]:
    """Encode neighbour lists: 160 bytes for sixteen neighbours."""
    row = np.zeros(len(columns.ids), _list(columns.neighbors.shape[1]))
    row["low"] = columns.neighbors & 0xFFFFFFFF
    row["high"] = (columns.neighbors >> 32) & 0xFFFF
    row["dot"] = columns.dots
    return split_rows(row)


def unpack_lists(keys: Sequence[bytes], bodies: Sequence[bytes]) -> Lists:
    """Return lists in the order of their rows, all as wide as the widest."""
    ids = unpack_ids(keys)
    sizes = np.array([len(body) for body in bodies], np.int64)
    width = int(sizes.max(initial=0)) // 10
    neighbors = np.full((len(ids), width), -1, np.int64)
    dots = np.zeros((len(ids), width), np.int32)
    for size in np.unique(sizes).tolist():
        rows, w = np.flatnonzero(sizes == size), size // 10
        block = np.frombuffer(b"".join([bodies[i] for i in rows.tolist()]), _list(w))
        listed = block["low"].astype(np.int64) | (block["high"].astype(np.int64) << 32)
        listed[listed == 2**48 - 1] = -1
        neighbors[rows, :w] = listed
        dots[rows, :w] = block["dot"]
    return Lists(ids, neighbors, dots)


def _list(width: int) -> np.dtype[np.void]:
    return np.dtype([("low", "<u4", (width,)), ("high", "<u2", (width,)), ("dot", "<i4", (width,))])


def unpack_living(keys: Sequence[bytes], bodies: Sequence[bytes]) -> Clusters:
    """Return the clusters that have not ended."""
    columns = np.frombuffer(b"".join([body[:_CLUSTER] for body in bodies]), "<u8").reshape(-1, 8)
    living = columns[:, 7] == 0
    table = Clusters(unpack_ids(keys)[living], *columns[living, :7].T.astype(np.int64))
    assert len(fields(table)) == 8
    return table


def unpack_ids(keys: Sequence[bytes]) -> Int64:
    """Decode keys of eight bytes."""
    return np.frombuffer(b"".join(keys), ">u8").astype(np.int64)


def split_rows(rows: NDArray[Any]) -> list[bytes]:
    """Return the bytes of each row of an array."""
    rows = np.ascontiguousarray(rows)
    if not len(rows):
        return []
    raw: list[bytes] = rows.view(f"V{rows.nbytes // len(rows)}").reshape(-1).tolist()
    return raw


# --- the bodies of rows, one by one -------------------------------------------------------------


def pack_cluster(value: Cluster) -> bytes:
    """Encode a cluster as little-endian 64-bit numbers: eight, then those of `into`."""
    numbers = (value.size, value.finest, value.coarsest, value.peak)
    times = (value.parent, value.born, value.changed, value.ended)
    return struct.pack(f"<{8 + len(value.into)}Q", *numbers, *times, *value.into)


def unpack_cluster(number: int, body: bytes) -> Cluster:
    """Decode what `pack_cluster` encoded; `number`: the row's key, a cluster id."""
    numbers = struct.unpack(f"<{len(body) // 8}Q", body)
    size, finest, coarsest, peak, parent, born, changed, ended, *into = numbers
    return Cluster(number, size, finest, coarsest, peak, parent, born, changed, ended, tuple(into))


def pack_event(event: Event) -> bytes:
    """Encode an event: an assignment as four values, a lineage event as five, an erased one as none.

    A dead letter is an object with raw bytes behind it.
    """
    if isinstance(event, Assignment):
        return orjson.dumps([event.key.decode(), event.cluster, event.previous, event.path])
    if isinstance(event, LineageEvent):
        return orjson.dumps([event.event, event.cluster, event.size, event.sources, event.into])
    if isinstance(event, Erased):
        return b"[]"
    head = {
        "reason": event.reason,
        "origin": event.origin,
        "key": None if event.key is None else len(event.key),
        "value": None if event.value is None else len(event.value),
        "headers": [[name, value.hex()] for name, value in event.headers],
    }
    return orjson.dumps(head) + b"\n" + (event.key or b"") + (event.value or b"")


def unpack_event(body: bytes) -> Event:
    """Decode what `pack_event` encoded."""
    if body.startswith(b"{"):
        return _unpack_dead_letter(body)
    parts = orjson.loads(body)
    if not parts:
        return Erased()
    if len(parts) == 4:
        name, cluster, previous, path = parts
        return Assignment(name.encode(), cluster, previous, tuple(path))
    kind, cluster, size, sources, into = parts
    return LineageEvent(kind, cluster, size, tuple(sources), tuple(into))


def _unpack_dead_letter(body: bytes) -> DeadLetter:
    end = body.index(b"\n")
    head = orjson.loads(body[:end])
    middle = end + 1 + (head["key"] or 0)
    return DeadLetter(
        head["reason"],
        head["origin"],
        None if head["key"] is None else body[end + 1 : middle],
        None if head["value"] is None else body[middle:],
        [(name, bytes.fromhex(value)) for name, value in head["headers"]],
    )


RAW: BodyCodec[Any, bytes] = BodyCodec(bytes, lambda _, body: body)
NUMBER: BodyCodec[Any, int] = BodyCodec(
    lambda value: value.to_bytes(8, "little"), lambda _, body: int.from_bytes(body, "little")
)
PATH: BodyCodec[int, tuple[int, ...]] = BodyCodec(
    lambda path: struct.pack(f"<{len(path)}Q", *path),
    lambda _, body: struct.unpack(f"<{len(body) // 8}Q", body),
)
CLUSTER = BodyCodec(pack_cluster, unpack_cluster)
COMMIT: BodyCodec[int, Commit] = BodyCodec(
    lambda commit: _COMMIT.pack(*commit[1:]), lambda version, body: Commit(version, *_COMMIT.unpack(body))
)
EVENT: BodyCodec[Any, Event] = BodyCodec(pack_event, lambda _, body: unpack_event(body))
