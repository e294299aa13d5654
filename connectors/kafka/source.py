"""Kafka in: a topic of embeddings, all its partitions, as batches.

Delivery: every record once in effect. The position of a batch is committed with its results, and
after a crash reading begins there. What Kafka's own consumer groups know is for lag monitors only. A record
that cannot be used goes to the dead letters in the same transaction. The sink is in `connectors.kafka.sink`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kafka.errors import KafkaError

from connectors.kafka.client import KafkaCluster, brief
from connectors.kafka.reader import KafkaReader, Position, check_topic
from connectors.kafka.registry import RegistryAway
from connectors.kafka.values import Decoder
from engine.config import KafkaSettings
from engine.errors import BrokerError, ConfigError, shown
from engine.rows import Settled
from engine.streams import Handler, Lag, SourceContext
from engine.types import Applied, Batch, DeadLetter

POSITION = "kafka"  # its name in the store
MARKS_S = 10.0  # between batches that only pass transaction markers
TOLD_S = 10.0  # between two log lines about dead letters, or about an unreachable registry
_log = logging.getLogger("shoal.kafka")


class KafkaSource:
    """The topic of the settings; see `engine.streams.Source`. `clock` gives seconds since 1970."""

    def __init__(self, context: SourceContext, clock: Callable[[], float] = time.time) -> None:
        settings = context.settings
        if settings.source.kafka is None:
            raise ConfigError("There is no [source.kafka] in the settings: set bootstrap and topic.")
        self.name = f"kafka:{settings.source.kafka.topic}"
        self._limits, self._dim, self._clock = settings.limits, context.dim, clock
        self._decoder = Decoder(settings.source.kafka, settings.limits)
        raw = context.position(POSITION)
        position = Position.load(raw) if raw else None
        self._stored = self._taken = dict(position.offsets) if position else {}
        self._taken_time: float | None = None  # ms, of the first record of a batch that is not durable
        self._held: tuple[Sequence[Any], Position] | None = None  # records whose schemas are awaited
        self._passed = time.monotonic()  # when a batch was last handed over
        self._behind_since: float | None = None
        self._letters = 0  # dead letters not logged yet
        self._told_at: dict[str, float] = {}  # by the words
        self._named: set[str] = set()  # fields that are not understood
        group = f"shoal-{settings.collection.name}"
        self._reader = KafkaReader(settings.source.kafka, settings.limits, group, position)

    @property
    def handlers(self) -> Mapping[str, Handler]:
        return {}

    def poll(self, size: int, timeout_s: float) -> Batch | None:
        """See `engine.streams.Source`. Raises BrokerError."""
        records, position = self._held or self._reader.take(size, timeout_s)
        if position is None or (not records and not self._marks_are_due(position)):
            return None
        try:
            settled, letters = self._decoder.settle(records, self._dim(), int(self._clock() * 1000))
        except RegistryAway as problem:
            self._held = records, position
            self._tell(
                "schema registry unreachable (%s); records are held until it answers: check registry_url",
                problem,
            )
            time.sleep(timeout_s)
            return None
        self._held = None
        self._taken = dict(position.offsets)
        self._taken_time = records[0].timestamp if records else None
        self._passed = time.monotonic()
        self._tell_letters(letters)
        self._tell_doubts(settled)
        return replace(settled.batch, positions={POSITION: position.dump()}, rejected=letters)

    def committed(self, applied: Applied) -> None:
        self._stored, self._taken_time = self._taken, None
        self._reader.stored(self._stored)

    def lag(self) -> Lag:
        silent_s, limits = self._reader.silent_s(), self._limits
        if silent_s > limits.stall_timeout_s + limits.discovery_interval_s:
            return Lag({}, silent_s)  # something may wait since the broker was last heard
        records, waiting = self._reader.behind()
        if not any(records.values()):
            self._behind_since = None
            return Lag({str(p): n for p, n in records.items()})
        now_s = self._clock()
        self._behind_since = self._behind_since or now_s
        held = self._held[0][0].timestamp if self._held else None
        oldest_ms = self._taken_time or held or waiting
        since_s = oldest_ms / 1000 if oldest_ms and oldest_ms > 0 else self._behind_since
        return Lag({str(p): n for p, n in records.items()}, max(0.0, now_s - since_s))

    def close(self) -> None:
        self._reader.close()

    def _marks_are_due(self, position: Position) -> bool:
        """Return whether to pass transaction markers now, so that they do not expire as if unread."""
        return dict(position.offsets) != self._stored and time.monotonic() - self._passed > MARKS_S

    def _tell_letters(self, letters: Sequence[DeadLetter]) -> None:
        self._letters += len(letters)
        if letters and self._tell(
            "%d records cannot be used and are dead letters; the last one, %s: %s",
            self._letters,
            letters[-1].origin,
            letters[-1].reason,
        ):
            self._letters = 0

    def _tell_doubts(self, settled: Settled) -> None:
        """Log accepted records with implausible times, and unknown fields, each name once."""
        if settled.doubts:
            count, (_, reason) = len(settled.doubts), settled.doubts[0]
            self._tell("%d records were taken with a time that is hardly right; the first: %s", count, reason)
        fresh = [name for name in self._decoder.ignored if name not in self._named]
        if fresh:
            self._named.update(fresh)
            _log.warning("fields that are not understood are left out: %s", ", ".join(map(shown, fresh)))

    def _tell(self, words: str, *values: object) -> bool:
        """Log a line, unless the same one was logged within TOLD_S."""
        due = time.monotonic() - self._told_at.get(words, -TOLD_S) >= TOLD_S
        if due:
            _log.warning(words, *values)
            self._told_at[words] = time.monotonic()
        return due


def plan(settings: KafkaSettings, raw: bytes | None) -> str:
    """Describe what a daemon would read. `raw`: the position in the store. Raises ShoalError as it would."""
    known = Position.load(raw) if raw else None
    with KafkaCluster(settings) as cluster:
        try:
            topic = check_topic(settings, known, cluster.topic(settings.topic))
        except KafkaError as error:
            refusal = cluster.refusal(error)
            raise refusal or BrokerError(
                f"No broker answers at {settings.bootstrap} ({brief(error)}): start it, or set "
                "[source.kafka] bootstrap."
            ) from error
    offsets = known.offsets if known else {}
    places = ", ".join(f"{p} from {offsets.get(p, 'its beginning')}" for p in topic.partitions)
    name = settings.topic
    out = f"; it would publish to {name}.assignments, {name}.clusters and {name}.dlq"
    return f"It would read the topic {name}: partition {places}{out if settings.publish else ''}."
