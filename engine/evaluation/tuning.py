"""Chooses tau by judgements: what BCubed F is to be expected at each, and how sure that is.

Judgements estimate how often pairs of a stratum belong together: q. A Gaussian prior over logit q, a curve
over the strata, represents what is known without judgements; its few constants are those of the training
collections. From q follow, for each item, the expected part of its cluster that is of its class, and of its
class that is in its cluster: BCubed precision and recall. The judgements are drawn again with weights
(Rubin, "The Bayesian bootstrap", 1981), each time with one curve of the posterior; what is printed are
percentiles over these draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit, logit

from engine.collection.sweep import Sweep
from engine.errors import Undecided, counted
from engine.evaluation.granularity import Tree, tree_of
from engine.evaluation.judgements import Labels, Pairs
from engine.evaluation.proposal import DECIDE_MIN
from engine.types import Bool, Float64, Int64

DRAWS = 300  # of judgements and of a curve
SAMPLE = 1000  # items whose precision and recall are computed
TOGETHER = 20  # draws that are computed at once
SURE = 0.9  # least probability of a gain; the tau is chosen by what is gained at least, so surely
PERCENTILES = (10.0, 90.0)  # of the intervals
LABELS_MAX = 2_000  # labelled items that are compared in pairs; the first ones
WHOLE = 0.5  # labelled share of the items from which their own BCubed F is used
# The prior of logit q over x = logit tau, of a stratum: mean and deviations of its parts.
LEVEL, SLOPE = (-0.25, 0.9), (1.5, 0.42)  # at tau .5, and by x
TIED = 0.55  # correlation of both
BEND, REACH = 0.8, 0.8  # deviation from the line, and the distance in x over which it changes
ODD = 0.3  # of a single stratum
FINEST = (1.2, 1.15)  # logit q of the pairs that are together at all taus
UNEVEN = 0.2  # weight of the variance that whole blocks, which join together, give to recall
STEPS, LONGEST = 30, 2.0  # of Newton's method


@dataclass(frozen=True, slots=True)
class Choice:
    """Expected BCubed F at T taus; of the chosen one the gain over the current one."""

    taus: list[float]
    current: int
    chosen: int
    f: Float64  # (T,)
    low: Float64  # (T,) percentiles of F
    high: Float64
    gain: float
    gain_low: float
    gain_high: float
    sure: float  # probability that there is a gain
    told: int  # judgements that tell taus apart
    at_all: int = 0  # judged pairs that are together at every tau, which they do not tell apart
    at_none: int = 0  # judged pairs that are together at none


def choose(sweep: Sweep, judged: Pairs | Labels, seed: int = 0) -> Choice:
    """Choose the tau that surely gains most: by the lower percentile of the gain that `SURE` asks for.

    Raises Undecided, with the reason: too few judgements, all of one kind, or no sure gain.
    """
    rng = np.random.default_rng(seed)
    if isinstance(judged, Labels) and covers(sweep, judged):
        return _decide(sweep, measured(sweep, judged, rng), len(judged.rows))
    tree = tree_of(sweep.taus, sweep.clusters)
    evidence = _of_labels(tree, judged) if isinstance(judged, Labels) else _of_pairs(tree, judged)
    _check(evidence, tree)
    choice = _decide(sweep, _expected(tree, evidence, rng), evidence.told)
    if isinstance(judged, Labels):
        return choice
    return replace(choice, at_all=len(evidence.strata) - evidence.told, at_none=evidence.at_none)


def covers(sweep: Sweep, labels: Labels) -> bool:
    """Return whether enough items have labels to use their own BCubed F."""
    return len(labels.rows) >= WHOLE * len(sweep.keys)


def _decide(sweep: Sweep, f: Float64, told: int) -> Choice:
    """`f`: (draws, T)."""
    gains = f - f[:, [sweep.current]]
    cautious, mean = np.quantile(gains, 1.0 - SURE, axis=0), gains.mean(axis=0)
    # The greatest mean is often a bold tau: where it is wrong, it loses much. It counts where none is sure.
    told_by = cautious if cautious.max() > 0 else mean
    best = int(told_by.argmax()) if told_by.max() > 0 else sweep.current
    low, high = np.percentile(f, PERCENTILES, axis=0)
    of_gain = np.percentile(gains[:, best], PERCENTILES)
    sure = float((gains[:, best] > 0).mean())
    return Choice(
        taus=list(sweep.taus),
        current=sweep.current,
        chosen=best,
        f=f.mean(axis=0),
        low=low,
        high=high,
        gain=float(gains[:, best].mean()),
        gain_low=float(of_gain[0]),
        gain_high=float(of_gain[1]),
        sure=sure,
        told=told,
    )


def require_gain(choice: Choice) -> None:
    """Raise Undecided where the chosen tau is the current one, or no better one is sure enough."""
    now = choice.taus[choice.current]
    if choice.chosen == choice.current:
        told = counted(choice.told, "judgement")
        raise Undecided(f"by {told} no tau is expected to be better than {now:g}")
    if choice.sure < SURE:
        raise Undecided(
            f"{counted(choice.told, 'judgement')} cannot tell: tau {choice.taus[choice.chosen]:g} is better "
            f"than {now:g} with probability {choice.sure:.2f}, and {SURE:g} is wanted; more may tell"
        )


@dataclass(frozen=True, slots=True)
class _Evidence:
    """Judged pairs that tell taus apart, or show how pure the finest clusters are."""

    strata: Int64  # (m,)
    same: Bool
    weight: Float64  # of each pair, as judgements
    units: Callable[[np.random.Generator], Float64]  # weights (m,) of one draw, 1 in the mean
    finest: int
    at_none: int  # pairs that are together at no tau, and tell nothing

    @property
    def told(self) -> int:
        return int((self.strata < self.finest).sum())


def _of_pairs(tree: Tree, pairs: Pairs) -> _Evidence:
    strata = tree.strata(pairs.first, pairs.second)
    kept = strata >= 0
    count = int(kept.sum())
    return _Evidence(
        strata[kept],
        pairs.same[kept],
        np.ones(count),
        lambda rng: rng.exponential(size=count),
        len(tree.taus) - 1,
        len(strata) - count,
    )


def _of_labels(tree: Tree, labels: Labels) -> _Evidence:
    """Count all pairs of labelled items. Pairs that share items say less: a stratum counts half its items."""
    one, other = np.triu_indices(min(len(labels.rows), LABELS_MAX), 1)
    first, second = labels.rows[one], labels.rows[other]
    strata = tree.strata(first, second)
    kept = np.flatnonzero(strata >= 0)
    at_none = len(strata) - len(kept)
    one, other, strata = one[kept], other[kept], strata[kept]
    weight = 1.0 / tree.sizes[strata, first[kept]]
    for stratum in np.unique(strata):
        here = strata == stratum
        items = len(np.union1d(one[here], other[here]))
        weight[here] *= min(here.sum(), items / 2) / weight[here].sum()

    def units(rng: np.random.Generator) -> Float64:
        items = rng.exponential(size=len(labels.rows))
        return np.asarray(items[one] * items[other])

    same = labels.labels[one] == labels.labels[other]
    return _Evidence(strata, same, weight, units, len(tree.taus) - 1, at_none)


def _check(evidence: _Evidence, tree: Tree) -> None:
    if tree.shares[:-1].max(initial=0.0) == 0.0:
        raise Undecided("the clusters are the same at every tau: there is nothing to choose")
    if evidence.told < DECIDE_MIN:
        total = counted(len(evidence.strata) + evidence.at_none, "judged pair")
        raise Undecided(
            f"only {evidence.told} of {total} tell taus apart, by being together at some of them alone, and "
            f"at least {DECIDE_MIN} have to: judge more of the pairs that `--propose` prints, most do"
        )
    decisive = evidence.same[evidence.strata < evidence.finest]
    if decisive.all() or not decisive.any():
        kind = "the same" if decisive.all() else "different"
        raise Undecided(
            f"all {evidence.told} judged pairs that tell taus apart are {kind}: "
            "they do not show where to stop; `--propose` with another --seed prints others"
        )


def _expected(tree: Tree, evidence: _Evidence, rng: np.random.Generator) -> Float64:
    """F at each tau, (draws, T)."""
    mean, covariance = prior(tree.taus)
    precision = np.asarray(np.linalg.inv(covariance), np.float64)
    curves = np.empty((DRAWS, len(mean)))
    for draw in range(DRAWS):
        weight = evidence.weight * evidence.units(rng)
        judged = np.bincount(evidence.strata, weight, minlength=len(mean))
        same = np.bincount(evidence.strata, weight * evidence.same, minlength=len(mean))
        mode, spread = _posterior(mean, precision, judged, same)
        curves[draw] = mode + np.linalg.cholesky(spread) @ rng.normal(size=len(mean))
    rows = np.sort(rng.permutation(len(tree.order))[:SAMPLE])
    uneven = _unevenness(tree, rows)
    parts = [
        score(tree.gains[:, rows], uneven, expit(some))
        for some in np.array_split(curves, max(1, DRAWS // TOGETHER))
    ]
    return np.concatenate(parts)


def prior(taus: Sequence[float]) -> tuple[Float64, Float64]:
    """Mean (T,) and covariance (T, T) of logit q at the strata of these taus; the last one is `FINEST`."""
    x = logit(np.asarray(taus, np.float64)[:-1])
    apart = x[:, None] - x
    tied = TIED * LEVEL[1] * SLOPE[1] * (x[:, None] + x)
    line = LEVEL[1] ** 2 + SLOPE[1] ** 2 * np.outer(x, x) + tied
    bend = BEND**2 * np.exp(-0.5 * (apart / REACH) ** 2) + ODD**2 * np.eye(len(x))
    covariance = np.zeros((len(x) + 1, len(x) + 1))
    covariance[:-1, :-1] = line + bend
    covariance[-1, -1] = FINEST[1] ** 2
    return np.append(LEVEL[0] + SLOPE[0] * x, FINEST[0]), covariance


def _posterior(mean: Float64, precision: Float64, judged: Any, same: Any) -> tuple[Float64, Float64]:
    """Laplace's approximation: mode (T,) and covariance (T, T) of logit q, given counts by stratum."""
    at = mean
    for _ in range(STEPS):
        q = expit(at)
        curvature = precision + np.diag(judged * q * (1.0 - q))
        step = np.linalg.solve(curvature, same - judged * q - precision @ (at - mean))
        at = at + np.clip(step, -LONGEST, LONGEST)
        if np.abs(step).max() < 1e-6:
            break
    return at, np.asarray(np.linalg.inv(curvature), np.float64)


def score(gains: Float64 | Int64, uneven: Float64, q: Float64) -> Float64:
    """Expected BCubed F (draws, T), from q (draws, T) and the gains of m items in each stratum (T, m).

    `uneven` (T, m): the sum of squares of the blocks that join. An item's class in its cluster is a sum over
    strata; recall is that sum over the one at the coarsest tau, to the second order in its variance.
    """
    own = np.cumsum((gains * q[:, :, None])[:, ::-1], axis=1)[:, ::-1] + 1.0  # of its class, in its cluster
    variance = np.cumsum((uneven * (q * (1.0 - q))[:, :, None])[:, ::-1], axis=1)[:, ::-1]
    cluster = np.cumsum(gains[::-1], axis=0)[::-1] + 1.0
    whole = own[:, :1]
    beyond = own * (variance[:, :1] - variance) - (whole - own) * variance
    recall = own / whole + UNEVEN * np.clip(beyond / whole**3, -0.5, 0.5)
    p, r = (own / cluster).mean(axis=2), np.clip(recall, 0.0, 1.0).mean(axis=2)
    return np.asarray(2.0 * p * r / (p + r))


def _unevenness(tree: Tree, rows: Int64) -> Float64:
    """(T, rows): for each item the squares of the sizes of the blocks that join its own, by stratum."""
    out = np.empty((len(tree.taus), len(rows)))
    for stratum in range(len(out)):
        size = tree.sizes[stratum + 1].astype(np.float64)
        cluster = tree.nested[stratum]
        squares = np.bincount(cluster, size)  # each item of a block brings its size
        out[stratum] = squares[cluster[rows]] - size[rows] ** 2
    return out


def measured(sweep: Sweep, labels: Labels, rng: np.random.Generator) -> Float64:
    """BCubed F of the labelled items at each tau, (draws, T): items are drawn again with weights."""
    parts = [_by_item(labels.labels, part[labels.rows]) for part in sweep.clusters]
    precision, recall = zip(*parts, strict=True)
    weights = rng.exponential(size=(DRAWS, len(labels.rows)))
    weights /= weights.sum(axis=1, keepdims=True)
    p, r = weights @ np.stack(precision).T, weights @ np.stack(recall).T
    return np.asarray(2.0 * p * r / (p + r))


def _by_item(labels: Int64, clusters: Int64) -> tuple[Float64, Float64]:
    """BCubed precision and recall of each item."""
    _, cell, both = np.unique(np.stack([labels, clusters]), axis=1, return_inverse=True, return_counts=True)
    own = both[cell.ravel()]
    _, group, found = np.unique(clusters, return_inverse=True, return_counts=True)
    _, kind, true = np.unique(labels, return_inverse=True, return_counts=True)
    return own / found[group], own / true[kind]
