"""Sources that are closed in the end, and a broker that may be disturbed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.broker import Broker
from tests.broker.topics import Topics
from tests.support.kafka import Open, Reading, settings_of


@pytest.fixture
def reading(broker: Broker) -> Iterator[Open]:
    """`reading(topic)` opens a source that is closed in the end."""
    opened: list[Reading] = []

    def make(topic: str, positions: dict[str, bytes] | None = None, **flags: Any) -> Reading:
        opened.append(Reading(settings_of(broker, topic, **flags), positions))
        return opened[-1]

    yield make
    for each in opened:
        each.source.close()


@pytest.fixture
def topics(broker: Broker) -> Topics:
    return Topics(broker.bootstrap)


@pytest.fixture
def restored(broker: Broker) -> Iterator[Broker]:
    """A broker that may be disturbed, and is there again afterwards."""
    yield broker
    if broker.is_running:
        broker.resume()
    else:
        broker.start()
