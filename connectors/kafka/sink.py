"""Kafka out: the event log on three topics, <topic>.assignments, <topic>.clusters and <topic>.dlq.

Delivery: a consumer that reads committed records sees each event once, those of a key in order. A slice of
the log and the place it leads to are one Kafka transaction; the place, a record of <topic>.progress, is read
back before anything more is published, so that a commit whose answer was lost is not repeated.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from connectors.kafka.client import KafkaCluster, brief, commit, let_go
from engine.config import KafkaSettings, LimitsSettings
from engine.errors import BrokerError
from engine.events import EventId, show_event
from engine.streams import SinkAway
from engine.types import Assignment, DeadLetter, Event, LineageEvent

TRANSACTION_TIMEOUT_MS = 60_000  # after which Kafka itself aborts what a publisher left open
DELIVERY_TIMEOUT_MS = 30_000
CALL_MS = 15_000
COMMIT_MS = 10_000
LINGER_MS = 50  # a commit sends at once what waits
TAIL = 20  # records of the progress topic looked at first, from its end
FRAME_BYTES = 2**16  # of a record besides its value
_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One record."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


class KafkaSink:
    """See `engine.streams.Sink`. `identity`: of the store; topics belong to one."""

    def __init__(
        self, settings: KafkaSettings, limits: LimitsSettings, collection: str, identity: str
    ) -> None:
        self._cluster = KafkaCluster(settings)
        self._settings, self._limits = settings, limits
        self._collection, self._identity = collection, identity
        self._instance = uuid.uuid4().hex
        self._producer: Any = None
        self._last: EventId | None = None  # published by this instance
        topic = settings.topic
        self.assignments, self.clusters = f"{topic}.assignments", f"{topic}.clusters"
        self.dead_letters, self.progress = f"{topic}.dlq", f"{topic}.progress"

    def resume(self) -> EventId | None:
        """See `engine.streams.Sink`. Raises SinkAway, BrokerError."""
        self.close()
        try:
            self._make_topics()
            self._producer = self._cluster.connect(
                KafkaProducer,
                transactional_id=f"shoal.{self._settings.topic}",
                transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
                delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
                max_block_ms=CALL_MS,
                max_request_size=self._limits.dead_letter_max_bytes + FRAME_BYTES,
                batch_size=2**18,
                linger_ms=LINGER_MS,
                allow_auto_create_topics=False,
            )
            self._producer.init_transactions()
            return self._read_progress()
        except KafkaError as error:
            self.close()
            raise self._cluster.refusal(error) or SinkAway(brief(error)) from error

    def publish(self, events: Sequence[tuple[EventId, Event]]) -> None:
        """See `engine.streams.Sink`. Raises SinkAway, BrokerError."""
        sent = []
        try:
            self._producer.begin_transaction()
            for place, event in events:
                record = self._record(place, event)
                future = self._producer.send(record.topic, record.value, record.key, record.headers)
                sent.append((record, future))
            place = events[-1][0]
            progress = {"store": self._identity, "instance": self._instance, "version": place[0]}
            value = orjson.dumps({**progress, "ordinal": place[1]})
            self._producer.send(self.progress, value, self._collection.encode(), partition=0)
            commit(self._producer, COMMIT_MS)
            self._last = place
        except KafkaError as error:
            self.close()
            self._check_size(sent, error)
            raise self._cluster.refusal(error) or SinkAway(brief(error)) from error

    def close(self) -> None:
        """Release the connection. The next `resume` aborts an open transaction."""
        producer, self._producer = self._producer, None
        if producer is not None:
            let_go(producer)
        self._cluster.close()

    def _make_topics(self) -> None:
        source = self._cluster.topic(self._settings.topic)
        large = str(self._limits.dead_letter_max_bytes + FRAME_BYTES)
        compact = {"cleanup.policy": "compact"}
        self._cluster.make_topics(
            {
                self.assignments: {
                    "num_partitions": len(source.partitions) if source else 1,
                    "configs": compact,
                },
                self.clusters: {"num_partitions": 1},
                self.dead_letters: {"num_partitions": 1, "configs": {"max.message.bytes": large}},
                self.progress: {"num_partitions": 1, "configs": {**compact, "segment.bytes": str(2**24)}},
            }
        )

    def _record(self, place: EventId, event: Event) -> Outgoing:
        version, ordinal = place
        shown = show_event(self._collection, version, ordinal, event)
        headers = [("event-id", shown.pop("event-id").encode())]
        if isinstance(event, Assignment):
            value = orjson.dumps(shown) if event.cluster else None
            return Outgoing(self.assignments, event.key, value, headers)
        if isinstance(event, LineageEvent):
            return Outgoing(self.clusters, str(event.cluster).encode(), orjson.dumps(shown), headers)
        assert isinstance(event, DeadLetter)
        told = [("reason", event.reason.encode()), ("origin", event.origin.encode())]
        key = b"" if event.key is None and event.value is None else event.key  # one of them has to be there
        return Outgoing(self.dead_letters, key, event.value, [*event.headers, *headers, *told])

    def _read_progress(self) -> EventId | None:
        """Return the position in the last progress record.

        Raises BrokerError if another store or daemon wrote it.
        """
        found = self._last_record(self.progress)
        if found is None:
            if self._last_record(self.assignments) is None:
                return None
            raise BrokerError(
                f"The topic {self.assignments} has records, but {self.progress} does not record their"
                " position: delete both, and this store publishes from the beginning."
            )
        told = orjson.loads(found.value)
        place = (int(told["version"]), int(told["ordinal"]))
        if told["store"] != self._identity:
            raise BrokerError(
                f"The topics {self._settings.topic}.* hold what another store published: use that store,"
                " or delete the topics, and this one publishes from the beginning."
            )
        if self._last is not None and told["instance"] != self._instance:
            raise BrokerError(
                f"Another daemon publishes to the topics {self._settings.topic}.*: stop one of the two."
            )
        return place

    def _last_record(self, topic: str) -> Any:
        """Return the last committed record of partition 0, or else of another one; None: there is none."""
        consumer = self._cluster.connect(
            KafkaConsumer,
            group_id=None,
            auto_offset_reset="none",
            enable_auto_commit=False,
            isolation_level="read_committed",
            allow_auto_create_topics=False,
        )
        try:
            for part in sorted(consumer.partitions_for_topic(topic) or ()):
                found = _last_record_of(consumer, TopicPartition(topic, part))
                if found is not None:
                    return found
            return None
        finally:
            consumer.close(autocommit=False, timeout_ms=1_000)

    def _check_size(self, sent: Sequence[tuple[Outgoing, Any]], error: KafkaError) -> None:
        """Raise BrokerError for a record that exceeds what a topic accepts."""
        failed = [(record, future.exception) for record, future in sent if future.is_done and future.failed()]
        for record, reason in [*failed, *([(sent[-1][0], error)] if sent else [])]:
            if isinstance(reason, _TOO_LARGE):
                size = len(record.key or b"") + len(record.value or b"") + FRAME_BYTES
                raise BrokerError(
                    f"The topic {record.topic} does not take a record of {size} bytes: raise its"
                    " max.message.bytes to that."
                )


def _last_record_of(consumer: Any, part: TopicPartition) -> Any:
    begin = consumer.beginning_offsets([part], CALL_MS)[part]
    end = consumer.end_offsets([part], CALL_MS)[part]
    consumer.assign([part])
    count = TAIL
    while begin < end:
        start = max(begin, end - count)
        found = _read(consumer, part, start, end)
        if found or start == begin:
            return found[-1] if found else None
        count *= 10
    return None


def _read(consumer: Any, part: TopicPartition, start: int, end: int) -> list[Any]:
    """Committed records from `start` to before `end`; marks of transactions have offsets, but no record."""
    consumer.seek(part, start)
    found: list[Any] = []
    deadline = time.monotonic() + CALL_MS / 1000
    while consumer.position(part, CALL_MS) < end:
        if time.monotonic() > deadline:
            raise KafkaError(f"{part.topic} was not read in time")
        for records in consumer.poll(200).values():
            found.extend(records)
    return found
