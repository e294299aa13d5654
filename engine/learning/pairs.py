"""Counts pairs by distance in blocks, without ever holding an n x n matrix.

A distance is 1 - cosine similarity. `survey` bins distances finely; `count_negative` and `count_positive`
count the pairs of a class by the first threshold that accepts them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from engine.types import Float64, Int64

STEPS = 2**15  # bins per unit of distance
BLOCK = 512  # rows of a product
COLUMNS = 8_192  # columns of a product: 16 MiB of float32

Vectors = NDArray[np.floating[Any]]
Advance = Callable[[int], None]  # called with the pairs counted since the last call


@dataclass(frozen=True, slots=True)
class Survey:
    """Distances of some query items to all items."""

    negative: Int64  # (2 * STEPS + 1,) negative pairs by distance; bin k: k - 1 < STEPS * distance <= k
    hit: NDArray[np.bool_]  # (q,) whether the nearest other item is of the query's class

    def false_acceptance(self, distance: float) -> float:
        """Return the share of negative pairs within a distance, interpolated linearly inside a bin."""
        within = np.concatenate([[0], np.cumsum(self.negative)]) / max(int(self.negative.sum()), 1)
        return float(np.interp(distance * STEPS, np.arange(-1, len(within) - 1), within))

    def distance_at(self, rate: float) -> float:
        """Return the smallest multiple of 1 / STEPS that accepts at least this share of negative pairs."""
        within = np.cumsum(self.negative)
        return float(np.searchsorted(within, rate * within[-1])) / STEPS


def survey(emb: Vectors, classes: Int64, queries: Int64, advance: Advance) -> Survey:
    """Compare the items `queries` (q,) with all items. Ties for the nearest go to the first in `emb`."""
    hit = np.zeros(len(queries), bool)

    def work(share: Sequence[slice]) -> Int64:
        histogram = np.zeros(2 * STEPS + 1, np.int64)
        for part in share:
            rows = queries[part]
            best, place = np.full(len(rows), -np.inf, emb.dtype), np.zeros(len(rows), np.int64)
            for first in range(0, len(emb), COLUMNS):
                block = emb[rows] @ emb[first : first + COLUMNS].T
                _survey(block, rows, first, classes, (histogram, best, place))
                advance(block.size)
            hit[part] = classes[place] == classes[rows]
        return histogram

    return Survey(_sum_shares(work, len(queries)), hit)


def count_negative(
    emb: Vectors, group: Int64, rows: Int64, columns: Int64, thresholds: Float64, advance: Advance
) -> Int64:
    """Count pairs across groups by the first threshold that accepts them, (g, T + 1); the last: none does.

    `group` (n,): the group of each item, -1: of a group that is not counted. A pair of an item of `rows` and
    one of `columns` counts for the group of the row.
    """
    others, other_groups = emb[columns], group[columns]
    shape = int(group.max()) + 1, len(thresholds) + 1

    def work(share: Sequence[slice]) -> Int64:
        counts = np.zeros(shape, np.int64)
        for part in share:
            mine = emb[rows[part]]
            for first in range(0, len(others), COLUMNS):
                block = mine @ others[first : first + COLUMNS].T
                _count(block, group[rows[part]], other_groups[first : first + COLUMNS], thresholds, counts)
                advance(block.size)
        return counts

    return _sum_shares(work, len(rows))


def count_positive(emb: Vectors, members: Sequence[Int64], thresholds: Float64, advance: Advance) -> Int64:
    """Count ordered pairs within each group by the first threshold that accepts them, (g, T + 1)."""
    counts = np.zeros((len(members), len(thresholds) + 1), np.int64)
    for number, items in enumerate(members):
        mine = emb[items]
        for part in parts(len(items)):
            for first in range(0, len(items), COLUMNS):
                block = mine[part] @ mine[first : first + COLUMNS].T
                _inside(block, part.start - first, thresholds, counts[number])
                advance(block.size)
    return counts


def parts(rows: int) -> list[slice]:
    """Return the rows in blocks."""
    return [slice(first, min(first + BLOCK, rows)) for first in range(0, rows, BLOCK)]


def _sum_shares(work: Callable[[Sequence[slice]], Int64], rows: int) -> Int64:
    """Sum the results of `work` over all blocks, on all cores: products and kernels release the GIL."""
    workers = os.cpu_count() or 1
    shares = [parts(rows)[at::workers] for at in range(workers)]
    with ThreadPoolExecutor(workers, "pairs") as pool:
        first, *others = pool.map(work, shares)
    for each in others:
        first += each
    return first


@njit(cache=True, nogil=True)
def _survey(block: Any, rows: Any, first: Any, classes: Any, out: Any) -> None:
    histogram, best, place = out
    for i in range(block.shape[0]):
        own = classes[rows[i]]
        for j in range(block.shape[1]):
            at = first + j
            if at == rows[i]:
                continue
            similarity = block[i, j]
            if similarity > best[i]:
                best[i] = similarity
                place[i] = at
            if classes[at] != own:
                scaled = np.ceil((1.0 - np.float64(similarity)) * STEPS)
                histogram[int(min(max(scaled, 0.0), 2.0 * STEPS))] += 1


@njit(cache=True, nogil=True, inline="always")
def _bin(distance: Any, thresholds: Any) -> Any:
    """Return the first threshold that accepts a distance, T where none does. Thresholds are evenly spaced."""
    last = len(thresholds)
    if distance > thresholds[last - 1]:
        return last
    if distance <= thresholds[0]:
        return 0
    guess = int((distance - thresholds[0]) / (thresholds[last - 1] - thresholds[0]) * (last - 1))
    while guess > 0 and distance <= thresholds[guess - 1]:
        guess -= 1
    while distance > thresholds[guess]:
        guess += 1
    return guess


@njit(cache=True, nogil=True)
def _count(block: Any, own: Any, other: Any, thresholds: Any, counts: Any) -> None:
    for i in range(block.shape[0]):
        if own[i] < 0:
            continue
        for j in range(block.shape[1]):
            if other[j] != own[i]:
                counts[own[i], _bin(1.0 - np.float64(block[i, j]), thresholds)] += 1


@njit(cache=True, nogil=True)
def _inside(block: Any, offset: Any, thresholds: Any, counts: Any) -> None:
    """`offset`: the block's first row minus its first column, so that an item is not paired with itself."""
    for i in range(block.shape[0]):
        for j in range(block.shape[1]):
            if i + offset != j:
                counts[_bin(1.0 - np.float64(block[i, j]), thresholds)] += 1
