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
| events | version u64, ordinal u32 | JSON without what key and configuration imply; see `bodies` |
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from engine.errors import ConfigMismatch
from engine.events import EventId
from engine.types import Epoch

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

_U64, _PAIR, _EVENT = struct.Struct(">Q"), struct.Struct(">QQ"), struct.Struct(">QI")
_TOP = 2**64 - 1


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
            f"{path} was made by an earlier release (format {found}); "
            "run `shoal rebuild` once to bring it over"
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
