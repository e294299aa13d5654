"""The on-disk format: the bytes of keys and values of every table, in one LMDB environment.

Integers in keys are unsigned and big-endian, so that LMDB's order is numeric; in values they are
little-endian. Every value ends with a checksum: `body + xxh32(key + body, seed = number of the
table)`, four bytes, big-endian. A mismatch raises `CorruptStore`.

| table | key | body |
|---|---|---|
| meta | name | `config`, `state`, `log`, `identity`: JSON (see `Store`) |
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
| events | version u64, ordinal u32 | JSON without what key and configuration imply; see `event_body` |
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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import orjson
from numpy.typing import NDArray
from xxhash import xxh32_digest

from engine.config import LMDB_KEY_MAX_BYTES
from engine.errors import ConfigMismatch, CorruptStore
from engine.events import EventId, EventRow, show_event
from engine.types import (
    Assignment,
    Cluster,
    Clusters,
    DeadLetter,
    Erased,
    Event,
    Int16,
    Int64,
    Item,
    Items,
    LineageEvent,
    Lists,
    Vectors,
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
MAX_KEY_BYTES = LMDB_KEY_MAX_BYTES

Row = tuple[bytes, bytes]

_ITEM = np.dtype([("time", "<i8"), ("version", "<i8"), ("node", "<u8"), ("key", "<u2")])
_ITEM_HEAD = struct.Struct("<qqQH")  # the same
_CLUSTER = struct.Struct("<8Q")
_COMMIT = struct.Struct("<qQQ")
_U64, _PAIR, _EVENT = struct.Struct(">Q"), struct.Struct(">QQ"), struct.Struct(">QI")
_TOP = 2**64 - 1


def require_format(path: Path, config: Mapping[str, Any]) -> None:
    """Raise ConfigMismatch if this release cannot read a store with that configuration."""
    found = config.get("format")
    if found == REBUILT_FROM:
        raise ConfigMismatch(
            f"{path} was made by an earlier release (format {found}); "
            "run `shoal rebuild` once to bring it over"
        )
    if found != FORMAT:
        raise ConfigMismatch(
            f"{path} has format {found}, this release reads {FORMAT}; "
            "use the release that made it, or ingest the data into a new store"
        )


def seal(table: str, key: bytes, body: bytes) -> bytes:
    """Return the value to store for a body: the body and its checksum."""
    return body + xxh32_digest(key + body, SEEDS[table])


def unseal(table: str, key: bytes, value: bytes) -> bytes:
    """Return the body of a stored value. Raises CorruptStore."""
    body = value[:-CHECKSUM_BYTES]
    if xxh32_digest(key + body, SEEDS[table]) != value[-CHECKSUM_BYTES:]:
        corrupt(table, key, "the checksum does not match")
    return body


def seal_rows(table: str, keys: Sequence[bytes], bodies: Iterable[bytes]) -> list[Row]:
    """Return rows with checksums, ready for `putmulti`."""
    seed, digest = SEEDS[table], xxh32_digest
    return [(key, body + digest(key + body, seed)) for key, body in zip(keys, bodies, strict=True)]


def unseal_rows(table: str, rows: Iterable[Row]) -> tuple[list[bytes], list[bytes]]:
    """Return keys and bodies. Raises CorruptStore."""
    seed, digest = SEEDS[table], xxh32_digest
    keys: list[bytes] = []
    bodies: list[bytes] = []
    for key, value in rows:
        body = value[:-CHECKSUM_BYTES]
        if digest(key + body, seed) != value[-CHECKSUM_BYTES:]:
            corrupt(table, key, "the checksum does not match")
        keys.append(key)
        bodies.append(body)
    return keys, bodies


def corrupt(table: str, key: bytes, reason: str) -> NoReturn:
    raise CorruptStore(
        f"table {table}, key {show_key(table, key)}: {reason}; restore a backup, or rebuild from the source"
    )


def show_key(table: str, key: bytes) -> str:
    """Return a key for messages: its numbers where the table has numbers."""
    if table in ("meta", "keys", "positions"):
        return repr(key.decode(errors="backslashreplace"))
    layout = {8: _U64, 12: _EVENT, 16: _PAIR}.get(len(key))
    return key.hex() if layout is None else "/".join(map(str, layout.unpack(key)))


def u64(number: int) -> bytes:
    return _U64.pack(number)


def pair(first: int, second: int) -> bytes:
    return _PAIR.pack(first, second)


def read_u64(key: bytes) -> int:
    return int(_U64.unpack(key)[0])


def read_pair(key: bytes) -> tuple[int, int]:
    first, second = _PAIR.unpack(key)
    return first, second


def u64_keys(ids: Int64) -> list[bytes]:
    """Encode ids (n,) as n keys of eight bytes."""
    return _split(ids.astype(">u8"))


def read_u64_keys(keys: Sequence[bytes]) -> Int64:
    return np.frombuffer(b"".join(keys), ">u8").astype(np.int64)


def _split(rows: NDArray[Any]) -> list[bytes]:
    """Return the bytes of each row of an array."""
    rows = np.ascontiguousarray(rows)
    if not len(rows):
        return []
    raw: list[bytes] = rows.view(f"V{rows.nbytes // len(rows)}").reshape(-1).tolist()
    return raw


def item_bodies(items: Items) -> list[bytes]:
    """Encode items, the fields of fixed length first."""
    head = np.zeros(len(items.ids), _ITEM)
    head["time"], head["version"], head["node"] = items.times, items.versions, items.nodes
    head["key"] = [len(key) for key in items.keys]
    return [b"".join(parts) for parts in zip(_split(head), items.keys, items.payloads, strict=True)]


def read_items(keys: Sequence[bytes], bodies: Sequence[bytes]) -> Items:
    """Decode items in the order of their rows."""
    start = _ITEM.itemsize
    head = np.frombuffer(b"".join([body[:start] for body in bodies]), _ITEM)
    ends = (start + head["key"].astype(np.int64)).tolist()
    return Items(
        read_u64_keys(keys),
        [body[start:end] for body, end in zip(bodies, ends, strict=True)],
        head["node"].astype(np.int64),
        head["time"].astype(np.int64),
        [body[end:] for body, end in zip(bodies, ends, strict=True)],
        head["version"].astype(np.int64),
    )


def item_body(item: Item) -> bytes:
    return _ITEM_HEAD.pack(item.time, item.version, item.node, len(item.key)) + item.key + item.payload


def read_item(key: bytes, body: bytes) -> Item:
    """Decode one item; `read_items` of a single row."""
    time, version, node, length = _ITEM_HEAD.unpack_from(body)
    start = _ITEM_HEAD.size
    end = start + length
    return Item(read_u64(key), body[start:end], node, time, body[end:], version)


def vector_bodies(grid: Int16) -> list[bytes]:
    """Encode vectors (n, d) as n bodies of 2 d bytes."""
    return _split(grid.astype("<i2"))


def read_vectors(keys: Sequence[bytes], bodies: Sequence[bytes]) -> Vectors:
    """Decode vectors in the order of their rows. Raises CorruptStore when dimensions differ."""
    size = len(bodies[0]) if bodies else 0
    odd = next((key for key, body in zip(keys, bodies, strict=True) if len(body) != size), None)
    if odd is not None:
        corrupt("nodes", odd, f"its dimension is not that of the others, {size // 2}")
    grid = np.frombuffer(b"".join(bodies), "<i2").astype(np.int16)
    return Vectors(read_u64_keys(keys), grid.reshape(len(keys), size // 2))


def list_bodies(lists: Lists) -> list[bytes]:
    """Encode lists with 6 bytes an id and 4 a dot: 160 bytes for sixteen neighbours."""
    row = np.zeros(len(lists.ids), _list_layout(lists.neighbors.shape[1]))
    row["low"] = lists.neighbors & 0xFFFFFFFF
    row["high"] = (lists.neighbors >> 32) & 0xFFFF
    row["dot"] = lists.dots
    return _split(row)


def read_lists(keys: Sequence[bytes], bodies: Sequence[bytes]) -> Lists:
    """Decode lists in the order of their rows, all as wide as the widest."""
    ids = read_u64_keys(keys)
    sizes = np.array([len(body) for body in bodies], np.int64)
    width = int(sizes.max(initial=0)) // 10
    neighbors = np.full((len(ids), width), -1, np.int64)
    dots = np.zeros((len(ids), width), np.int32)
    for size in np.unique(sizes).tolist():
        rows, w = np.flatnonzero(sizes == size), size // 10
        block = np.frombuffer(b"".join([bodies[i] for i in rows.tolist()]), _list_layout(w))
        listed = block["low"].astype(np.int64) | (block["high"].astype(np.int64) << 32)
        listed[listed == 2**48 - 1] = -1
        neighbors[rows, :w] = listed
        dots[rows, :w] = block["dot"]
    return Lists(ids, neighbors, dots)


def _list_layout(width: int) -> np.dtype[np.void]:
    return np.dtype([("low", "<u4", (width,)), ("high", "<u2", (width,)), ("dot", "<i4", (width,))])


def number_bodies(numbers: Int64) -> list[bytes]:
    """Encode numbers (n,) as n bodies of one u64."""
    return _split(numbers.astype("<u8"))


def read_numbers(bodies: Sequence[bytes]) -> Int64:
    return np.frombuffer(b"".join(bodies), "<u8").astype(np.int64)


def read_number(body: bytes) -> int:
    return int.from_bytes(body, "little")


def ids_body(ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(ids)}Q", *ids)


def read_ids(body: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(body) // 8}Q", body)


def cluster_body(cluster: Cluster) -> bytes:
    numbers = (cluster.size, cluster.finest, cluster.coarsest, cluster.peak)
    times = (cluster.parent, cluster.born, cluster.changed, cluster.ended)
    return _CLUSTER.pack(*numbers, *times) + ids_body(cluster.into)


def read_cluster(key: bytes, body: bytes) -> Cluster:
    size, finest, coarsest, peak, parent, born, changed, ended = _CLUSTER.unpack_from(body)
    into = read_ids(body[_CLUSTER.size :])
    return Cluster(read_u64(key), size, finest, coarsest, peak, parent, born, changed, ended, into)


def read_living(keys: Sequence[bytes], bodies: Sequence[bytes]) -> Clusters:
    """Decode the clusters that have not ended."""
    columns = np.frombuffer(b"".join([body[: _CLUSTER.size] for body in bodies]), "<u8").reshape(-1, 8)
    living = columns[:, 7] == 0
    ids = read_u64_keys(keys)
    table = Clusters(ids[living], *columns[living, :7].T.astype(np.int64))
    assert len(fields(table)) == 8
    return table


def size_key(size: int, cluster: int) -> bytes:
    return _PAIR.pack(_TOP - size, cluster)


def read_size_key(key: bytes) -> tuple[int, int]:
    rest, cluster = _PAIR.unpack(key)
    return _TOP - rest, cluster


def commit_body(time_ms: int, events: int, size: int) -> bytes:
    return _COMMIT.pack(time_ms, events, size)


def read_commit(body: bytes) -> tuple[int, int, int]:
    """Return the time in ms, the number of events, and the bytes of their bodies."""
    time_ms, events, size = _COMMIT.unpack(body)
    return time_ms, events, size


def event_key(version: int, ordinal: int) -> bytes:
    return _EVENT.pack(version, ordinal)


def read_event_key(key: bytes) -> EventId:
    """Return (version, ordinal)."""
    version, ordinal = _EVENT.unpack(key)
    return version, ordinal


def event_body(event: Event) -> bytes:
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


def parse_event(body: bytes) -> Event:
    """Decode what `event_body` encoded."""
    if body.startswith(b"{"):
        return _parse_dead_letter(body)
    parts = orjson.loads(body)
    if not parts:
        return Erased()
    if len(parts) == 4:
        name, cluster, previous, path = parts
        return Assignment(name.encode(), cluster, previous, tuple(path))
    kind, cluster, size, sources, into = parts
    return LineageEvent(kind, cluster, size, tuple(sources), tuple(into))


def _parse_dead_letter(body: bytes) -> DeadLetter:
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


def mentions(event: Event, key: bytes) -> bool:
    """Return whether an event concerns the item with this key; dead letters are searched for it."""
    if isinstance(event, Assignment):
        return event.key == key
    if isinstance(event, DeadLetter):
        texts = (event.value or b"", event.reason.encode(), event.origin.encode())
        quoted = [quote + key + quote for quote in (b'"', b"'")]
        return event.key == key or any(form in text for text in texts for form in quoted)
    return False


def read_event(collection: str, key: bytes, body: bytes) -> EventRow:
    """Return `show_event` of a row."""
    return show_event(collection, *read_event_key(key), parse_event(body))


def dump_json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def load_json(table: str, key: bytes, body: bytes) -> dict[str, Any]:
    value = orjson.loads(body)
    if not isinstance(value, dict):
        corrupt(table, key, "not a JSON object")
    return value
