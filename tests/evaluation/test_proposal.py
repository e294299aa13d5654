"""Strata of pairs, and the pairs that are proposed: both against plain recomputation."""

from __future__ import annotations

import numpy as np
import pytest

from engine.evaluation.granularity import APART, Tree, tree_of
from engine.evaluation.proposal import FINEST_SHARE, allocated, propose

TAUS = [0.1, 0.3, 0.5]


def random_tree(seed: int, n: int = 40) -> tuple[Tree, np.ndarray]:
    """A tree of three partitions of which not each is within the next coarser one."""
    rng = np.random.default_rng(seed)
    clusters = np.stack([rng.integers(0, most, n) for most in (2, 3, 4)])
    clusters[:, : n // 2] = np.stack([np.arange(n // 2) // size for size in (10, 5, 2)])
    return tree_of(TAUS, clusters), clusters


@pytest.mark.parametrize("seed", range(5))
def test_a_pair_is_in_the_stratum_up_to_which_it_is_together(seed: int) -> None:
    tree, clusters = random_tree(seed)
    first, second = np.triu_indices(clusters.shape[1], 1)
    for one, other, stratum in zip(first, second, tree.strata(first, second), strict=True):
        together = clusters[:, one] == clusters[:, other]
        expected = APART if not together[0] else int(np.argmin([*together, False])) - 1
        assert stratum == expected, f"{seed=}"
    gains = np.zeros_like(tree.gains)
    strata = tree.strata(first, second)
    for side in (first, second):
        kept = strata >= 0
        np.add.at(gains, (strata[kept], side[kept]), 1)
    assert np.array_equal(gains, tree.gains)


@pytest.mark.parametrize("seed", range(5))
def test_proposed_pairs_are_different_and_of_their_stratum(seed: int) -> None:
    tree, _ = random_tree(seed)
    found = propose(tree, 20, np.random.default_rng(seed))
    assert len(found.first) == 20
    assert (found.first < found.second).all()
    assert len({*zip(found.first.tolist(), found.second.tolist(), strict=True)}) == 20
    assert np.array_equal(tree.strata(found.first, found.second), found.strata), f"{seed=}"
    assert set(found.strata.tolist()) == {0, 1, 2}


def test_drawn_pairs_weigh_what_they_weigh_in_precision() -> None:
    """In a stratum the share of a cluster's pairs is that of its items' gains over sizes."""
    clusters = np.stack([np.repeat([0, 1], [10, 30]), np.arange(40)])
    tree = tree_of([0.2, 0.8], clusters)
    shares = []
    for seed in range(30):
        found = propose(tree, 40, np.random.default_rng(seed))
        shares.append((found.first < 10).mean())
    exact = 10 * 0.9 / (10 * 0.9 + 30 * 29 / 30)
    assert np.mean(shares) == pytest.approx(exact, abs=0.02)


def test_there_may_be_no_pair_or_few() -> None:
    same = tree_of(TAUS, np.stack([np.repeat([0, 1], 3)] * 3))
    assert len(propose(same, 10, np.random.default_rng(0)).first) == 0
    few = tree_of(TAUS, np.array([[0, 0, 0], [0, 0, 1], [0, 1, 2]]))
    assert len(propose(few, 10, np.random.default_rng(0)).first) == 3


def test_pairs_are_allotted_by_the_root_of_the_share() -> None:
    shares = np.array([0.16, 0.04, 0.0, 0.9])
    found = allocated(shares, 100)
    assert found.sum() == 100
    assert found.tolist() == [60, 30, 0, round(100 * FINEST_SHARE)]
    assert allocated(np.zeros(3), 10).tolist() == [0, 0, 0]
