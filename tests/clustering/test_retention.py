"""Retention: what is too old or too much is deleted as by anybody, oldest event first, a part at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.collection.collection import Engine
from engine.config import Settings
from engine.model.linkage import LinkageModel
from engine.storage import schema
from engine.types import Assignment
from tests.support.random_models import random_model

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:row .* is before 1990"),  # clocks here begin at 0
]
DIM = 4


@pytest.fixture(scope="module")
def weights() -> LinkageModel:
    return random_model(7)


class Clock:
    """Stands still until it is set."""

    seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


def opened(path: Path, weights: LinkageModel, clock: Clock, most: int = 1_000, **kept: float) -> Engine:
    settings = Settings.model_validate(
        {
            "store": {"path": path},
            "index": {"kind": "exact"},
            "retention": kept,
            "limits": {"expire_items": most},
        }
    )
    return Engine.open(settings, weights, clock)


def put(engine: Engine, *keys: str, at_s: float | list[float]) -> object:
    times = (np.broadcast_to(at_s, len(keys)) * 1000).astype("datetime64[ms]")
    seed = sum(map(ord, "".join(keys)))
    return engine.upsert(keys, np.random.default_rng(seed).normal(size=(len(keys), DIM)), times)


def held(engine: Engine) -> set[str]:
    return set(engine.labels()[0])


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    return tmp_path / "store"


def test_items_go_when_their_event_is_too_old(path: Path, weights: LinkageModel, clock: Clock) -> None:
    with opened(path, weights, clock, max_age_s=100) as engine:
        put(engine, "a", "b", "c", at_s=[900, 950, 990])
        assert held(engine) == {"a", "b", "c"}
        clock.seconds = 1_000.5
        applied = put(engine, "d", at_s=1_000)
        assert (applied.expired, applied.deleted, applied.inserted) == (1, 0, 1)
        assert held(engine) == {"b", "c", "d"}
        clock.seconds = 1_060
        assert engine.expire().expired == 1  # also while nothing comes
        assert engine.expire() is None
        assert held(engine) == {"c", "d"}


def test_an_event_of_a_known_item_keeps_it(path: Path, weights: LinkageModel, clock: Clock) -> None:
    with opened(path, weights, clock, max_age_s=100) as engine:
        put(engine, "a", at_s=900)
        put(engine, "b", at_s=900)
        put(engine, "a", at_s=990)  # the same vector
        clock.seconds = 1_010
        put(engine, "b", at_s=1_005)  # due in this batch, but in it itself
        assert engine.expire() is None
        assert held(engine) == {"a", "b"}


def test_the_oldest_go_when_there_are_too_many(path: Path, weights: LinkageModel, clock: Clock) -> None:
    with opened(path, weights, clock, max_items=3) as engine:
        put(engine, "e", "a", "d", "b", "c", at_s=[5, 1, 4, 2, 3])
        assert held(engine) == set("abcde")  # those of the batch itself stay for now
        assert engine.expire().expired == 2
        assert held(engine) == set("cde")
        put(engine, "f", at_s=0)  # makes room for itself, then is the oldest
        assert held(engine) == set("def")
        put(engine, "g", "h", at_s=9)
        assert held(engine) == set("egh")


def test_equal_times_go_in_the_order_of_first_sight(path: Path, weights: LinkageModel, clock: Clock) -> None:
    with opened(path, weights, clock, max_items=2) as engine:
        put(engine, "z", "y", "x", "w", at_s=7)
        engine.expire()
        assert held(engine) == {"x", "w"}


def test_a_bounded_part_goes_at_a_time(path: Path, weights: LinkageModel, clock: Clock) -> None:
    with opened(path, weights, clock, most=4, max_age_s=100) as engine:
        put(engine, *(f"k{i:02}" for i in range(11)), at_s=list(range(990, 1001)))
        clock.seconds = 2_000
        counts = []
        while applied := engine.expire():
            counts.append(applied.expired)
            assert min(held(engine), default="") in ("", f"k{sum(counts):02}")  # oldest first
        assert counts == [4, 4, 3]


def test_deletes_by_retention_are_events(path: Path, weights: LinkageModel, clock: Clock) -> None:
    """Whoever follows the log has what the store has."""
    with opened(path, weights, clock, max_items=20, max_age_s=500) as engine:
        rng = np.random.default_rng(4)
        for _ in range(12):
            clock.seconds += 40
            put(engine, *(f"k{i}" for i in rng.integers(60, size=8)), at_s=clock.seconds)
        assert len(engine) <= 20
        last: dict[bytes, int] = {}
        for _, body in engine.store.rows("events"):
            event = schema.unpack_event(body)
            if isinstance(event, Assignment):
                last[event.key] = event.cluster
        keys, clusters = engine.labels()
        assert {key: at for key, at in last.items() if at} == dict(
            zip(map(str.encode, keys), clusters.tolist(), strict=True)
        )


def test_times_come_back_after_a_restart(path: Path, weights: LinkageModel, clock: Clock) -> None:
    with opened(path, weights, clock) as engine:
        put(engine, "a", "b", at_s=[10, 20])
        put(engine, "a", at_s=30)
    with opened(path, weights, clock, max_items=1) as engine:
        assert engine.expire().expired == 1
        assert held(engine) == {"a"}


def test_the_same_batches_and_clock_give_the_same_store(
    tmp_path: Path, weights: LinkageModel, clock: Clock
) -> None:
    tables = []
    for name in ("one", "two"):
        clock.seconds = 1_000
        with opened(tmp_path / name, weights, clock, max_items=15, max_age_s=200) as engine:
            rng = np.random.default_rng(8)
            for _ in range(10):
                clock.seconds += 50
                put(engine, *(f"k{i}" for i in rng.integers(40, size=6)), at_s=clock.seconds)
                engine.expire()
            tables.append([list(engine.store.rows(table)) for table in ("items", "events", "commits")])
    assert tables[0] == tables[1]
