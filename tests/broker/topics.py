"""Topics of a broker as a test sees them: made, filled, and read to the end, committed records only."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import orjson
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

RAW = ("content-type", b"application/x-float32")
_numbers = itertools.count()


@dataclass(frozen=True)
class Sent:
    """A record to produce."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    partition: int | None = None
    time_ms: int | None = None


def document(vector: Iterable[float], **more: Any) -> bytes:
    return orjson.dumps({"embedding": [float(x) for x in vector], **more})


class Topics:
    """A client of everything."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    def __enter__(self) -> Topics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def admin(self) -> KafkaAdminClient:
        return KafkaAdminClient(bootstrap_servers=self.bootstrap)

    def make(self, partitions: int = 1, name: str = "", **configs: Any) -> str:
        """A new topic, of a name that no other has; `max_message_bytes=...` sets max.message.bytes."""
        name = name or f"test-{next(_numbers)}-{time.time_ns()}"
        settings = {"retention.ms": "-1"}  # records of a test may be old
        settings |= {key.replace("_", "."): str(value) for key, value in configs.items()}
        with contextlib.closing(self.admin()) as admin:
            admin.create_topics(
                {name: {"num_partitions": partitions, "configs": settings}}, wait_for_metadata=True
            )
        return name

    def delete(self, topic: str) -> None:
        with contextlib.closing(self.admin()) as admin:
            admin.delete_topics([topic])
            until(lambda: topic not in admin.list_topics(), 120)

    def add_partitions(self, topic: str, total: int) -> None:
        with contextlib.closing(self.admin()) as admin:
            admin.create_partitions({topic: total})
            # A producer raises ValueError for a partition that its broker does not tell of yet.
            until(lambda: len(admin.describe_topics([topic])[0]["partitions"]) == total, 120)

    def forget(self, topic: str, before: int) -> None:
        """Deletes the records before an offset of partition 0, as retention does."""
        with contextlib.closing(self.admin()) as admin:
            admin.delete_records({TopicPartition(topic, 0): before})

    def produce(self, topic: str, records: Sequence[Sent]) -> None:
        with contextlib.closing(self.producer()) as producer:
            futures = [
                producer.send(topic, sent.value, sent.key, sent.headers, sent.partition, sent.time_ms)
                for sent in records
            ]
            for future in futures:
                future.get(30)

    def producer(self, **options: Any) -> KafkaProducer:
        return KafkaProducer(
            bootstrap_servers=self.bootstrap, max_request_size=2**25, batch_size=2**18, **options
        )

    def read(self, topic: str, last: int | None = None) -> list[Any]:
        """All committed records, partition by partition, or those of the `last` offsets of each.

        None of a topic that is not there.
        """
        with contextlib.closing(self._consumer()) as consumer:
            parts = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic) or ())]
            begins, ends = consumer.beginning_offsets(parts), consumer.end_offsets(parts)
            found: list[Any] = []
            for part in parts:
                consumer.assign([part])
                consumer.seek(part, max(begins[part], ends[part] - last) if last else begins[part])
                deadline = time.monotonic() + 60
                while consumer.position(part) < ends[part]:
                    assert time.monotonic() < deadline, f"{part} was not read in time"
                    for records in consumer.poll(200, max_records=5_000).values():
                        found.extend(records)
            return found

    def names(self) -> list[str]:
        with contextlib.closing(self.admin()) as admin:
            found: list[str] = admin.list_topics()
            return found

    def end(self, topic: str) -> int:
        """How many offsets the partitions have, committed or not."""
        with contextlib.closing(self._consumer()) as consumer:
            parts = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
            return sum(consumer.end_offsets(parts).values())

    def group(self, name: str) -> dict[tuple[str, int], int]:
        """What lag monitors see of a group."""
        with contextlib.closing(self.admin()) as admin:
            told = admin.list_group_offsets({name: None})[name]
        return {(part.topic, part.partition): at.offset for part, at in told.items()}

    def _consumer(self) -> KafkaConsumer:
        return KafkaConsumer(
            bootstrap_servers=self.bootstrap,
            group_id=None,
            isolation_level="read_committed",
            auto_offset_reset="none",
            enable_auto_commit=False,
            fetch_max_bytes=2**26,
            max_partition_fetch_bytes=2**24,
        )


def until(holds: Callable[[], Any], limit_s: float, pause_s: float = 0.1) -> None:
    """Waits until something holds; what a broker in trouble raises meanwhile does not count."""
    deadline = time.monotonic() + limit_s
    while True:
        with contextlib.suppress(KafkaError):
            if holds():
                return
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(pause_s)
