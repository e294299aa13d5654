"""Reads all partitions of a topic in a thread, into a bounded queue; survives restarts of the broker.

Positions are the *next* offsets. Nobody else moves them: no consumer group owns partitions, an offset
that has expired is an error, and a topic made again under the same name is another topic.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError

from connectors.kafka.client import KafkaCluster, Topic, Watch, brief
from engine.backoff import Backoff
from engine.config import KafkaSettings, LimitsSettings
from engine.errors import BrokerError, ShoalError

POLL_MS = 200
CALL_MS = 10_000
POLL_RECORDS = 1_000
GATHER_S = 0.02  # records that arrive within it share a fetch: its cost hardly depends on their number
BACKOFF_S = 0.2, 5.0  # before a failed connection is tried again: first, last
MISSING_S = 3.0  # before a missing topic is an error: a starting broker may not know it yet
_log = logging.getLogger("shoal.kafka")


@dataclass(frozen=True, slots=True)
class Position:
    """Position in a topic. Offsets are valid for this topic of this cluster only."""

    cluster: str
    topic: str
    topic_id: str
    offsets: Mapping[int, int]  # partition -> next offset

    def dump(self) -> bytes:
        offsets = {str(partition): offset for partition, offset in sorted(self.offsets.items())}
        fields = {"cluster": self.cluster, "topic": self.topic, "topic_id": self.topic_id}
        return orjson.dumps({**fields, "offsets": offsets})

    @classmethod
    def load(cls, raw: bytes) -> Position:
        found = orjson.loads(raw)
        offsets = {int(partition): offset for partition, offset in found["offsets"].items()}
        return cls(found["cluster"], found["topic"], found["topic_id"], offsets)


@dataclass(slots=True)
class _Inbox:
    """State shared by the threads, guarded by `gate`."""

    gate: threading.Condition = field(default_factory=threading.Condition)
    records: deque[Any] = field(default_factory=deque)
    size: int = 0  # bytes
    topic: Topic | None = None
    next: dict[int, int] = field(default_factory=dict)  # next offset to read
    ends: dict[int, int] = field(default_factory=dict)  # end offset of the log
    problem: ShoalError | None = None
    alive: float = 0.0  # when the thread last made progress
    known: float = field(default_factory=time.monotonic)  # when the end offsets were last fetched

    def full(self, limits: LimitsSettings) -> bool:
        return len(self.records) >= limits.queue_records or self.size >= limits.queue_bytes


class KafkaReader:
    """`take` hands records over in the order of each partition. `group`: where lag monitors look.

    Raises ConfigError.
    """

    def __init__(
        self, settings: KafkaSettings, limits: LimitsSettings, group: str, position: Position | None
    ) -> None:
        KafkaCluster(settings)  # raises on settings that cannot be used
        self._settings, self._limits, self._group = settings, limits, group
        self._known = position
        self._inbox = _Inbox(next=dict(position.offsets) if position else {})
        self._stored: dict[int, int] = dict(self._inbox.next)
        self._ending = threading.Event()
        self._turn = 0  # number of the only thread that may write to the inbox
        self._start()

    def take(self, size: int, timeout_s: float) -> tuple[list[Any], Position | None]:
        """Return at most `size` records and the position after them. Raises BrokerError.

        None instead of a position as long as the topic was not seen.
        """
        self._revive()
        inbox = self._inbox
        with inbox.gate:
            inbox.gate.wait_for(lambda: inbox.records or inbox.problem, timeout_s)
            if inbox.problem:
                raise inbox.problem
            records = [inbox.records.popleft() for _ in range(min(size, len(inbox.records)))]
            inbox.size -= sum(map(_size, records))
            offsets = dict(inbox.next)
            for record in inbox.records:  # records left in the queue count as unread
                offsets[record.partition] = min(offsets[record.partition], record.offset)
            topic = inbox.topic
        if topic is None:
            return records, None
        return records, Position(topic.cluster, topic.name, topic.id, offsets)

    def stored(self, offsets: Mapping[int, int]) -> None:
        """Record that everything before these offsets is durable; they are committed for lag monitors."""
        self._stored = dict(offsets)

    def behind(self) -> tuple[dict[int, int], float | None]:
        """Return the number of records not yet durable by partition, and the time of the first in the queue.

        The time is in ms since 1970, None if the queue is empty. End offsets are as of the last discovery.
        """
        with self._inbox.gate:
            ends, waiting = dict(self._inbox.ends), self._inbox.records
            oldest = waiting[0].timestamp if waiting else None
        stored = self._stored
        return {p: max(0, end - stored.get(p, 0)) for p, end in ends.items()}, oldest

    def silent_s(self) -> float:
        """Return the seconds since the broker last reported its end offsets."""
        return time.monotonic() - self._inbox.known

    def close(self) -> None:
        self._ending.set()
        self._thread.join(timeout=5.0)

    def _start(self) -> None:
        self._turn += 1
        self._inbox.alive = time.monotonic()
        self._thread = threading.Thread(target=self._run, args=(self._turn,), name="kafka", daemon=True)
        self._thread.start()

    def _revive(self) -> None:
        """Replace a thread that hangs inside kafka-python: abandon it and start another."""
        if time.monotonic() - self._inbox.alive > 3 * self._limits.stall_timeout_s:
            _log.warning("the Kafka client hangs; starting another one")
            self._start()

    def _run(self, turn: int) -> None:
        """Connect and read; reconnect when the connection is lost."""
        cluster = KafkaCluster(self._settings)
        backoff = Backoff(*BACKOFF_S)
        while not self._ending.is_set() and turn == self._turn:
            begun = time.monotonic()
            try:
                with cluster:
                    self._read(cluster, turn)
                return
            except ShoalError as error:
                self._give_up(error, turn)
                return
            except Exception as error:
                refused = cluster.refusal(error)
                if refused:
                    self._give_up(refused, turn)
                    return
                if time.monotonic() - begun > BACKOFF_S[1] + self._limits.discovery_interval_s:
                    backoff.reset()
                delay_s = backoff.next_s()
                reason = brief(error) if isinstance(error, KafkaError) else repr(error)
                _log.warning("Kafka at %s: %s; again in %.1f s", self._settings.bootstrap, reason, delay_s)
            self._inbox.alive = time.monotonic()
            self._ending.wait(delay_s)

    def _give_up(self, error: ShoalError, turn: int) -> None:
        with self._inbox.gate:
            if turn == self._turn:
                self._inbox.problem = error
                self._inbox.gate.notify_all()

    def _read(self, cluster: KafkaCluster, turn: int) -> None:
        topic = self._identify(cluster)
        consumer = cluster.connect(
            KafkaConsumer,
            group_id=None,
            auto_offset_reset="none",
            enable_auto_commit=False,
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            fetch_max_bytes=max(2**20, self._limits.queue_bytes // 4),
            max_poll_records=min(POLL_RECORDS, self._limits.queue_records),
        )
        try:
            watch = Watch(self._limits.stall_timeout_s)
            self._assign(consumer, topic)
            due, told = 0.0, dict[int, int]()
            while not self._ending.is_set() and turn == self._turn:
                if time.monotonic() >= due:
                    topic = self._discover(cluster, consumer, topic, watch)
                    told = self._tell_monitors(cluster, topic, told)
                    due = time.monotonic() + self._limits.discovery_interval_s
                found = self._poll(cluster, consumer)
                if found:
                    watch.moved()
                    self._put(found, turn)
                    if len(found) < POLL_RECORDS // 2:
                        self._ending.wait(GATHER_S)
                self._inbox.alive = time.monotonic()
        finally:
            consumer.close(autocommit=False, timeout_ms=1_000)

    def _poll(self, cluster: KafkaCluster, consumer: Any) -> list[Any]:
        """Keep polling while the queue is full, without fetching records."""
        if self._inbox.full(self._limits):
            consumer.pause(*consumer.assignment())
        elif consumer.paused():
            consumer.resume(*consumer.paused())
        try:
            return [record for records in consumer.poll(POLL_MS).values() for record in records]
        except OffsetOutOfRangeError as error:
            self._identify(cluster)
            self._expired(consumer, dict(error.args[0]))
        except LogTruncationError as error:
            self._identify(cluster)
            raise BrokerError(
                f"The topic {self._settings.topic} lost records that were already read ({brief(error)}):"
                " check for unclean leader elections, then read the topic into a new store."
            ) from error
        return []

    def _put(self, records: list[Any], turn: int) -> None:
        inbox = self._inbox
        with inbox.gate:
            if turn != self._turn:
                return
            for record in records:
                inbox.next[record.partition] = record.offset + 1
            inbox.records.extend(records)
            inbox.size += sum(map(_size, records))
            inbox.gate.notify_all()

    def _identify(self, cluster: KafkaCluster) -> Topic:
        """Return the topic's metadata if it is the topic that was read before. Raises BrokerError."""
        name, known = self._settings.topic, self._known
        found = check_topic(self._settings, known, _patiently(lambda: cluster.topic(name), MISSING_S))
        self._known = known or Position(found.cluster, name, found.id, {})
        return found

    def _assign(self, consumer: Any, topic: Topic) -> None:
        """Assign all partitions; those without an offset start at the beginning."""
        parts = {p: TopicPartition(topic.name, p) for p in topic.partitions}
        with self._inbox.gate:
            known = dict(self._inbox.next)
        fresh = [parts[p] for p in topic.partitions if p not in known]
        begins = consumer.beginning_offsets(fresh, CALL_MS) if fresh else {}
        known |= {part.partition: offset for part, offset in begins.items()}
        consumer.assign(list(parts.values()))
        for p, part in parts.items():
            consumer.seek(part, known[p])
        with self._inbox.gate:
            self._inbox.next, self._inbox.topic = known, topic
        _log.info("reading %s, partitions %s", topic.name, known)

    def _discover(self, cluster: KafkaCluster, consumer: Any, topic: Topic, watch: Watch) -> Topic:
        """Discover new partitions, fetch the end offsets, and detect a stalled consumer."""
        found = self._identify(cluster)
        if found.partitions != topic.partitions:
            self._assign(consumer, found)
        parts = [TopicPartition(found.name, p) for p in found.partitions]
        ends = {part.partition: end for part, end in consumer.end_offsets(parts, CALL_MS).items()}
        reached = {part.partition: consumer.position(part, CALL_MS) for part in parts}
        with self._inbox.gate:
            self._inbox.ends, self._inbox.known = ends, time.monotonic()
            for p, offset in reached.items():  # transaction markers occupy offsets, too
                self._inbox.next[p] = max(self._inbox.next[p], offset or 0)
            unread = any(end > self._inbox.next[p] for p, end in ends.items())
        if not unread or consumer.paused():
            watch.moved()
        watch.check()
        return found

    def _tell_monitors(self, cluster: KafkaCluster, topic: Topic, told: dict[int, int]) -> dict[int, int]:
        stored = dict(self._stored)
        if stored and stored != told:
            offsets = {
                TopicPartition(topic.name, p): OffsetAndMetadata(offset, "", -1)
                for p, offset in stored.items()
            }
            try:
                cluster.admin.alter_group_offsets(self._group, offsets)
            except KafkaError as error:
                _log.debug("offsets of the group %s: %s", self._group, brief(error))
        return stored

    def _expired(self, consumer: Any, offsets: Mapping[TopicPartition, int]) -> None:
        """Handle offsets that expired: raise BrokerError, or skip the gap if the settings allow it."""
        for part, offset in offsets.items():
            begin = consumer.beginning_offsets([part], CALL_MS)[part]
            end = consumer.end_offsets([part], CALL_MS)[part]
            where = f"Partition {part.partition} of the topic {part.topic}"
            if offset > end:
                raise BrokerError(
                    f"{where} ends at offset {end}, but was read up to {offset}: it lost records; read the"
                    " topic into a new store."
                )
            gap = f"{where}: records {offset} to {begin - 1} expired before they were read"
            if offset < begin and not self._settings.skip_expired:
                raise BrokerError(
                    f"{gap}; give the topic a longer retention, and continue without them by setting"
                    " [source.kafka] skip_expired = true."
                )
            if offset < begin:
                _log.warning("%s; continuing after them", gap)
                consumer.seek(part, begin)


def check_topic(settings: KafkaSettings, known: Position | None, found: Topic | None) -> Topic:
    """Check that the topic found is the one read before, and return it. Raises BrokerError."""
    name = settings.topic
    if known and known.topic != name:
        raise BrokerError(
            f"This store was read from the topic {known.topic}, not from {name}: set [source.kafka] topic"
            " back, or name another store."
        )
    if found is None:
        what = "was deleted: make it again and name another store" if known else "does not exist: make it"
        raise BrokerError(f"The topic {name} at {settings.bootstrap} {what}, or set [source.kafka] topic.")
    if known and known.cluster != found.cluster:
        raise BrokerError(
            f"This store was read from the Kafka cluster {known.cluster}, not from {found.cluster}: set"
            " [source.kafka] bootstrap back, or name another store."
        )
    if known and known.topic_id != found.id:
        raise BrokerError(
            f"The topic {name} was deleted and made again since this store was read from it: name another"
            " store, which reads it from its beginning."
        )
    return found


def _patiently(ask: Callable[[], Topic | None], timeout_s: float) -> Topic | None:
    deadline = time.monotonic() + timeout_s
    while (found := ask()) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _size(record: Any) -> int:
    return len(record.key or b"") + len(record.value or b"")
