"""Pairs worth judging: together at some taus and apart at others.

Each stratum (see `granularity`) gets judgements by the root of its share of the clusters, so that none is
without. Within a stratum pairs are drawn in proportion to what they weigh in BCubed precision, at even
distances along the tree: they spread over the clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.evaluation.granularity import Tree
from engine.types import Float64, Int64

FINEST_SHARE = 0.1  # of the pairs: those that are together at all taus
DECIDE_MIN = 10  # judged pairs that tell taus apart, at least
PROPOSED_MAX = 10_000
_TRIES = 10  # rounds, until enough different pairs are drawn


@dataclass(frozen=True, slots=True)
class Proposal:
    """Pairs of items, by row. In any order: the first ones spread as all do."""

    first: Int64  # (m,)
    second: Int64
    strata: Int64
    stands_for: Float64  # items that a pair stands for: the stratum's share of the clusters, over its pairs


def propose(tree: Tree, count: int, rng: np.random.Generator) -> Proposal:
    """Draw at most `count` pairs worth judging; fewer where there are no more."""
    found: dict[tuple[int, int], int] = {}
    for _ in range(_TRIES):
        for stratum, some in enumerate(allocated(tree.shares, count - len(found)).tolist()):
            for one, other in _drawn(tree, stratum, some, rng):
                found.setdefault((min(one, other), max(one, other)), stratum)
        if len(found) >= count:
            break
    if not found:
        none = np.empty(0, np.int64)
        return Proposal(none, none, none, np.empty(0))
    rows = rng.permutation(len(found))[:count]
    first, second = np.array(list(found), np.int64)[rows].T
    strata = np.array(list(found.values()), np.int64)[rows]
    stands_for = tree.shares * len(tree.order) / np.maximum(np.bincount(strata, minlength=len(tree.taus)), 1)
    return Proposal(first, second, strata, stands_for[strata])


def allocated(shares: Float64, count: int) -> Int64:
    """Pairs for each stratum (T,), `count` in all: by the root of its share; the finest gets its own."""
    weights = np.sqrt(shares)
    weights[-1] = 0.0
    if not weights.any():
        return np.zeros(len(shares), np.int64)
    finest = FINEST_SHARE if shares[-1] > 0 else 0.0
    weights *= (1.0 - finest) / weights.sum()
    weights[-1] = finest
    whole: Int64 = np.floor(weights * count).astype(np.int64)
    rest = np.argsort(whole - weights * count, kind="stable")[: count - int(whole.sum())]
    whole[rest] += 1
    return whole


def _drawn(tree: Tree, stratum: int, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Pairs of a stratum: items at even distances of weight along the tree, each with any partner."""
    order = tree.order
    weight = (tree.gains[stratum] / tree.sizes[stratum])[order]
    total = np.cumsum(weight)
    if not count or total[-1] <= 0:
        return []
    marks = (np.arange(count) + rng.random()) / count * total[-1]
    chosen = order[np.minimum(np.searchsorted(total, marks, side="right"), len(order) - 1)]
    chosen = chosen[tree.gains[stratum][chosen] > 0]
    begin, _ = tree.ranges(stratum)
    inner, inner_end = tree.ranges(stratum + 1)
    step = np.floor(rng.random(len(chosen)) * tree.gains[stratum][chosen]).astype(np.int64)
    at = begin[chosen] + step
    at = np.where(at >= inner[chosen], at + inner_end[chosen] - inner[chosen], at)
    return list(zip(chosen.tolist(), order[at].tolist(), strict=True))
