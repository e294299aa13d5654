"""Scores of clusters against labels: pairwise F, BCubed F, NMI and ARI.

All take two label arrays (n,) of any integers. The F-scores follow Amigo et al., "A comparison of
extrinsic clustering evaluation metrics based on formal constraints" (2009); both are exact and cost
O(n log n).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from engine.types import Float64, Int64


@dataclass(frozen=True, slots=True)
class Agreement:
    """Precision is low where clusters mix classes, recall where classes are split. `f`: harmonic mean."""

    precision: float
    recall: float
    f: float


@dataclass(frozen=True, slots=True)
class ClassScore:
    """BCubed precision and recall over the items of one class, and the clusters that hold them."""

    label: int
    items: int
    precision: float
    recall: float
    pieces: Sequence[tuple[int, int]]  # cluster, items of the class in it; the largest first

    @property
    def f(self) -> float:
        """Harmonic mean of both."""
        return 2.0 * self.precision * self.recall / (self.precision + self.recall)


def pairwise(labels: ArrayLike, clusters: ArrayLike) -> Agreement:
    """Compare the pairs in one cluster with the pairs in one class; 1 where there is no such pair."""
    cells, classes, groups, _, _ = _contingency(labels, clusters)
    both, true, found = (float(_pairs(counts)) for counts in (cells, classes, groups))
    f = 2.0 * both / (true + found) if true + found else 1.0
    return Agreement(both / found if found else 1.0, both / true if true else 1.0, f)


def pairwise_f(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Return `pairwise(...).f`."""
    return pairwise(labels, clusters).f


def bcubed(labels: ArrayLike, clusters: ArrayLike) -> Agreement:
    """BCubed precision and recall: the means over items of |C & K| / |K| and |C & K| / |C|.

    C is the item's class, K its cluster, the item itself included. 1 for no items.
    """
    cells, classes, groups, class_of, group_of = _contingency(labels, clusters)
    n = cells.sum()
    if n == 0:
        return Agreement(1.0, 1.0, 1.0)
    squares = cells.astype(np.float64) ** 2
    precision = float((squares / groups[group_of]).sum() / n)
    recall = float((squares / classes[class_of]).sum() / n)
    return Agreement(precision, recall, 2.0 * precision * recall / (precision + recall))


def bcubed_f(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Return `bcubed(...).f`."""
    return bcubed(labels, clusters).f


def by_class(labels: Int64, clusters: Int64) -> list[ClassScore]:
    """Return the score of each class by falling cost, items * (1 - F)."""
    cells, classes, groups, class_of, group_of = _contingency(labels, clusters)
    names, numbers = np.unique(labels), np.unique(clusters)
    squares = cells.astype(np.float64) ** 2
    precision = np.bincount(class_of, squares / groups[group_of]) / classes
    recall = np.bincount(class_of, squares) / classes.astype(np.float64) ** 2
    order = np.lexsort((-cells, class_of))
    stops = np.cumsum(np.bincount(class_of))
    found = [
        ClassScore(
            int(names[at]),
            int(classes[at]),
            float(precision[at]),
            float(recall[at]),
            [(int(numbers[group_of[cell]]), int(cells[cell])) for cell in order[start:stop]],
        )
        for at, (start, stop) in enumerate(zip([0, *stops[:-1]], stops, strict=True))
    ]
    return sorted(found, key=lambda score: -score.items * (1.0 - score.f))


def class_scores(labels: Int64, clusters: Int64, classes: Int64) -> Float64:
    """Return items, BCubed precision and recall of some classes, (m, 3) by rising label, among all items."""
    rows = {each.label: (each.items, each.precision, each.recall) for each in by_class(labels, clusters)}
    return np.array([rows[label] for label in np.unique(classes).tolist()], np.float64)


def f_of_classes(rows: Float64, weights: Float64 | None = None) -> Float64:
    """Return BCubed F (draws,) over classes with these scores (m, 3), weighted by `weights` (draws, m)."""
    counts = rows[:, 0] * (np.ones((1, len(rows))) if weights is None else weights)
    p, r = (counts @ rows[:, 1:] / counts.sum(axis=1, keepdims=True)).T
    return np.asarray(2.0 * p * r / (p + r))


def bcubed_f_of(labels: Int64, clusters: Int64, classes: Int64) -> float:
    """Return BCubed F over the items of some classes; precision counts all items of their clusters."""
    return float(f_of_classes(class_scores(labels, clusters, classes))[0])


def nmi(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Return the mutual information, normalised by the mean of both entropies."""
    return float(normalized_mutual_info_score(np.asarray(labels), np.asarray(clusters)))


def ari(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Return the Rand index, adjusted for chance."""
    return float(adjusted_rand_score(np.asarray(labels), np.asarray(clusters)))


def _pairs(counts: Int64) -> int:
    return int((counts * (counts - 1)).sum()) // 2


def _contingency(labels: ArrayLike, clusters: ArrayLike) -> tuple[Int64, Int64, Int64, Int64, Int64]:
    """Count items by non-empty cell, class, and cluster; also return each cell's class and cluster."""
    _, row = np.unique(np.asarray(labels), return_inverse=True)
    _, column = np.unique(np.asarray(clusters), return_inverse=True)
    if len(row) != len(column):
        raise ValueError(f"{len(row)} labels and {len(column)} clusters")
    width = int(column.max(initial=0)) + 1
    cell, count = np.unique(row.astype(np.int64) * width + column, return_counts=True)
    return count, np.bincount(row), np.bincount(column), cell // width, cell % width
