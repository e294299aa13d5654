"""Calibrates a collection: mean and deviation of the similarity of random pairs of distinct vectors.

Both follow from the sum of all vectors and their Gram matrix, which are kept as integers and so are
a function of the live items alone. What the model uses is an epoch: the values when they were last
taken. It changes where they have moved by more than `DRIFT` of its deviation.
"""

from __future__ import annotations

import math

import numpy as np

from engine.types import Epoch, Int16, Int64
from engine.vectors import DOT_SCALE

LEAST_ITEMS = 16  # below, the model card's values serve: so few vectors do not determine a deviation
# Up to here checked at each doubling, as early estimates move most; then at a quarter more or less.
EARLY_ITEMS = 4096
DRIFT = 0.1  # of the deviation; a new epoch re-clusters everything, so small drifts are left
LEAST_DEVIATION = 2.0**-10
PENDING = 1024  # vectors that wait to be added up: a product of many costs little more than one of few


class Calibration:
    """Running sums over the live distinct vectors, the current epoch, and when to check it next."""

    def __init__(self, dim: int, card: Epoch) -> None:
        self.card = self.epoch = card
        self.checked = 0  # live vectors when the epoch was last compared with the collection
        self.items = 0
        self._total = np.zeros(dim, np.int64)
        self._gram = np.zeros((dim, dim), np.int64)
        # Of each self-dot only the difference from 2^28, so that the sum of squares fits int64.
        self._excess = 0
        self._excess_squared = 0
        self._pending: list[tuple[Int16, int]] = []

    def add(self, grid: Int16, sign: int = 1) -> None:
        """Add vectors (sign 1) or remove them (sign -1)."""
        if not len(grid):
            return
        self.items += sign * len(grid)
        self._pending.append((grid, sign))
        if sum(len(part) for part, _ in self._pending) >= PENDING:
            self.add_up()

    def add_up(self) -> None:
        """Apply pending additions and removals to the sums."""
        for sign in (1, -1):
            parts = [grid for grid, its_sign in self._pending if its_sign == sign]
            if parts:
                self._count(np.concatenate(parts), sign)
        self._pending.clear()

    def _count(self, grid: Int16, sign: int) -> None:
        total, gram = sum_and_gram(grid)
        self._total += sign * total
        self._gram += sign * gram
        excess = np.einsum("ij,ij->i", grid, grid, dtype=np.int64) - DOT_SCALE
        self._excess += sign * int(excess.sum())
        self._excess_squared += sign * int((excess * excess).sum())

    def advance(self) -> bool:
        """Check the epoch if a check is due; return whether a new epoch began."""
        if not self._due():
            return False
        if self.items < LEAST_ITEMS:
            self.checked, self.epoch = 0, self.card
            return True
        self.checked = self.items
        current = self.measure()
        scale = max(self.epoch.deviation, LEAST_DEVIATION)
        moved = max(abs(current.mean - self.epoch.mean), abs(current.deviation - self.epoch.deviation))
        if moved <= DRIFT * scale:
            return False
        self.epoch = current
        return True

    def begin(self) -> None:
        """Begin a new epoch regardless of drift, for a rebuild."""
        self.checked = self.items if self.items >= LEAST_ITEMS else 0
        self.epoch = self.measure() if self.checked else self.card

    def measure(self) -> Epoch:
        """Return mean and deviation of the similarity of two different vectors drawn at random."""
        self.add_up()
        count = self.items * (self.items - 1)
        squared_length = sum(int(t) ** 2 for t in self._total)
        own = self.items * DOT_SCALE + self._excess
        mean = (squared_length - own) / count / DOT_SCALE
        own_squared = self.items * DOT_SCALE**2 + 2 * DOT_SCALE * self._excess + self._excess_squared
        gram = self._gram.astype(np.float64)  # exact below 2^53: 2^25 items
        second = (float(np.sum(gram * gram)) - own_squared) / count / DOT_SCALE**2
        return Epoch(mean, math.sqrt(max(0.0, second - mean * mean)), self.items)

    def _due(self) -> bool:
        if self.items < LEAST_ITEMS:
            return self.checked > 0  # back to the card
        if self.items < self.checked:
            return self.items <= 0.75 * self.checked
        if self.checked < EARLY_ITEMS:
            return self.items.bit_length() > self.checked.bit_length()
        return self.items >= 1.25 * self.checked


def sum_and_gram(grid: Int16) -> tuple[Int64, Int64]:
    """Return the exact sum (d,) and Gram matrix (d, d) of grid vectors, int64.

    Float64 products of integers are exact as long as sums stay below 2^53: blocks of 2^20 rows do.
    """
    total = grid.sum(axis=0, dtype=np.int64)
    gram = np.zeros((grid.shape[1], grid.shape[1]), np.int64)
    for start in range(0, len(grid), 1 << 16):
        block = grid[start : start + (1 << 16)].astype(np.float64)
        gram += (block.T @ block).astype(np.int64)
    return total, gram
