"""Key and value codecs of the tables, and the records of the store as a whole; bytes are `schema`'s."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from engine.events import EventId
from engine.storage import schema
from engine.types import Epoch, Event, Int16, Lists

Pair = tuple[int, int]
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class KeyCodec(Generic[K]):
    """How the keys of a table are written and read."""

    pack: Callable[[K], bytes]
    unpack: Callable[[bytes], K]


@dataclass(frozen=True, slots=True)
class ValueCodec(Generic[V]):
    """How the bodies of a table are written and read; `unpack` takes the row's key and its body."""

    pack: Callable[[V], bytes]
    unpack: Callable[[bytes, bytes], V]


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

    @classmethod
    def of(cls, json: Mapping[str, Any]) -> StateRecord:
        epoch = Epoch(*json.get("epoch", (0.0, 0.0, 0)))
        return cls(int(json.get("version", 0)), int(json.get("time_ms", 0)), epoch, json.get("counters", {}))

    def as_json(self) -> dict[str, Any]:
        epoch = [self.epoch.mean, self.epoch.deviation, self.epoch.items]
        return {
            "version": self.version,
            "time_ms": self.time_ms,
            "epoch": epoch,
            "counters": dict(self.counters),
        }


@dataclass(frozen=True, slots=True)
class LogRecord:
    """The event log as a whole."""

    bytes: int  # of the bodies of its events
    forgot: EventId | None  # the last event that was forgotten

    @classmethod
    def of(cls, json: Mapping[str, Any]) -> LogRecord:
        forgot = json.get("forgot")
        return cls(int(json.get("bytes", 0)), (int(forgot[0]), int(forgot[1])) if forgot else None)

    def as_json(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "forgot": self.forgot}


class CommitRecord(NamedTuple):
    """A version in the event log."""

    time_ms: int
    events: int
    bytes: int  # of their bodies


def _same(value: bytes) -> bytes:
    return value


ID = KeyCodec(schema.u64, schema.read_u64)
PAIR: KeyCodec[Pair] = KeyCodec(lambda key: schema.pair(*key), schema.read_pair)
SIZE: KeyCodec[Pair] = KeyCodec(
    lambda key: schema.size_key(*key), schema.read_size_key
)  # (size, cluster), largest first
PLACE: KeyCodec[EventId] = KeyCodec(lambda key: schema.event_key(*key), schema.read_event_key)
BYTES = KeyCodec(_same, _same)
TEXT: KeyCodec[str] = KeyCodec(str.encode, bytes.decode)

RAW: ValueCodec[bytes] = ValueCodec(_same, lambda key, body: body)
NUMBER: ValueCodec[int] = ValueCodec(
    lambda number: number.to_bytes(8, "little"), lambda key, body: schema.read_number(body)
)
IDS: ValueCodec[tuple[int, ...]] = ValueCodec(schema.ids_body, lambda key, body: schema.read_ids(body))
ITEM = ValueCodec(schema.item_body, schema.read_item)
VECTOR: ValueCodec[Int16] = ValueCodec(
    lambda vector: schema.vector_bodies(vector[None])[0],
    lambda key, body: schema.read_vectors([key], [body]).vectors[0],
)
LIST: ValueCodec[Lists] = ValueCodec(
    lambda row: schema.list_bodies(row)[0], lambda key, body: schema.read_lists([key], [body])
)
CLUSTER = ValueCodec(schema.cluster_body, schema.read_cluster)
COMMIT: ValueCodec[CommitRecord] = ValueCodec(
    lambda record: schema.commit_body(*record), lambda key, body: CommitRecord(*schema.read_commit(body))
)
EVENT: ValueCodec[Event] = ValueCodec(schema.event_body, lambda key, body: schema.parse_event(body))
