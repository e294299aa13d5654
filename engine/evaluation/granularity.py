"""Which taus tell two items apart: the partitions of a sweep as a tree, and what a pair of items decides.

Partitions of a lower tau are coarser, but for a few items. Each one intersected with all coarser ones makes
them a tree: `nested`. The *stratum* of a pair is the highest tau at which it is together in that tree.
Whether a pair of stratum s belongs together speaks for or against all taus up to s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.types import Float64, Int64

APART = -1  # the stratum of items that are together at no tau


@dataclass(frozen=True, slots=True)
class Tree:
    """The partitions of n items at T taus, which rise, made into a tree."""

    taus: Sequence[float]
    nested: Int64  # (T + 1, n), the coarsest first; the last: each item alone
    sizes: Int64  # (T + 1, n), of each item's cluster in it
    order: Int64 = field(repr=False)  # (n,), the items so that each cluster is a range

    @property
    def shares(self) -> Float64:
        """(T,): the share of its cluster that an item joins in each stratum, in the mean over items."""
        return np.asarray((self.gains / self.sizes[:-1]).mean(axis=1))

    @property
    def gains(self) -> Int64:
        """(T, n): the items that each item is together with in a stratum, and not in a higher one."""
        return np.asarray(self.sizes[:-1] - self.sizes[1:])

    def strata(self, first: Int64, second: Int64) -> Int64:
        """The stratum of each pair of items, by row; APART where there is none."""
        together = self.nested[:-1, first] == self.nested[:-1, second]
        return np.asarray(together.sum(axis=0) - 1, np.int64)

    def ranges(self, stratum: int) -> tuple[Int64, Int64]:
        """Where each item's cluster begins and ends in `order`, each (n,), by row."""
        names = self.nested[stratum][self.order]
        starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
        begin = np.empty(len(names), np.int64)
        begin[self.order] = np.repeat(starts, np.diff(np.r_[starts, len(names)]))
        return begin, begin + self.sizes[stratum]


def tree_of(taus: Sequence[float], clusters: Int64) -> Tree:
    """Make a tree of the clusters (T, n) at T rising taus."""
    nested = [np.unique(clusters[0], return_inverse=True)[1].ravel()]
    for finer in (*clusters[1:], np.arange(clusters.shape[1])):
        _, number = np.unique(finer, return_inverse=True)
        pairs = nested[-1] * (int(number.max()) + 1) + number.ravel()
        nested.append(np.unique(pairs, return_inverse=True)[1].ravel())
    sizes = [np.bincount(names)[names] for names in nested]
    return Tree(taus, np.stack(nested), np.stack(sizes), np.lexsort(nested[::-1]))
