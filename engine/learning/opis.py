"""Threshold consistency over classes: OPIS, epsilon-OPIS and recall at 1.

After Zhang et al., "Threshold-Consistent Margin Loss for Open-World Deep Metric Learning" (ICLR 2024,
arXiv 2307.04047). A distance d is 1 - cosine similarity. Of class i at d,

    psi_i(d)  sensitivity: the share of i's pairs within d, 1 - false rejection rate
    phi_i(d)  specificity: the share of pairs with exactly one end in i beyond d, 1 - false acceptance rate
    U_i(d) = (1 + c^2) phi psi / (c^2 phi + psi)                                  utility, 0 where both are 0
    OPIS   = mean over classes and over [d_min, d_max] of (U_i(d) - mean_i U_i(d))^2

Choices of this module: the mean over the range is that of 101 evenly spaced thresholds; d_min and d_max are
multiples of 2^-15, the smallest within which the wanted share of all negative pairs lies; a pair counts once
whatever its order; classes of one item are no classes, for they have no sensitivity, but their items are
others to every class. So is the form of epsilon-OPIS: the paper's formula was not at hand. It takes at each
d the ceil(epsilon C) classes of the lowest utility there, one at least and all but one at most: mean over d
of (their mean utility - the mean of the others)^2.

Up to `exact_items` every pair is counted, in float64. Beyond that classes, items and the other ends of
pairs are sampled, in float32, and each figure comes with a standard error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import numpy as np

from engine.errors import InputError
from engine.learning.labelled import LabelledSet
from engine.learning.pairs import Survey, Vectors, count_negative, count_positive, survey
from engine.types import Float64, Int64

THRESHOLDS = 101


@dataclass(frozen=True, slots=True)
class Request:
    """Parameters of a measurement, and bounds of its work."""

    false_acceptance: tuple[float, float] = (0.01, 0.10)  # rates over all negative pairs at the range's ends
    range: tuple[float, float] | None = None  # distances, in place of the two rates
    epsilon: float = 0.10  # share of the worst classes
    seed: int = 0  # of the samples
    exact_items: int = 20_000  # beyond, classes, items and pairs are sampled
    queries: int = 4_096  # sampled for recall and for the range
    landmarks: int = 4_096  # sampled other ends of negative pairs
    classes: int = 10_000  # sampled
    positive_pairs: int = 5_000_000_000  # ordered; larger classes are thinned until all fit


@dataclass(frozen=True, slots=True)
class Errors:
    """Standard errors of the sampled figures."""

    opis: float
    opis_worst: float
    recall_at_1: float


@dataclass(frozen=True, slots=True)
class Consistency:
    """Result of a measurement over C classes and T thresholds."""

    opis: float
    opis_worst: float  # epsilon-OPIS
    recall_at_1: float  # of the items of a class of two or more; ties go to the first in the file
    range: tuple[float, float]
    thresholds: Float64  # (T,) distances
    classes: Int64  # (C,) numbers of the classes that were measured
    utility: Float64  # (C, T)
    inconsistency: Float64  # (C,) mean over the range of the squared difference to the mean utility
    false_acceptance: Float64  # (T,) share of all negative pairs within
    false_rejection: Float64  # (T,) share of all positive pairs beyond
    single_items: int  # in classes of one
    errors: Errors | None  # None: exact

    @property
    def recommended(self) -> int:
        """Index of the threshold with the highest mean utility."""
        return int(self.utility.mean(axis=0).argmax())


@dataclass(frozen=True, slots=True)
class _Sample:
    """The items, classes and pairs to count: all, or a sample."""

    emb: Vectors
    queries: Int64
    classes: Int64  # numbers of classes, ascending
    members: list[Int64]  # items of each of these classes
    whole: Int64  # (C,) items that each class has
    landmarks: list[Int64]  # disjoint groups of other ends
    exact: bool


def measure(
    labelled: LabelledSet, request: Request | None = None, progress: Callable[[float], None] = lambda _: None
) -> Consistency:
    """Measure a labelled set. `progress` is called with the share done, also from other threads.

    Raises InputError for an invalid range, rates or epsilon.
    """
    request = request or Request()
    check(request)
    drawn = _draw(labelled, request)
    done, total = 0, _work(drawn, len(labelled.emb))

    def advance(pairs: int) -> None:
        nonlocal done
        done += pairs
        progress(min(done / total, 1.0))

    overview = survey(drawn.emb, labelled.classes, drawn.queries, advance)
    low, high = request.range or tuple(overview.distance_at(rate) for rate in request.false_acceptance)
    if not low < high:
        raise InputError(
            f"the calibration range [{low:g}, {high:g}] is empty: as many negative pairs lie within one as "
            "within the other; give a range of distances."
        )
    thresholds = np.linspace(low, high, THRESHOLDS)
    group = np.full(len(labelled.emb), -1, np.int64)
    for number, items in enumerate(drawn.members):
        group[items] = number
    rows = np.concatenate(drawn.members)
    negative = np.stack(
        [count_negative(drawn.emb, group, rows, part, thresholds, advance) for part in drawn.landmarks]
    )
    positive = count_positive(drawn.emb, drawn.members, thresholds, advance)
    return _consistency(labelled, request, drawn, overview, (thresholds, positive, negative))


def check(request: Request) -> None:
    """Raise InputError for an invalid request."""
    low, high = request.range or request.false_acceptance
    if request.range and not -np.inf < low < high < np.inf:
        raise InputError(f"the calibration range must be two rising distances, not {low:g} and {high:g}.")
    if request.range and (low < 0.0 or high > 2.0):
        raise InputError(f"distances are 1 - cosine, from 0 to 2: [{low:g}, {high:g}] is beyond that.")
    if not request.range and not 0.0 < low < high < 1.0:
        raise InputError(f"the two false-acceptance rates must rise from 0 to 1, not {low:g} and {high:g}.")
    if not 0.0 < request.epsilon < 1.0:
        raise InputError(f"epsilon is a share of the classes between 0 and 1, not {request.epsilon:g}.")


def utility(sensitivity: Float64, specificity: Float64) -> Float64:
    """Return U of psi and phi, of any shape; 0 where both are 0."""
    below = specificity + sensitivity
    above = 2.0 * specificity * sensitivity
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0.0)


def opis(utilities: Float64) -> float:
    """Return OPIS of utilities (C, T)."""
    return float(((utilities - utilities.mean(axis=0)) ** 2).mean())


def opis_worst(utilities: Float64, epsilon: float) -> float:
    """Return epsilon-OPIS of utilities (C, T)."""
    ordered = np.sort(utilities, axis=0)
    worst = min(max(ceil(epsilon * len(ordered) - 1e-9), 1), len(ordered) - 1)
    return float(((ordered[:worst].mean(axis=0) - ordered[worst:].mean(axis=0)) ** 2).mean())


def _draw(labelled: LabelledSet, request: Request) -> _Sample:
    sizes, n = labelled.sizes, len(labelled.emb)
    several = np.flatnonzero(sizes > 1)
    if len(several) < 2:
        raise InputError("only one class has two items or more: thresholds are compared between classes.")
    order = np.argsort(labelled.classes, kind="stable").astype(np.int64)
    ends = np.cumsum(sizes)

    def members(number: int) -> Int64:
        return order[ends[number] - sizes[number] : ends[number]]

    if n <= request.exact_items:
        every = [members(int(number)) for number in several]
        return _Sample(labelled.emb.astype(np.float64), np.arange(n), several, every, sizes[several],
                       [np.arange(n)], True)  # fmt: skip
    rng = np.random.default_rng(request.seed)
    chosen = np.sort(rng.permutation(several)[: request.classes])
    cap = _cap(sizes[chosen], request.positive_pairs)
    drawn = [np.sort(rng.permutation(members(int(number)))[:cap]) for number in chosen]
    landmarks = np.array_split(rng.permutation(n)[: request.landmarks], 8)
    queries = np.sort(rng.permutation(n)[: request.queries])
    return _Sample(labelled.emb, queries, chosen, drawn, sizes[chosen], landmarks, False)


def _cap(sizes: Int64, pairs: int) -> int:
    """Return the largest cap on items per class with which the number of pairs stays within `pairs`."""
    low, high = 2, int(sizes.max())
    while low < high:
        middle = (low + high + 1) // 2
        if float((np.minimum(sizes, middle).astype(np.float64) ** 2).sum()) <= pairs:
            low = middle
        else:
            high = middle - 1
    return low


def _work(drawn: _Sample, items: int) -> int:
    rows = sum(len(each) for each in drawn.members)
    inside = sum(len(each) ** 2 for each in drawn.members)
    return len(drawn.queries) * items + rows * sum(map(len, drawn.landmarks)) + inside


def _consistency(
    labelled: LabelledSet,
    request: Request,
    drawn: _Sample,
    overview: Survey,
    counts: tuple[Float64, Int64, Int64],
) -> Consistency:
    thresholds, positive, negative = counts
    sensitivity = _within(positive)
    utilities = utility(sensitivity, 1.0 - _within(negative.sum(axis=0)))
    squares = (utilities - utilities.mean(axis=0)) ** 2
    hit = overview.hit[labelled.sizes[labelled.classes[drawn.queries]] > 1]
    recall = float(hit.mean()) if len(hit) else 0.0
    errors = None
    if not drawn.exact:
        of_opis, of_worst = _errors(request, drawn, sensitivity, negative)
        errors = Errors(of_opis, of_worst, float(np.sqrt(recall * (1.0 - recall) / max(len(hit), 1))))
    # Thinned classes count with all the pairs they have.
    weight = (drawn.whole * (drawn.whole - 1)).astype(np.float64)
    return Consistency(
        opis=opis(utilities),
        opis_worst=opis_worst(utilities, request.epsilon),
        recall_at_1=recall,
        range=(float(thresholds[0]), float(thresholds[-1])),
        thresholds=thresholds,
        classes=drawn.classes,
        utility=utilities,
        inconsistency=squares.mean(axis=1),
        false_acceptance=np.array([overview.false_acceptance(float(d)) for d in thresholds]),
        false_rejection=1.0 - weight @ sensitivity / weight.sum(),
        single_items=int((labelled.sizes == 1).sum()),
        errors=errors,
    )


def _within(counts: Int64) -> Float64:
    """Return the share of each row's pairs that each threshold accepts, (C, T); 0 where there are none."""
    totals = counts.sum(axis=1, keepdims=True)
    share: Float64 = np.cumsum(counts, axis=1)[:, :-1] / np.maximum(totals, 1)
    return share


def _errors(request: Request, drawn: _Sample, sensitivity: Float64, negative: Int64) -> tuple[float, float]:
    """Return the standard errors of OPIS and epsilon-OPIS, from sampling landmarks, classes and items.

    Landmarks are jackknifed over their groups, classes over ten groups. The part of the items left out is an
    upper bound: a share of pairs among s items has a variance of at most 1 / s.
    """
    total = negative.sum(axis=0)
    whole = utility(sensitivity, 1.0 - _within(total))
    without = [utility(sensitivity, 1.0 - _within(total - part)) for part in negative]
    kept = np.array([len(items) for items in drawn.members])
    left = np.where(kept < drawn.whole, 1.0 / kept, 0.0)
    slope = np.abs(whole - whole.mean(axis=0)).mean(axis=1) * 2.0  # at most
    thinned = 4.0 * (left * slope**2).sum() / len(whole) ** 2
    shuffled = np.random.default_rng(request.seed).permutation(len(whole))
    groups = np.array_split(shuffled, min(10, len(whole)))
    fewer = [np.delete(whole, part, axis=0) for part in groups] if drawn.classes.size > 10 else []

    def error(figure: Callable[[Float64], float], share: float) -> float:
        of_landmarks = _jackknife([figure(each) for each in without])
        of_classes = _jackknife([figure(each) for each in fewer]) * share
        return float(np.sqrt(of_landmarks + of_classes + thinned))

    sampled = 1.0 if len(drawn.classes) == request.classes else 0.0
    return error(opis, sampled), error(lambda each: opis_worst(each, request.epsilon), sampled)


def _jackknife(figures: list[float]) -> float:
    """Return the jackknife variance of a figure, from its values without each of some equal groups."""
    values = np.array(figures)
    return float((len(values) - 1) * values.var()) if len(values) else 0.0
