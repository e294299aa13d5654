"""`shoal serve` from topic to topics, through what happens to a broker; kills are in `test_faults`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.collection.collection import Engine
from engine.errors import BrokerError
from engine.storage import schema
from engine.storage.schema import PLACE
from engine.types import DeadLetter
from tests.broker import Broker
from tests.broker.daemon import Daemon
from tests.broker.published import assert_published, last_assignments
from tests.broker.topics import Sent, Topics, document, until
from tests.support import warm_python
from tests.support.sequences import World, differences, rebuilt

DIM, SEED = 8, 5
COLLECTION = "kafka-test"


@pytest.fixture
def topics(broker: Broker) -> Topics:
    return Topics(broker.bootstrap)


@contextmanager
def serving(daemon: Daemon) -> Iterator[Daemon]:
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.kill()


class Load:
    """Records drawn from a seed, and what has to be left of them."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(SEED)
        self.centres = self.rng.normal(size=(10, DIM))
        self.live: dict[bytes, Any] = {}
        self.poisoned: list[bytes] = []

    def draw(self, count: int) -> list[Sent]:
        return [self._one() for _ in range(count)]

    def _one(self) -> Sent:
        key, dice = b"k%d" % self.rng.integers(200), self.rng.random()
        if dice < 0.1:
            self.live.pop(key, None)
            return Sent(key, None)
        if dice < 0.13:
            self.poisoned.append(b"%d is no embedding" % len(self.poisoned))
            return Sent(key, self.poisoned[-1])
        self.live[key] = self.centres[self.rng.integers(10)] + 0.3 * self.rng.normal(size=DIM)
        return Sent(key, document(self.live[key], payload={"seed": SEED}))


def settings_of(daemon: Daemon, model: Path) -> Any:
    from engine import config

    flags = {"store.path": str(daemon.store), "collection.name": COLLECTION, "index.kind": "exact"}
    return config.load(None, {**flags, "model.path": str(model)})


def compare(daemon: Daemon, topics: Topics, model: Path, load: Load) -> None:
    """The store holds what was sent, clustered as a rebuild at its epoch; the topics hold its event log."""
    with Engine.open(settings_of(daemon, model)) as engine:
        state, store = engine.state, engine.store
        world = World(SEED, "mixed", 10, engine.model)
        world.shape = state.hierarchy.shape
        world.live = {key: world.grid([vector])[0] for key, vector in load.live.items()}
        other = rebuilt(world, engine.model, state.calibration.epoch)
        assert differences(state.hierarchy, other.hierarchy) == [], f"{SEED=}"
        events = [(PLACE.unpack(key), schema.unpack_event(body)) for key, body in store.rows("events")]
        keys, clusters = engine.labels()
    assert_published(topics, daemon.topic, COLLECTION, events)
    held = dict(zip(map(str.encode, keys), clusters.tolist(), strict=True))
    assert last_assignments(topics, daemon.topic) == held
    letters = [event.value for _, event in events if isinstance(event, DeadLetter)]
    assert sorted(letters, key=repr) == sorted(load.poisoned)


def test_the_whole_way_through_what_happens_to_a_broker(
    broker: Broker, topics: Topics, model: Path, tmp_path: Path
) -> None:
    topic = topics.make(2)
    load = Load()
    topics.produce(topic, load.draw(300))
    daemon = Daemon(
        tmp_path,
        broker.bootstrap,
        topic,
        warm_python.executable(),
        collection__name=COLLECTION,
        index__kind="exact",
        model__path=model,
        batch__max=64,
        limits__discovery_interval_s=0.5,
    )
    with serving(daemon):
        until(daemon.is_through, 120)
        topics.produce(topic, load.draw(300))
        broker.kill()
        threading.Event().wait(1)
        broker.start()
        topics.produce(topic, load.draw(100))
        until(daemon.is_through, 120)
        broker.pause()
        threading.Event().wait(2)
        broker.resume()
        topics.produce(topic, load.draw(100))
        until(daemon.is_through, 120)
        topics.add_partitions(topic, 3)
        fresh = [Sent(b"new %d" % i, document(load.centres[i]), partition=2) for i in range(10)]
        until(lambda: topics.produce(topic, fresh) is None, 120)
        load.live |= {sent.key or b"": load.centres[i] for i, sent in enumerate(fresh)}
        until(daemon.is_through, 120)
        assert daemon.stop() == 0
        compare(daemon, topics, model, load)
        topics.delete(topic)
        topics.make(name=topic)
        daemon.start(wait=False)
        assert daemon.ended(120) == BrokerError.exit_code
        assert f"The topic {topic} was deleted and made again" in daemon.told()


def test_a_topic_that_does_not_exist_ends_the_daemon_with_a_sentence(
    broker: Broker, model: Path, tmp_path: Path
) -> None:
    daemon = Daemon(tmp_path, broker.bootstrap, "no-such-topic", warm_python.executable(), model__path=model)
    try:
        daemon.start(wait=False)
        assert daemon.ended(120) == BrokerError.exit_code
        assert "The topic no-such-topic at" in daemon.told().splitlines()[-1]
    finally:
        daemon.kill()
