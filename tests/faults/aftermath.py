"""What a daemon stored and published, compared with what was sent to it."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine import config
from engine.collection.build import shape_of
from engine.collection.collection import Engine
from engine.storage import schema
from engine.storage.schema import PLACE
from engine.types import DeadLetter
from engine.vectors import quantize
from tests.broker.published import assert_published, last_assignments
from tests.broker.topics import Topics
from tests.faults.judge import Wrong
from tests.faults.topic import replay
from tests.support.checks import check_state
from tests.support.sequences import World, differences, rebuilt

if TYPE_CHECKING:
    from tests.faults.serving import Load


def compare(settings: Path, topics: Topics, topic: str, load: Load) -> None:
    """Of each key the last, clustered as a rebuild would; each event published once. Raises Wrong."""
    chosen = config.load(settings)
    with Engine.open(chosen) as engine:
        try:
            _compare(engine, topics, topic, load)
        except AssertionError as difference:
            where = traceback.extract_tb(difference.__traceback__)[-1]
            raise Wrong(f"{where.filename}:{where.lineno}: {where.line} {difference}") from difference


def _compare(engine: Engine, topics: Topics, topic: str, load: Load) -> None:
    store, state = engine.store, engine.state
    world = World(0, "mixed", 10, engine.model)
    assert engine.dim
    world.shape = shape_of(engine.settings, engine.model, engine.dim)
    grid, bad = quantize(np.stack(list(load.live.values())))
    assert not bad
    world.live = dict(zip(load.live, grid, strict=True))
    check_state(state, world)
    other = rebuilt(world, engine.model, state.calibration.epoch)
    wrong = differences(state.hierarchy, other.hierarchy)
    assert not wrong, wrong

    rows = list(store.rows("events"))
    events = [(PLACE.unpack(key), schema.unpack_event(body)) for key, body in rows]
    assert_published(topics, topic, engine.settings.collection.name, events)
    keys, clusters = engine.labels()
    held = dict(zip(map(str.encode, keys), clusters.tolist(), strict=True))
    assert last_assignments(topics, topic) == held, "the topic's last assignments are not the store's"
    assert replay([], store) == held, "the event log does not lead to the store's assignments"
    letters = [event.value for _, event in events if isinstance(event, DeadLetter)]
    assert sorted(letters, key=repr) == sorted(load.poisoned, key=repr), "other dead letters than were sent"
