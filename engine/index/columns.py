"""Growable NumPy columns: the hot state is a struct of arrays, not objects."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.types import Bool, Int16, Int32, UInt64

_LEAST_CAPACITY = 1024

Layout = dict[str, tuple[Any, Any, tuple[int, ...]]]  # name -> (dtype, value of free rows, shape of a row)


class Columns:
    """Arrays of one capacity that grow together. Each column is an attribute."""

    def __init__(self, layout: Layout) -> None:
        self.capacity = 0
        self._layout = layout
        for name, (dtype, _, shape) in layout.items():
            setattr(self, name, np.empty((0, *shape), dtype))

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` rows."""
        if capacity <= self.capacity:
            return
        for name, (dtype, fill, shape) in self._layout.items():
            grown = np.full((capacity, *shape), fill, dtype)
            grown[: self.capacity] = getattr(self, name)
            setattr(self, name, grown)
        self.capacity = capacity


class Table(Columns):
    """Columns whose rows are allocated and freed; `alive` says which are in use. Freed rows are reused."""

    alive: Bool

    def __init__(self, layout: Layout) -> None:
        super().__init__({**layout, "alive": (np.bool_, False, ())})
        self.rows = 0  # rows ever in use
        self.live = 0
        self._free: list[int] = []

    def take(self, count: int) -> Int32:
        """Allocate rows; return them, int32 (count,)."""
        reused = [self._free.pop() for _ in range(min(count, len(self._free)))]
        fresh = range(self.rows, self.rows + count - len(reused))
        self.rows = fresh.stop
        if self.rows > self.capacity:  # at least doubled, so that growth is rare
            self.reserve(max(_LEAST_CAPACITY, 2 * self.capacity, self.rows))
        rows = np.array([*reused, *fresh], np.int32)
        self.alive[rows] = True
        self.live += count
        return rows

    def remove(self, rows: Int32) -> None:
        """Mark rows as dead. They are not reused before `release`."""
        self.alive[rows] = False
        self.live -= len(rows)

    def release(self, rows: Int32) -> None:
        """Let `take` reuse dead rows."""
        self._free.extend(rows.tolist())

    def all_rows(self) -> Int32:
        """Return the live rows in rising order, int32."""
        return np.flatnonzero(self.alive[: self.rows]).astype(np.int32)


class Nodes(Table):
    """The points of one level: vector and tie-breaking hash."""

    vectors: Int16  # (capacity, d)
    hashes: UInt64

    def __init__(self, dim: int) -> None:
        super().__init__({"vectors": (np.int16, 0, (dim,)), "hashes": (np.uint64, 0, ())})

    def add(self, vectors: Int16, hashes: UInt64) -> Int32:
        """Allocate rows for new points; return them, int32 (m,)."""
        rows = self.take(len(vectors))
        self.vectors[rows] = vectors
        self.hashes[rows] = hashes
        return rows
