"""Incremental equals batch, to the bit, after any sequence of upserts, moves, deletes and restarts."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.collection.collection import Engine
from engine.config import Settings
from engine.model.linkage import LinkageModel
from engine.storage import schema
from tests.support.checks import check_calibration, check_plain_code, check_state
from tests.support.random_models import random_model
from tests.support.replica import Replica
from tests.support.sequences import KINDS, World, content, differences, empty_state, rebuilt, take

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = [(seed, KINDS[seed % len(KINDS)], 30 + 7 * (seed % 23)) for seed in range(40)]
LONG = [(seed, KINDS[seed % len(KINDS)], 20 + 11 * (seed % 41)) for seed in range(100, 290)]
DEEP = [(310, "chain"), (319, "lattice"), (324, "mixed")]
SHIPPED = [(seed, KINDS[seed % len(KINDS)], 40 + 9 * (seed % 7)) for seed in range(400, 408)]
SLOW_MOST = 120  # items up to which the plain code is asked too


@pytest.mark.parametrize(("seed", "kind", "scale"), SHORT)
def test_equal_to_a_rebuild(seed: int, kind: str, scale: int) -> None:
    play(seed, kind, scale)


@pytest.mark.long
@pytest.mark.parametrize(("seed", "kind", "scale"), LONG)
def test_equal_to_a_rebuild_in_many_sequences(seed: int, kind: str, scale: int) -> None:
    play(seed, kind, scale)


@pytest.mark.parametrize(("seed", "kind"), DEEP)
def test_equal_to_a_rebuild_with_three_levels(seed: int, kind: str) -> None:
    played = play(seed, kind, 200, every=2)
    assert len([count for count in played.links if count]) >= 3, played


@pytest.mark.parametrize("seed", range(320, 326))
def test_equal_to_a_rebuild_at_each_new_epoch(seed: int) -> None:
    """Also where most items were not touched by the batch that brought it."""
    played = play(seed, "drift", 140, LinkageModel.load() if seed % 2 else None, every=4)
    assert played.epochs_of_old >= 2, played


@pytest.mark.parametrize(("seed", "kind", "scale"), SHIPPED)
def test_equal_to_a_rebuild_with_the_shipped_weights(seed: int, kind: str, scale: int) -> None:
    play(seed, kind, scale, LinkageModel.load(), every=3)


@pytest.mark.parametrize("seed", [704, 708])
def test_equal_to_a_rebuild_of_supernodes_that_only_grow(seed: int) -> None:
    play(seed, "twins", 150, every=3)


@pytest.mark.parametrize(("seed", "scale"), [(500, 1500), (512, 500), (513, 500), (514, 500)])
def test_equal_to_a_rebuild_of_many_items(seed: int, scale: int) -> None:
    """So many that a batch leaves most alone: its effects end two or three steps away."""
    play(seed, "large", scale, every=4)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(501, 511))
def test_equal_to_a_rebuild_of_thousands(seed: int) -> None:
    model = LinkageModel.load() if seed % 3 == 0 else None
    play(seed, "large", 5000, model, every=4)


@dataclass
class Played:
    """What a sequence had in it."""

    links: list[int] = field(default_factory=list)  # the most at each level
    epochs_of_old: int = 0  # new epochs when nine in ten items were there before


def play(seed: int, kind: str, scale: int, model: Any = None, every: int = 1) -> Played:
    """Plays a sequence and compares after each `every`th batch, and at each new epoch."""
    rng = np.random.default_rng([seed, 1])
    model = model or random_model(seed, k=int(rng.choice([3, 5, 10])))
    world = World(seed, kind, scale, model)
    print(world)
    state, replica = empty_state(world, model), Replica()
    played = Played()
    for at, (batch, expected) in enumerate(world.batches()):
        change, applied = take(state, batch)
        where = f"batch {at} of {world}"
        assert {name: getattr(applied, name) for name in expected} == expected, where
        replica.apply(change)
        links = [level.links for level in state.hierarchy.levels]
        played.links = [max(pair) for pair in zip_longest(played.links, links, fillvalue=0)]
        renewed = applied.stats["recalibrated"]
        played.epochs_of_old += renewed and 10 * applied.inserted <= len(world.live)
        if at % every == 0 or renewed:
            parts = 1 if rng.random() < 0.7 else int(rng.integers(2, 6))
            other = rebuilt(world, model, state.calibration.epoch, parts)
            assert not differences(state.hierarchy, other.hierarchy), where
            check_calibration(state, other)
            check_state(state, world)
            replica.check(state)
            if len(world.live) <= SLOW_MOST and at % 3 == 0:
                check_plain_code(state, world, model)
    if kind == "large":
        assert len(world.live) >= scale
    return played


@pytest.mark.parametrize("seed", range(600, 605))
def test_a_restart_changes_nothing(tmp_path: Path, seed: int) -> None:
    restart(tmp_path, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(605, 630))
def test_a_restart_changes_nothing_in_many_sequences(tmp_path: Path, seed: int) -> None:
    restart(tmp_path, seed)


def restart(folder: Path, seed: int) -> None:
    """Two engines take the same batches, one of them closed and opened again between them."""
    rng = np.random.default_rng([seed, 2])
    model = random_model(seed, k=int(rng.choice([3, 5, 10])))
    world = World(seed, KINDS[seed % len(KINDS)], 100, model)
    print(world)
    steady, broken = (
        Engine.open(settings_of(folder / name, world), model, lambda: 1.0) for name in ("steady", "broken")
    )
    for at, (batch, _) in enumerate(world.batches()):
        where = f"batch {at} of {world}"
        steady.apply(batch)
        broken.apply(batch)
        compare(steady, broken, where)
        if rng.random() < 0.4:
            broken.close()
            broken = Engine.open(settings_of(folder / "broken", world), model, lambda: 1.0)
            compare(steady, broken, where)
    steady.close()
    broken.close()


@pytest.mark.parametrize("seed", range(640, 645))
def test_all_but_the_lists_follows_from_them(tmp_path: Path, seed: int) -> None:
    """With HNSW too, whose lists are history: opened again, all levels are the same to the bit."""
    model = random_model(seed, k=5)
    world = World(seed, ("mixed", "twins", "tides", "drift", "herds")[seed % 5], 200, model)
    settings = settings_of(tmp_path, world, index="hnsw")
    engine = Engine.open(settings, model)
    for at, (batch, _) in enumerate(world.batches()):
        engine.apply(batch)
        if at % 4 == 3:
            before = [content(level) for level in engine.state.hierarchy.levels]
            check_state(engine.state, world)
            engine.close()
            engine = Engine.open(settings, model)
            after = [content(level) for level in engine.state.hierarchy.levels]
            np.testing.assert_equal(after, before, f"batch {at} of {world}")
    engine.close()


def settings_of(path: Path, world: World, index: str = "exact") -> Settings:
    shape = world.shape
    return Settings.model_validate(
        {
            "collection": {"dim": shape.dim},
            "store": {"path": path},
            "index": {"kind": index},
            "model": {"tau": shape.tau, "base_tau": shape.base_tau, "max_levels": shape.max_levels},
            "limits": {"slack": shape.base_width - shape.k},
        }
    )


def compare(steady: Engine, broken: Engine, where: str) -> None:
    """State, names, and everything stored, events among it, are the same to the bit."""
    assert not differences(steady.state.hierarchy, broken.state.hierarchy), where
    assert names(steady) == names(broken), where
    assert steady.state.calibration.epoch == broken.state.calibration.epoch, where
    check_calibration(steady.state, broken.state)
    for table in schema.TABLES:
        rows = ([row for row in e.store.rows(table) if row[0] != b"identity"] for e in (steady, broken))
        assert next(rows) == next(rows), f"{table}, {where}"


def names(engine: Engine) -> dict[str, int]:
    keys, clusters = engine.labels()
    return dict(zip(keys, clusters.tolist(), strict=True))
