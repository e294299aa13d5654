"""The partitions at several taus as one tree, and the stratum of a pair of items in it.

Partitions at a lower tau are coarser, but for a few items. Intersecting each with all coarser ones makes
them a tree: `nested`. The *stratum* of a pair is the highest tau at which both items are in one cluster of
that tree. A judgement of a pair of stratum s is evidence for or against all taus up to s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.types import Float64, Int64

APART = -1  # stratum of a pair that is in one cluster at no tau


@dataclass(frozen=True, slots=True)
class Tree:
    """Nested partitions of n items at T rising taus."""

    taus: Sequence[float]
    nested: Int64  # (T + 1, n) clusters, the coarsest partition first; in the last one each item is alone
    sizes: Int64  # (T + 1, n) items of each item's cluster
    order: Int64 = field(repr=False)  # (n,) items sorted so that each cluster is a contiguous range

    @property
    def shares(self) -> Float64:
        """(T,): the mean over items of `gains`, as a share of the item's cluster."""
        return np.asarray((self.gains / self.sizes[:-1]).mean(axis=1))

    @property
    def gains(self) -> Int64:
        """(T, n): the items whose pair with each item is of exactly that stratum."""
        return np.asarray(self.sizes[:-1] - self.sizes[1:])

    def strata(self, first: Int64, second: Int64) -> Int64:
        """Return the stratum of each pair of items, by row; APART where there is none."""
        together = self.nested[:-1, first] == self.nested[:-1, second]
        return np.asarray(together.sum(axis=0) - 1, np.int64)

    def ranges(self, stratum: int) -> tuple[Int64, Int64]:
        """Return where each item's cluster begins and ends in `order`, each (n,), by row."""
        names = self.nested[stratum][self.order]
        starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
        begin = np.empty(len(names), np.int64)
        begin[self.order] = np.repeat(starts, np.diff(np.r_[starts, len(names)]))
        return begin, begin + self.sizes[stratum]


def tree_of(taus: Sequence[float], clusters: Int64) -> Tree:
    """Return the tree of the clusters (T, n) at T rising taus."""
    nested = [np.unique(clusters[0], return_inverse=True)[1].ravel()]
    for finer in (*clusters[1:], np.arange(clusters.shape[1])):
        _, number = np.unique(finer, return_inverse=True)
        pairs = nested[-1] * (int(number.max()) + 1) + number.ravel()
        nested.append(np.unique(pairs, return_inverse=True)[1].ravel())
    sizes = [np.bincount(names)[names] for names in nested]
    return Tree(taus, np.stack(nested), np.stack(sizes), np.lexsort(nested[::-1]))
