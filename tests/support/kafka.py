"""A Kafka source as a store would use it, and records for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson

from connectors.kafka.source import KafkaSource
from engine.config import Settings, load
from engine.errors import BrokerError
from engine.streams import SourceContext
from engine.types import Applied, Batch
from engine.vectors import quantize
from tests.broker import Broker
from tests.broker.topics import Sent, document

DIM = 4
RNG = np.random.default_rng(1)


def settings_of(broker: Broker, topic: str, **flags: Any) -> Settings:
    """`queue_records=5` sets a bound, `kafka__username="a"` the source."""
    bounds = {"discovery_interval_s": 0.3, **{k: v for k, v in flags.items() if "__" not in k}}
    kafka = {k.removeprefix("kafka__"): v for k, v in flags.items() if "__" in k}
    source = {"kafka": {"bootstrap": broker.bootstrap, "topic": topic, **kafka}}
    plain = load()
    return plain.model_copy(
        update={
            "source": type(plain.source).model_validate(source),
            "limits": type(plain.limits).model_validate(bounds),
        }
    )


class Reading:
    """A source and what a store would keep of it."""

    def __init__(self, settings: Settings, positions: dict[str, bytes] | None = None) -> None:
        self.positions = {} if positions is None else positions
        self.live: dict[bytes, Any] = {}
        self.rejected: list[Any] = []
        self.batches: list[Batch] = []
        self.dim: int | None = None
        version, dim = (lambda: len(self.batches)), (lambda: self.dim)
        context = SourceContext(settings, "id", self.positions.get, version, dim)
        self.source = KafkaSource(context)

    def take(self, size: int = 100, timeout_s: float = 0.2) -> Batch | None:
        batch = self.source.poll(size, timeout_s)
        if batch is None:
            return None
        for key, vector, time_ms, payload in zip(
            batch.keys, batch.vectors, batch.times.tolist(), batch.payloads, strict=True
        ):
            self.live[key] = (vector.tolist(), time_ms, payload)
        if len(batch.keys):
            self.dim = batch.vectors.shape[1]
        for key in batch.deletes:
            self.live.pop(key, None)
        self.rejected += batch.rejected
        self.positions |= batch.positions
        self.batches.append(batch)
        self.source.committed(Applied(len(self.batches)))
        return batch

    def take_until(self, holds: Callable[[], Any], limit_s: float = 120, size: int = 100) -> None:
        deadline = time.monotonic() + limit_s
        while not holds():
            assert time.monotonic() < deadline, (len(self.live), self.positions)
            self.take(size)

    def fail(self, limit_s: float = 120) -> str:
        """The sentence of the error with which it ends."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                self.take()
            except BrokerError as error:
                return str(error)
            assert time.monotonic() < deadline

    def offsets(self) -> dict[str, int]:
        found: dict[str, int] = orjson.loads(self.positions["kafka"])["offsets"]
        return found


Open = Callable[..., Reading]


def vector() -> Any:
    return RNG.normal(size=DIM)


def grid(values: Any) -> list[int]:
    found: list[int] = quantize([values])[0][0].tolist()
    return found


def numbered(count: int, start: int = 0) -> list[Sent]:
    return [Sent(b"k%d" % i, document(vector())) for i in range(start, start + count)]
