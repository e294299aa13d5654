"""The larger bodies of a store's rows, as `schema` lays them out: from Python objects to bytes and back.

Tables that are loaded as a whole or written by the batch are packed as columns. Events are JSON without what
key and configuration imply.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from engine.storage.schema import Commit, K
from engine.types import (
    Assignment,
    Cluster,
    Clusters,
    DeadLetter,
    Erased,
    Event,
    Int64,
    Item,
    Items,
    LineageEvent,
    Lists,
)

V = TypeVar("V")
_ITEM = struct.Struct("<qqQH")  # the head of an item; key and payload follow
_ITEMS = np.dtype([("time", "<i8"), ("version", "<i8"), ("node", "<u8"), ("key", "<u2")])  # the same
_COMMIT = struct.Struct("<qQQ")
_CLUSTER = 8 * 8  # bytes; `into` follows


def unpack_item(number: int, body: bytes) -> Item:
    time, version, node, length = _ITEM.unpack_from(body)
    end = _ITEM.size + length
    return Item(number, body[_ITEM.size : end], node, time, body[end:], version)


def pack_items(columns: Items) -> list[bytes]:
    head = np.zeros(len(columns.ids), _ITEMS)
    head["time"], head["version"], head["node"] = columns.times, columns.versions, columns.nodes
    head["key"] = [len(key) for key in columns.keys]
    return list(map(b"".join, zip(split_rows(head), columns.keys, columns.payloads, strict=True)))


def unpack_items(keys: Sequence[bytes], bodies: Sequence[bytes]) -> Items:
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


def pack_cluster(value: Cluster) -> bytes:
    numbers = (value.size, value.finest, value.coarsest, value.peak)
    times = (value.parent, value.born, value.changed, value.ended)
    return struct.pack(f"<{8 + len(value.into)}Q", *numbers, *times, *value.into)


def unpack_cluster(number: int, body: bytes) -> Cluster:
    numbers = struct.unpack(f"<{len(body) // 8}Q", body)
    size, finest, coarsest, peak, parent, born, changed, ended, *into = numbers
    return Cluster(number, size, finest, coarsest, peak, parent, born, changed, ended, tuple(into))


def unpack_living(keys: Sequence[bytes], bodies: Sequence[bytes]) -> Clusters:
    """Return the clusters that have not ended."""
    columns = np.frombuffer(b"".join([body[:_CLUSTER] for body in bodies]), "<u8").reshape(-1, 8)
    living = columns[:, 7] == 0
    table = Clusters(unpack_ids(keys)[living], *columns[living, :7].T.astype(np.int64))
    assert len(fields(table)) == 8
    return table


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


@dataclass(frozen=True, slots=True)
class BodyCodec(Generic[K, V]):
    """How the bodies of a table that is no column are written and read."""

    pack: Callable[[V], bytes]
    unpack: Callable[[K, bytes], V]


BYTES: BodyCodec[Any, bytes] = BodyCodec(bytes, lambda _, body: body)
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
