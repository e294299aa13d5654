"""The index protocol, and the exact index, which compares all pairs (`hnsw` has the other one).

Both indexes search the rows of one `Points` and return exact integer dots in one ordering: by dot, then
by hash. `ExactIndex` multiplies in float32, keeps every candidate within the proven bound of the
rounding error, and decides by the integer dot, so its results are a function of the vectors alone.
`HnswIndex` proposes candidates, and the integer dot scores them. Its results depend on the history of
inserts: the lists made from them are truth, the index never is.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numba import njit, prange

from engine import vectors
from engine.types import Bool, Float32, Int16, Int32, UInt64
from engine.vectors import DOT_SCALE, dot

_BLOCK_CELLS = 1 << 24  # float32 similarities held at once: 64 MiB
_NO_ROW = np.int32(-1)
NEVER = np.iinfo(np.int32).max  # a bound that no dot reaches
ALWAYS = np.iinfo(np.int32).min  # a bound that every dot reaches


class Points(Protocol):
    """The columns that an index reads. They may be replaced by longer ones between calls."""

    vectors: Int16  # (capacity, d)
    hashes: UInt64  # (capacity,)
    alive: Bool  # (capacity,)
    rows: int  # rows ever in use: all live rows are below


class _Points(NamedTuple):
    """The columns of `Points` that a kernel reads."""

    vectors: Int16
    hashes: UInt64
    alive: Bool


class Index(Protocol):
    """What the neighbour lists, the assignments and the snapshots need of an index."""

    exact: bool  # whether a search finds all there is to find, and `entrants` all lists to enter

    def insert(self, rows: Int32) -> None:
        """Insert live rows of the points, int32 (m,). They are not in the index yet."""
        ...

    def remove(self, rows: Int32) -> None:
        """Remove rows, int32 (m,). Called once per batch, before `insert`, and also without rows."""
        ...

    def search(self, rows: Int32, width: int) -> tuple[Int32, Int32]:
        """Return the nearest live rows of each row, itself excluded, best first.

        Neighbours and dots, both int32 (m, width), padded with -1.
        """
        ...

    def entrants(self, rows: Int32, bounds: Int32) -> tuple[Int32, Int32, Int32]:
        """Return all pairs (new row, other row) whose dot reaches the other row's bound, and the dots.

        `rows`: int32 (m,); `bounds`: int32 (points.rows,). Only an exact index can; others raise TypeError.
        """
        ...


class ExactIndex:
    """Compares all pairs, in blocks: for tests, small collections and the peaks of upper levels."""

    exact = True

    def __init__(self, points: Points) -> None:
        self.points = points
        self._floats = np.empty((0, points.vectors.shape[1]), np.float32)
        self._searched: tuple[Int32, Float32] | None = None  # the last rows searched, and their similarities

    def insert(self, rows: Int32) -> None:
        """Copy the vectors of rows, int32 (m,), as float32."""
        capacity, dim = self.points.vectors.shape
        if len(self._floats) < capacity:
            grown = np.zeros((capacity, dim), np.float32)
            grown[: len(self._floats)] = self._floats
            self._floats = grown
        self._floats[rows] = vectors.as_float(self.points.vectors[rows])
        self._searched = None

    def remove(self, rows: Int32) -> None:
        """Do nothing: searches read `alive`."""

    def search(self, rows: Int32, width: int) -> tuple[Int32, Int32]:
        """Return the nearest live rows as `Index.search` does, all of them exact."""
        found = np.full((len(rows), width), _NO_ROW)
        found_dots = np.full((len(rows), width), -1, np.int32)
        points, self._searched = self.points, None
        for start, block in self._similarities(rows):
            stop = start + len(block)
            columns = _Points(points.vectors, points.hashes, points.alive)
            part = rows[start:stop]
            _best(block, self._slack, part, columns, found[start:stop], found_dots[start:stop])
            if len(block) == len(rows):
                self._searched = rows, block
        return found, found_dots

    def entrants(self, rows: Int32, bounds: Int32) -> tuple[Int32, Int32, Int32]:
        """Return all pairs (new row, other row) whose dot reaches the other row's bound.

        `bounds`: int32 (points.rows,). The result is new rows, other rows and dots, int32 (pairs,) each.
        Rows with which the last search began are not multiplied again.
        """
        points = self.points
        floors = (bounds.astype(np.float64) / DOT_SCALE).astype(np.float32) - np.float32(self._slack)
        floors[bounds == NEVER] = np.inf
        blocks: list[tuple[Int32, Int32, Int32]] = []
        for start, block in self._known(rows) or self._similarities(rows):
            part = rows[start : start + len(block)]
            counts = _count_reaching(block, floors)
            pairs_new, pairs_old = _collect_reaching(block, floors, counts, part)
            exact = vectors.dots(points.vectors, pairs_new, pairs_old)
            keep = (exact >= bounds[pairs_old]) & (pairs_new != pairs_old)
            blocks.append((pairs_new[keep], pairs_old[keep], exact[keep]))
        if not blocks:
            empty = np.empty(0, np.int32)
            return empty, empty, empty
        new, old, found = (np.concatenate(column) for column in zip(*blocks, strict=True))
        return new, old, found

    @property
    def _slack(self) -> float:
        """Upper bound of |float32 product - true product| for vectors of length 1.001 at most.

        A dot of d products summed in any order errs by at most d u / (1 - d u) |x||y|, u = 2^-24
        (Higham, Accuracy and Stability of Numerical Algorithms, 3.1); 2^-22 covers the bound's own
        conversion to float32.
        """
        dim = int(self.points.vectors.shape[1])
        return float(1.01 * dim * 2.0**-24 + 2.0**-22)

    def _known(self, rows: Int32) -> list[tuple[int, Float32]]:
        """Return the similarities of these rows if the last search has just computed them."""
        searched, self._searched = self._searched, None
        if searched is None or not len(rows) or not np.array_equal(searched[0][: len(rows)], rows):
            return []
        return [(0, searched[1][: len(rows)])]

    def _similarities(self, rows: Int32) -> Any:
        points = self.points
        floats = self._floats[: points.rows]
        step = max(1, min(2048, _BLOCK_CELLS // max(1, points.rows)))
        for start in range(0, len(rows), step):
            # A BLAS may also compute on the padding behind short rows and discard it; the rows are finite.
            with np.errstate(invalid="ignore"):
                block = self._floats[rows[start : start + step]] @ floats.T
            yield start, block


@njit(cache=True, nogil=True, inline="always")
def precedes(dot_a: Any, hash_a: Any, dot_b: Any, hash_b: Any) -> Any:
    """Return whether a precedes b in every list: greater dot first, then smaller hash."""
    return dot_a > dot_b or (dot_a == dot_b and hash_a < hash_b)


@njit(cache=True, nogil=True)
def offer(best: Any, best_dots: Any, length: Any, row: Any, exact: Any, hashes: Any) -> Any:
    """Insert a row into a sorted list (width,) if it qualifies; return the new length.

    `best`, `best_dots`: int32, their first `length` entries in use; `exact`: the row's dot.
    """
    width = len(best)
    if length == width:
        if not precedes(exact, hashes[row], best_dots[width - 1], hashes[best[width - 1]]):
            return length
        length -= 1
    at = length
    while at > 0 and precedes(exact, hashes[row], best_dots[at - 1], hashes[best[at - 1]]):
        best[at] = best[at - 1]
        best_dots[at] = best_dots[at - 1]
        at -= 1
    best[at] = row
    best_dots[at] = exact
    return length + 1


@njit(cache=True, parallel=True, nogil=True)
def _best(
    block: Float32, slack: float, rows: Int32, points: _Points, found: Int32, found_dots: Int32
) -> None:
    vectors, hashes, alive = points.vectors, points.hashes, points.alive
    width = found.shape[1]
    for q in prange(block.shape[0]):
        length = 0
        floor = np.float32(-np.inf)
        for j in range(block.shape[1]):
            if block[q, j] >= floor and alive[j] and j != rows[q]:
                exact = dot(vectors[rows[q]], vectors[j])
                length = offer(found[q], found_dots[q], length, j, exact, hashes)
                if length == width:
                    floor = np.float32(found_dots[q, width - 1] / DOT_SCALE - slack)


@njit(cache=True, parallel=True, nogil=True)
def _count_reaching(block: Any, floors: Any) -> Any:
    counts = np.zeros(block.shape[0], np.int64)
    for q in prange(block.shape[0]):
        total = 0
        for j in range(block.shape[1]):
            total += block[q, j] >= floors[j]
        counts[q] = total
    return counts


@njit(cache=True, parallel=True, nogil=True)
def _collect_reaching(block: Any, floors: Any, counts: Any, rows: Any) -> Any:
    ends = np.cumsum(counts)
    new = np.empty(ends[-1], np.int32)
    old = np.empty(ends[-1], np.int32)
    for q in prange(block.shape[0]):
        at = ends[q] - counts[q]
        for j in range(block.shape[1]):
            if block[q, j] >= floors[j]:
                new[at] = rows[q]
                old[at] = j
                at += 1
    return new, old
