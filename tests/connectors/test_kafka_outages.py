"""The Kafka source while its broker or its client is away, stalls or hangs."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from kafka import KafkaConsumer

from engine.streams import Lag
from tests.broker import Broker
from tests.broker.topics import Topics, until
from tests.support.kafka import Open, numbered


def test_a_broker_that_is_killed_paused_and_restarted(
    topics: Topics, reading: Open, restored: Broker
) -> None:
    topic = topics.make(2)
    topics.produce(topic, numbered(300))
    read = reading(topic)
    read.take_until(lambda: len(read.live) >= 100, size=20)
    restored.kill()
    while read.take(timeout_s=1.0):  # what the client has fetched by now
        pass
    restored.start()
    topics.produce(topic, numbered(300, start=300))
    read.take_until(lambda: len(read.live) == 600)
    restored.pause()
    assert read.take(timeout_s=2.0) is None
    restored.resume()
    topics.produce(topic, numbered(50, start=600))
    read.take_until(lambda: len(read.live) == 650)
    restored.stop()
    restored.start()
    topics.produce(topic, numbered(50, start=650))
    read.take_until(lambda: len(read.live) == 700)
    assert sum(len(batch.keys) for batch in read.batches) == 700
    until(lambda: read.source.lag().total == 0, 120)


def test_a_broker_that_is_not_there_at_the_start(topics: Topics, reading: Open, restored: Broker) -> None:
    topic = topics.make()
    topics.produce(topic, numbered(5))
    restored.stop()
    read = reading(topic, stall_timeout_s=1.0, discovery_interval_s=0.5)
    assert read.take(timeout_s=2.0) is None
    lag = read.source.lag()
    assert lag.records == {}
    assert lag.oldest_unread_s > 1.5  # not known, which is not nothing
    restored.start()
    read.take_until(lambda: len(read.live) == 5)
    until(lambda: read.source.lag() == Lag({"0": 0}), 120)


class _Stalled(KafkaConsumer):
    """As kafka-python was seen to be: it polls, and no record comes."""

    def poll(self, timeout_ms: int = 0, **more: Any) -> dict[Any, Any]:
        time.sleep(timeout_ms / 1000)
        return {}


def test_a_client_that_stalls_is_replaced(
    topics: Topics, reading: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    topic = topics.make()
    topics.produce(topic, numbered(5))
    kinds = iter([_Stalled, _Stalled])
    monkeypatch.setattr(
        "connectors.kafka.reader.KafkaConsumer", lambda **options: next(kinds, KafkaConsumer)(**options)
    )
    read = reading(topic, stall_timeout_s=0.5)
    read.take_until(lambda: len(read.live) == 5)
    assert "there are unread records and none arrived" in caplog.text


def test_a_client_that_hangs_is_left_to_itself(
    topics: Topics, reading: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = topics.make()
    topics.produce(topic, numbered(5))
    hung, release = threading.Event(), threading.Event()

    def make(**options: Any) -> Any:
        if not hung.is_set():
            hung.set()
            release.wait(120)
        return KafkaConsumer(**options)

    monkeypatch.setattr("connectors.kafka.reader.KafkaConsumer", make)
    read = reading(topic, stall_timeout_s=0.5)
    read.take_until(lambda: len(read.live) == 5)
    release.set()
    assert read.take(timeout_s=2.0) is None
    assert sum(len(batch.keys) for batch in read.batches) == 5
