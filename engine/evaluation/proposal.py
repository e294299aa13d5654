"""Propose pairs to judge: in one cluster at some taus, in two at others.

The number of pairs in a stratum (see `granularity`) is proportional to the root of its share of the
clusters, so no stratum goes without. Within a stratum, systematic sampling along the tree draws pairs in
proportion to their weight in BCubed precision, which spreads them over the clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.evaluation.granularity import Tree
from engine.types import Float64, Int64

FINEST_SHARE = 0.1  # share of the pairs that are in one cluster at all taus
DECIDE_MIN = 10  # least number of judged pairs that distinguish taus
_TRIES = 10  # rounds of drawing, until enough different pairs are found


@dataclass(frozen=True, slots=True)
class Proposal:
    """Pairs of items, by row, in random order: any first part is a sample of all."""

    first: Int64  # (m,)
    second: Int64
    strata: Int64
    stands_for: Float64  # items that a pair represents: the stratum's share of all, over its pairs


def propose(tree: Tree, count: int, rng: np.random.Generator) -> Proposal:
    """Draw at most `count` pairs to judge; fewer where there are no more."""
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
    """Return the number of pairs for each stratum (T,), `count` in all; the finest gets FINEST_SHARE."""
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
    """Draw pairs of a stratum: items by systematic sampling along the tree, each with a random partner."""
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
