"""A rebuild of a live collection: what a rebuild at rest would give, whatever came meanwhile."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from engine.collection import live as live_module
from engine.collection.check import check
from engine.collection.collection import Engine
from engine.collection.rebuild import Generation, rebuild_store
from engine.config import Settings
from engine.errors import ConfigMismatch, InputError, StoreFull
from engine.storage import schema
from engine.types import Assignment
from tests.properties.test_exactness import settings_of
from tests.support import collections
from tests.support.checks import check_state
from tests.support.random_models import random_model
from tests.support.sequences import KINDS, World, differences, rebuilt

pytestmark = pytest.mark.usefixtures("one_thread")

OTHER_BASE_TAUS = (0.4, None, 0.9)  # not those of `World`


class Meanwhile:
    """Batches that are applied at certain moments of a rebuild: while its items are clustered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, work: object) -> None:
        real = Generation.take

        def take(*arguments: object, **more: object) -> None:
            real(*arguments, **more)
            work()  # type: ignore[operator]

        monkeypatch.setattr(Generation, "take", take)


@pytest.mark.parametrize("seed", range(800, 808))
def test_equal_to_a_rebuild_at_rest(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(tmp_path, seed, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(808, 860))
def test_equal_to_a_rebuild_at_rest_in_many_sequences(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(tmp_path, seed, monkeypatch)


def compare(folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another model and another tau of level 0: partition and items are those of a new clustering at the same
    epoch; names follow their members."""
    rng = np.random.default_rng([seed, 6])
    model, other = random_model(seed, k=5), random_model(seed + 1, k=5)
    world = World(seed, KINDS[seed % len(KINDS)], 80, model)
    print(world)
    monkeypatch.setattr(live_module, "FEW", 5)
    batches = iter([batch for batch, _ in world.batches()])
    live: list[object] = []
    engine = Engine.open(settings_of(folder / "live", world), model, lambda: 1.0)

    def some(most: int) -> None:
        for _ in range(int(rng.integers(most))):
            batch = next(batches, None)
            if batch is not None:
                engine.apply(batch)
                live.append(batch)

    some(12)
    if engine._state is None or not len(engine):
        return
    world.shape = replace(world.shape, base_tau=OTHER_BASE_TAUS[seed % 3])
    settings = settings_of(folder / "live", world)
    locked = engine._lock

    def meanwhile() -> None:
        if not locked._is_owned():  # type: ignore[attr-defined]
            some(3)

    Meanwhile(monkeypatch, meanwhile)
    made = engine.rebuild(settings, other)
    assert made.version == engine.version
    assert engine.state.hierarchy.model is other
    some(4)
    for batch in batches:
        engine.apply(batch)
    check_state(engine.state, world)
    replay(engine)
    state = engine.state
    scratch = rebuilt(world, other, state.calibration.epoch)
    assert not differences(state.hierarchy, scratch.hierarchy)
    engine.close()
    with Engine.open(settings, other, lambda: 1.0) as again:
        assert not differences(again.state.hierarchy, scratch.hierarchy)
    with pytest.raises(ConfigMismatch):
        Engine.open(settings, model)


def replay(engine: Engine) -> None:
    """Whoever follows the events has what the store has."""
    last: dict[bytes, int] = {}
    for _, body in engine.store.rows("events"):
        event = schema.unpack_event(body)
        if isinstance(event, Assignment):
            last[event.key] = event.cluster
    keys, clusters = engine.labels()
    assert {key: at for key, at in last.items() if at} == dict(
        zip(map(str.encode, keys), clusters.tolist(), strict=True)
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    random_model(7).save(path)
    return path


def opened(path: Path, weights: Path, tau: float) -> Settings:
    return Settings.model_validate(
        {"store": {"path": path}, "index": {"kind": "exact"}, "model": {"path": weights, "tau": tau}}
    )


draw = partial(collections.draw, groups=20, dim=6, spread=0.1)


def test_the_same_as_at_rest_to_the_bit_when_nothing_comes(tmp_path: Path, weights: Path) -> None:
    tables = []
    for name in ("live", "rest"):
        settings = opened(tmp_path / name, weights, 0.3)
        with Engine.open(settings, clock=lambda: 2.0) as engine:
            engine.upsert([f"k{i}" for i in range(300)], draw(2, 300))
            engine.delete([f"k{i}" for i in range(0, 300, 9)])
            if name == "live":
                live = engine.rebuild(opened(tmp_path / name, weights, 0.6))
        if name == "rest":
            assert rebuild_store(opened(tmp_path / name, weights, 0.6), clock=lambda: 2.0) == live
        with Engine.open(opened(tmp_path / name, weights, 0.6), clock=lambda: 2.0) as engine:
            rows = {table: list(engine.store.rows(table)) for table in schema.TABLES}
            rows["meta"] = [row for row in rows["meta"] if row[0] != b"identity"]
            tables.append(rows)
    assert tables[0] == tables[1]


@pytest.mark.process
def test_batches_and_questions_go_on_from_other_threads(tmp_path: Path, weights: Path) -> None:
    """Really beside each other; the store is good afterwards in everything that `check` looks at."""
    settings = opened(tmp_path / "store", weights, 0.3)
    with Engine.open(settings) as engine:
        engine.upsert([f"k{i}" for i in range(3_000)], draw(3, 3_000))
        done: list[object] = []
        thread = threading.Thread(
            target=lambda: done.append(engine.rebuild(opened(tmp_path / "store", weights, 0.6)))
        )
        thread.start()
        at, asked = 0, 0
        while thread.is_alive():
            engine.upsert([f"k{at + i}" for i in range(20)], draw(100 + at, 20))
            engine.delete([f"k{at + 1}"])
            asked += len(engine.assign(draw(5, 2)))
            at += 20
        thread.join()
        assert done
        assert asked > 0
        assert engine.settings.model.tau == 0.6
        replay(engine)
    report = check(opened(tmp_path / "store", weights, 0.6), 0)
    assert report.findings == report.not_looked_at == []


def test_an_empty_collection_is_not_rebuilt(tmp_path: Path, weights: Path) -> None:
    with (
        Engine.open(opened(tmp_path / "store", weights, 0.3)) as engine,
        pytest.raises(InputError, match="empty"),
    ):
        engine.rebuild(engine.settings)


def test_a_rebuild_without_room_leaves_the_engine_as_it_was(tmp_path: Path) -> None:
    settings = Settings.model_validate({"store": {"path": tmp_path}, "index": {"kind": "exact"}})
    with Engine.open(settings, random_model(3)) as engine:
        engine.upsert([f"k{i}" for i in range(20)], np.random.default_rng(1).normal(size=(20, 6)))
        before = dict(zip(*engine.labels(), strict=True))
        free = engine.store._limits.free_bytes
        object.__setattr__(engine.store._limits, "free_bytes", 1 << 60)
        with pytest.raises(StoreFull, match="make room"):
            engine.rebuild(settings, random_model(3))
        object.__setattr__(engine.store._limits, "free_bytes", free)
        assert dict(zip(*engine.labels(), strict=True)) == before
        assert engine.rebuild(settings, random_model(3)).version == 2
