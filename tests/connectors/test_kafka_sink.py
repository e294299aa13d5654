"""The Kafka sink and its publisher against a real broker: each event once, whatever happens."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from connectors.kafka.sink import KafkaSink
from engine.config import Settings, load
from engine.daemon.publisher import Publisher
from engine.errors import BrokerError
from engine.events import BEGIN, EventId
from engine.storage.reader import View
from engine.storage.store import Store
from engine.streams import SinkAway
from engine.types import DeadLetter, Event
from tests.broker import Broker
from tests.broker.published import Events, assert_published
from tests.broker.topics import Topics, until
from tests.support.fake_collection import Toy

COLLECTION = "toy"
CONFIG = {"collection": COLLECTION, "dim": None, "model": "m", "k": 10, "tau": 0.1, "arithmetic": "avx2"}
LETTERS = [
    DeadLetter(
        "broken JSON", "in/0/7", b"key", b"{", [("content-type", b"application/json"), ("reason", b"x")]
    ),
    DeadLetter("the key is missing", "in/0/8", None, b"\x00\xff" * 1_500_000),
    DeadLetter("the key is empty", "in/1/0", b"", None),
    DeadLetter("the key is missing", "in/1/1", None, None),
    DeadLetter("the key has 600 bytes", "in/1/2", b"k" * 600, b""),
]


def settings_of(broker: Broker, topic: str, **bounds: int) -> Settings:
    plain = load()
    source = {"kafka": {"bootstrap": broker.bootstrap, "topic": topic}}
    return plain.model_copy(
        update={
            "source": type(plain.source).model_validate(source),
            "limits": type(plain.limits).model_validate({"publish_events": 7, **bounds}),
        }
    )


class World:
    """A store with a history, its view, and the topics that it is published to."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.broker, self.folder = broker, folder
        self.topics = Topics(broker.bootstrap)
        self.topic = self.topics.make(3)
        self.toy = Toy(3)
        self.events: list[tuple[EventId, Event]] = []

    def commit(self, versions: int, letters: Sequence[DeadLetter] = ()) -> World:
        with Store.open(self.folder, CONFIG, events_max_bytes=1 << 40) as store:
            self.identity = store.identity
            for _ in range(versions):
                change = self.toy.step()
                change = dataclasses.replace(change, events=[*change.events, *letters])
                store.commit(change)
                self.events += [((change.version, i), event) for i, event in enumerate(change.events)]
        return self

    def sink(self, identity: str = "", **bounds: int) -> KafkaSink:
        settings = settings_of(self.broker, self.topic, **bounds)
        assert settings.source.kafka
        return KafkaSink(settings.source.kafka, settings.limits, COLLECTION, identity or self.identity)

    def view(self) -> View:
        return View.open(self.folder)

    def publish(self, sink: Any = None, **bounds: int) -> Publisher:
        """Until everything is out."""
        stopping = threading.Event()

        def tell(published: Any) -> None:
            if published.retain_from_version > published.version > 0:
                stopping.set()

        with self.view() as view:
            settings = settings_of(self.broker, self.topic, **bounds)
            publisher = Publisher(view, sink or self.sink(**bounds), settings, tell, stopping)
            publisher.run()
            return publisher

    def assert_published(self, events: Events | None = None) -> None:
        assert_published(self.topics, self.topic, COLLECTION, self.events if events is None else events)


@pytest.fixture
def world(broker: Broker, tmp_path: Path) -> World:
    return World(broker, tmp_path / "store")


def test_every_event_is_published_as_it_is(world: World) -> None:
    world.commit(6, LETTERS)
    done = world.publish().published
    world.assert_published()
    assert done.place == world.events[-1][0]
    assert done.retain_from_version == 7
    assert done.assignments + done.clusters + done.dead_letters == len(world.events)
    assert done.dead_letters == 6 * len(LETTERS)
    with world.topics.admin() as admin:
        told = {t["name"]: len(t["partitions"]) for t in admin.describe_topics() if world.topic in t["name"]}
    outgoing = {f"{world.topic}.{name}": 1 for name in ("clusters", "dlq", "progress")}
    assert told == {world.topic: 3, f"{world.topic}.assignments": 3, **outgoing}


def test_it_goes_on_where_it_was(world: World) -> None:
    for versions in 1, 3, 2:
        world.commit(versions)
        world.publish()
        world.assert_published()
    assert not world.publish().published.assignments


def test_a_transaction_left_open_counts_for_nothing(world: World) -> None:
    world.commit(4)
    first = world.sink()
    assert first.resume() is None
    first.publish(world.events[:5])
    first._producer.begin_transaction()
    for place, event in world.events[5:12]:
        record = first._record(place, event)
        first._producer.send(record.topic, record.value, record.key, record.headers)
    first._producer.flush()  # and then the process dies
    world.publish()
    world.assert_published()


class Unsteady:
    """A sink of which an answer is lost now and then, after the commit or before it."""

    def __init__(self, sink: KafkaSink, seed: int) -> None:
        self.sink, self.random = sink, random.Random(seed)
        self.lost = 0

    def resume(self) -> EventId | None:
        self.sink.close()
        return self.sink.resume()

    def publish(self, events: Events) -> None:
        fate = self.random.random()
        if fate > 0.4:
            self.sink.publish(events)
        if fate < 0.7:
            self.lost += 1
            raise SinkAway("the answer was lost")

    def close(self) -> None:
        self.sink.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_lost_answers_lose_nothing_and_repeat_nothing(
    world: World, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.daemon.publisher.BACKOFF_S", (0.01, 0.01))
    world.commit(6)
    sink = Unsteady(world.sink(), seed)
    world.publish(sink, publish_events=9)
    assert sink.lost > 1
    world.assert_published()


def test_of_two_publishers_the_first_is_fenced_off(world: World) -> None:
    world.commit(4)
    first, second = world.sink(), world.sink()
    first.resume()
    first.publish(world.events[:3])
    assert second.resume() == world.events[2][0]
    second.publish(world.events[3:8])
    with pytest.raises(SinkAway):
        first.publish(world.events[3:8])
    with pytest.raises(BrokerError, match="Another daemon publishes to the topics"):
        first.resume()
    second.close()
    world.publish()
    world.assert_published()


def test_topics_of_another_store_are_refused(world: World, tmp_path: Path) -> None:
    world.commit(2).publish()
    with pytest.raises(BrokerError, match="hold what another store published"):
        world.sink(identity="another").resume()
    world.topics.delete(f"{world.topic}.progress")
    with pytest.raises(BrokerError, match=r"has records, but .*\.progress does not record their position"):
        world.sink().resume()


def test_an_older_copy_and_a_forgotten_log_are_refused(world: World) -> None:
    world.commit(2)
    sink = world.sink()
    sink.resume()
    sink.publish([((9, 0), world.events[0][1])])
    with pytest.raises(
        BrokerError, match="Version 9 was published, but the store is at 2: it is an older copy"
    ):
        world.publish(sink)


def test_forgotten_events_are_an_error(world: World) -> None:
    world.commit(2).publish()
    with Store.open(world.folder, CONFIG, events_max_bytes=1) as store:
        for _ in range(3):
            store.commit(world.toy.step())
    with pytest.raises(BrokerError, match="Events behind version 2 up to version 4 were forgotten before"):
        world.publish()


def test_versions_without_events_may_be_forgotten(world: World) -> None:
    world.commit(2).publish()
    with Store.open(world.folder, CONFIG, events_max_age_ms=1) as store:
        for _ in range(3):
            store.commit(dataclasses.replace(world.toy.step(), events=[]))
        assert len(list(store.rows("commits"))) == 1
    world.commit(1).publish()
    assert_published(world.topics, world.topic, COLLECTION, world.events)


def test_a_dead_letter_that_the_topic_does_not_take(world: World) -> None:
    world.topics.make(name=f"{world.topic}.dlq")
    world.commit(1, LETTERS)
    words = rf"The topic {world.topic}.dlq does not take a record of \d+ bytes: raise its max.message.bytes"
    with pytest.raises(BrokerError, match=words):
        world.publish(publish_events=1000)


def test_a_long_progress_topic_is_read_from_its_end(world: World) -> None:
    world.commit(3)
    world.publish(publish_events=1)
    sink = world.sink()
    sink.resume()
    for count in range(30):  # transactions that left marks only
        sink._producer.begin_transaction()
        sink._producer.send(sink.progress, b"%d" % count, b"toy", partition=0)
        sink._producer.flush()
        sink._producer.abort_transaction()
    assert sink.resume() == world.events[-1][0]
    sink.close()


@pytest.fixture
def restored(broker: Broker) -> Iterator[Broker]:
    yield broker
    if broker.is_running:
        broker.resume()
    else:
        broker.start()


def test_a_broker_that_is_killed_and_paused_while_publishing(
    world: World, restored: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.daemon.publisher.BACKOFF_S", (0.1, 0.5))
    world.commit(12, LETTERS[:1])
    out: list[EventId] = []

    class Counting:
        def __init__(self, sink: KafkaSink) -> None:
            self.resume, self.close, self._sink = sink.resume, sink.close, sink

        def publish(self, events: Events) -> None:
            self._sink.publish(events)
            out.append(events[-1][0])

    def some_more() -> None:
        wanted = len(out) + 3
        until(lambda: len(out) >= wanted, 120, pause_s=0.01)
        assert publishing.is_alive()  # what comes now disturbs it

    publishing = threading.Thread(
        target=world.publish, args=[Counting(world.sink())], kwargs={"publish_events": 2}
    )
    publishing.start()
    some_more()
    restored.kill()
    restored.start()
    some_more()
    restored.pause()
    time.sleep(2)
    restored.resume()
    some_more()
    restored.stop()
    restored.start()
    publishing.join(180)
    assert not publishing.is_alive()
    world.assert_published()
    assert out[0] > BEGIN
