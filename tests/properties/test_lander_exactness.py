"""Incremental equals batch, to the bit, with `lander`, which reads the vectors themselves."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from engine.types import Epoch
from tests.support.checks import check_plain_code, check_state
from tests.support.random_models import random_lander
from tests.support.replica import Replica
from tests.support.sequences import KINDS, World, differences, empty_state, rebuilt, take

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = [(seed, KINDS[seed % len(KINDS)], 30 + 7 * (seed % 13)) for seed in range(12)]
LONG = [(seed, KINDS[seed % len(KINDS)], 20 + 11 * (seed % 41)) for seed in range(100, 180)]
SLOW_MOST = 100  # items up to which the plain code is asked too


@pytest.mark.parametrize(("seed", "kind", "scale"), SHORT)
def test_equal_to_a_rebuild(seed: int, kind: str, scale: int) -> None:
    play(seed, kind, scale, every=2)


@pytest.mark.parametrize("seed", [200, 201])
def test_equal_to_a_rebuild_of_many_items(seed: int) -> None:
    """So many that a batch leaves most alone: its effects end a few steps away."""
    play(seed, "large", 500, every=4)


@pytest.mark.long
@pytest.mark.parametrize(("seed", "kind", "scale"), LONG)
def test_equal_to_a_rebuild_in_many_sequences(seed: int, kind: str, scale: int) -> None:
    play(seed, kind, scale)


def play(seed: int, kind: str, scale: int, every: int = 1) -> None:
    """Plays a sequence and compares after each `every`th batch, and at each new epoch."""
    rng = np.random.default_rng([seed, 5])
    k = 3 if kind == "large" else int(rng.choice([3, 5, 10]))
    world = World(seed, kind, scale, SimpleNamespace(k=k, default_epoch=Epoch(0.0, 1.0, 0)))
    variant, average = ("mean", "gat")[seed % 2], bool(rng.random() < 0.8)
    model = random_lander(seed, world.shape.dim, k, variant=variant, average=average, heads=1 + seed % 3)
    print(world, model.card)
    state, replica = empty_state(world, model), Replica()
    for at, (batch, _) in enumerate(world.batches()):
        change, applied = take(state, batch)
        replica.apply(change)
        if at % every == 0 or applied.stats["recalibrated"]:
            other = rebuilt(world, model, state.calibration.epoch)
            assert not differences(state.hierarchy, other.hierarchy), f"batch {at} of {world}"
            check_state(state, world)
            replica.check(state)
            if len(world.live) <= SLOW_MOST and at % 3 == 0:
                check_plain_code(state, world, model)
