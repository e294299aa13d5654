"""The calibration against plain statistics over all pairs, and when its epoch changes."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from engine.clustering.calibration import DRIFT, LEAST_ITEMS, Calibration, sum_and_gram
from engine.types import Epoch, Int16
from engine.vectors import DOT_SCALE, quantize

pytestmark = pytest.mark.usefixtures("one_thread")
CARD = Epoch(0.1, 0.2, 0)


def draw(seed: int, count: int, dim: int = 8, shift: float = 0.5) -> Int16:
    return quantize(np.random.default_rng(seed).normal(size=(count, dim)) + shift)[0]


def of(grid: Int16, epoch: Epoch | None = None, checked: int = 0) -> Calibration:
    calibration = Calibration(grid.shape[1], CARD)
    calibration.epoch, calibration.checked = epoch or CARD, checked
    calibration.add(grid)
    return calibration


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dim", [1, 3, 64])
def test_measures_mean_and_deviation_over_all_pairs(seed: int, dim: int) -> None:
    grid = draw(seed, 2 + 17 * seed, dim)
    wide = grid.astype(np.int64)
    similarity = [int(a @ b) / DOT_SCALE for a, b in combinations(wide, 2)]
    measured = of(grid).measure()
    assert measured.items == len(grid)
    assert measured.mean == pytest.approx(np.mean(similarity), abs=1e-12)
    assert measured.deviation == pytest.approx(np.std(similarity), abs=1e-7)


def test_equal_vectors_have_no_deviation() -> None:
    grid = np.repeat(draw(1, 1), 50, axis=0)
    measured = of(grid).measure()
    assert measured.mean == pytest.approx(1.0, abs=1e-3)
    assert measured.deviation == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_depends_on_the_live_items_alone(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, whatever came and went, in whatever order and parts, however many were added up at once."""
    monkeypatch.setattr("engine.clustering.calibration.PENDING", 60 * seed)
    rng = np.random.default_rng(seed)
    kept, passing = draw(seed, 200), draw(seed + 100, 150)
    wandering = Calibration(kept.shape[1], CARD)
    for part in np.array_split(rng.permutation(np.concatenate([kept, passing])), 7):
        wandering.add(part)
    for part in np.array_split(rng.permutation(passing), 3):
        wandering.add(part, sign=-1)
    straight = of(kept)
    assert wandering.measure() == straight.measure()
    assert np.array_equal(wandering._total, straight._total)
    assert np.array_equal(wandering._gram, straight._gram)
    wandering.add(kept, sign=-1)
    wandering.add_up()
    assert wandering.items == wandering._excess == wandering._excess_squared == 0
    assert not wandering._total.any()
    assert not wandering._gram.any()


def test_below_sixteen_items_the_card_serves() -> None:
    calibration = of(draw(2, LEAST_ITEMS - 1))
    assert not calibration.advance()
    assert calibration.epoch == CARD
    calibration.add(draw(3, 1))
    assert calibration.advance()
    assert calibration.epoch == calibration.measure()
    assert calibration.checked == LEAST_ITEMS


def test_goes_back_to_the_card_when_nearly_all_are_gone() -> None:
    grid = draw(4, 40)
    calibration = of(grid)
    assert calibration.advance()
    calibration.add(grid[15:], sign=-1)
    assert calibration.advance()
    assert calibration.epoch == CARD
    assert not calibration.advance()
    calibration.add(grid[15:])
    assert calibration.advance()
    assert calibration.epoch == of(grid).measure()


def checks(counts: list[int]) -> list[int]:
    """The live counts at which the collection is looked at, of growing or shrinking through these."""
    calibration = Calibration(1, CARD)
    seen = []
    for items in counts:
        calibration.items = items
        if calibration._due():
            seen.append(items)
            calibration.checked = items
    return seen


def test_looks_at_powers_of_two_and_then_at_each_quarter() -> None:
    assert checks([*range(1, 8001)]) == [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 5120, 6400, 8000]


def test_looks_after_each_quarter_lost() -> None:
    assert checks([1000, *range(999, 100, -1)]) == [1000, 750, 562, 421, 315, 236, 177, 132]


def test_a_batch_that_passes_a_power_of_two_is_looked_at_once() -> None:
    assert checks([10, 100, 127, 128, 200, 5000, 6000, 6250]) == [100, 128, 5000, 6250]


@pytest.mark.parametrize(
    ("mean", "deviation", "begins"),
    [(0.99, 0.0, False), (1.01, 0.0, True), (-1.01, 0.0, True), (0.0, 0.99, False), (0.0, 1.01, True)],
)
def test_a_drift_beyond_a_tenth_of_the_deviation_begins_an_epoch(
    mean: float, deviation: float, begins: bool
) -> None:
    grid = draw(5, 64)
    now = of(grid).measure()
    before = now.deviation / (1 - DRIFT * deviation)  # the epoch's deviation, not today's, is the scale
    epoch = Epoch(now.mean - DRIFT * mean * before, before, 32)
    calibration = of(grid, epoch, checked=32)
    assert calibration.advance() is begins
    assert calibration.epoch == (now if begins else epoch)
    assert calibration.checked == 64  # looked at, whatever came of it


def test_the_scale_of_a_drift_has_a_floor() -> None:
    """Without it a collection of copies would start an epoch with every rounding."""
    grid = np.repeat(draw(6, 1), 32, axis=0)
    now = of(grid).measure()
    near, far = (Epoch(now.mean - share * DRIFT * 2.0**-10, 0.0, 16) for share in (0.9, 1.1))
    assert not of(grid, near, checked=16).advance()
    assert of(grid, far, checked=16).advance()


def test_a_rebuild_begins_an_epoch_whatever_the_drift() -> None:
    grid = draw(9, 30)
    now = of(grid).measure()
    calibration = of(grid, Epoch(now.mean + 1e-6, now.deviation, 30), checked=30)
    calibration.begin()
    assert calibration.epoch == now
    assert calibration.checked == 30
    few = of(grid[:10], now, checked=30)
    few.begin()
    assert few.epoch == CARD
    assert few.checked == 0


def test_sum_and_gram_are_exact_across_blocks() -> None:
    grid, _ = quantize(np.random.default_rng(0).normal(size=((1 << 16) + 5, 2)) + 3.0)
    total, gram = sum_and_gram(grid)
    wide = grid.astype(np.int64)
    assert total.tolist() == wide.sum(axis=0).tolist()
    assert gram.tolist() == (wide.T @ wide).tolist()
