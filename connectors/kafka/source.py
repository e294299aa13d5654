"""Kafka in: a topic of embeddings, all its partitions, as batches.

Delivery: every record once in effect. The position of a batch goes into the store with what came of it, and
after a crash reading begins there. What Kafka's own consumer groups know is for lag monitors only. A record
that cannot be used goes to the dead letters in the same transaction. The sink is in `connectors.kafka.sink`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from connectors.kafka.reader import KafkaReader, Position
from connectors.kafka.records import to_batch
from engine.errors import ConfigError
from engine.streams import Ground, Handler, Lag
from engine.types import Applied, Batch

POSITION = "kafka"  # its name in the store
MARKS_S = 10.0  # between batches that only pass the marks of transactions


class KafkaSource:
    """The topic of the settings; see `engine.streams.Source`. `clock` gives seconds since 1970."""

    def __init__(self, ground: Ground, clock: Callable[[], float] = time.time) -> None:
        settings = ground.settings
        if settings.source.kafka is None:
            raise ConfigError("There is no [source.kafka] in the settings: set bootstrap and topic.")
        self.name = f"kafka:{settings.source.kafka.topic}"
        self._bounds, self._dim, self._clock = settings.bounds, ground.dim, clock
        raw = ground.position(POSITION)
        position = Position.load(raw) if raw else None
        self._known_dim: int | None = None
        self._stored = self._taken = dict(position.offsets) if position else {}
        self._taken_time: float | None = None  # ms, of the first record of a batch that is not durable
        self._passed = time.monotonic()  # when a batch was last handed over
        self._behind_since: float | None = None
        group = f"shoal-{settings.collection.name}"
        self._reader = KafkaReader(settings.source.kafka, settings.bounds, group, position)

    @property
    def handlers(self) -> Mapping[str, Handler]:
        return {}

    def poll(self, size: int, timeout_s: float) -> Batch | None:
        """See `engine.streams.Source`. Raises BrokerError."""
        records, position = self._reader.take(size, timeout_s)
        if position is None or (not records and not self._marks_are_due(position)):
            return None
        dim = self._known_dim or self._dim()
        batch, self._known_dim = to_batch(records, dim, self._bounds, int(self._clock() * 1000))
        self._taken = dict(position.offsets)
        self._taken_time = records[0].timestamp if records else None
        self._passed = time.monotonic()
        return replace(batch, positions={POSITION: position.dump()})

    def committed(self, applied: Applied) -> None:
        self._stored, self._taken_time = self._taken, None
        self._reader.stored(self._stored)

    def lag(self) -> Lag:
        silent_s, bounds = self._reader.silent_s(), self._bounds
        if silent_s > bounds.stall_timeout_s + bounds.discovery_interval_s:
            return Lag({}, silent_s)  # something may wait since the broker was last heard
        records, waiting = self._reader.behind()
        if not any(records.values()):
            self._behind_since = None
            return Lag({str(p): n for p, n in records.items()})
        now_s = self._clock()
        self._behind_since = self._behind_since or now_s
        oldest_ms = self._taken_time or waiting
        since_s = oldest_ms / 1000 if oldest_ms and oldest_ms > 0 else self._behind_since
        return Lag({str(p): n for p, n in records.items()}, max(0.0, now_s - since_s))

    def close(self) -> None:
        self._reader.close()

    def _marks_are_due(self, position: Position) -> bool:
        """Marks of transactions are passed now and then, so that they do not expire as if unread."""
        return dict(position.offsets) != self._stored and time.monotonic() - self._passed > MARKS_S
