"""Finding neighbours: exactly, or with an HNSW graph.

Both indexes work on the rows of one `Points` and answer with exact integer dots in the one order
there is (dot, then the key's hash). `ExactIndex` multiplies in float32, keeps whatever may qualify
within the rounding error's proven bound, and decides by the integer dot; so its answers are a
function of the vectors alone. `HnswIndex` proposes, the integer dot scores. An HNSW search depends
on the history of inserts: lists made from it are truth, the index never is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import hnswlib
import numpy as np
from numba import njit, prange

from engine import vectors
from engine.turnstile import Turnstile
from engine.types import Bool, Float32, Int16, Int32, Int64, UInt64
from engine.vectors import DOT_SCALE, dot

_BLOCK_CELLS = 1 << 24  # float32 similarities held at once: 64 MiB
_NO_ROW = np.int32(-1)
_SLICE, _SLICE_BUSY = 64, 5  # rows inserted at once; while there are questions, some milliseconds' worth
NEVER = np.iinfo(np.int32).max  # a bound that no dot reaches
ALWAYS = np.iinfo(np.int32).min  # a bound that every dot reaches


class Points(Protocol):
    """The columns that an index reads; they may be replaced by longer ones between calls."""

    vectors: Int16  # (capacity, d)
    hashes: UInt64  # (capacity,)
    alive: Bool  # (capacity,)
    rows: int  # rows in use or freed: all live rows are below


class Index(Protocol):
    """What the neighbour lists need of an index."""

    exact: bool

    def insert(self, rows: Int32) -> None: ...

    def remove(self, rows: Int32) -> None: ...

    def search(self, rows: Int32, width: int) -> tuple[Int32, Int32]:
        """The nearest live rows of each row, itself excluded, best first.

        Returns neighbours and dots, both int32 (m, width), padded with -1.
        """
        ...


class ExactIndex:
    """All pairs, blockwise; right for tests, small collections and the peaks of upper levels."""

    exact = True

    def __init__(self, points: Points) -> None:
        self.points = points
        self._floats = np.empty((0, points.vectors.shape[1]), np.float32)

    def insert(self, rows: Int32) -> None:
        capacity, dim = self.points.vectors.shape
        if len(self._floats) < capacity:
            grown = np.zeros((capacity, dim), np.float32)
            grown[: len(self._floats)] = self._floats
            self._floats = grown
        self._floats[rows] = vectors.as_float(self.points.vectors[rows])

    def remove(self, rows: Int32) -> None:
        """Nothing to do: searches read `alive`."""

    def search(self, rows: Int32, width: int) -> tuple[Int32, Int32]:
        found = np.full((len(rows), width), _NO_ROW)
        found_dots = np.full((len(rows), width), -1, np.int32)
        points = self.points
        for start, block in self._similarities(rows):
            stop = start + len(block)
            _best(
                block, self._slack, rows[start:stop], points.vectors, points.hashes, points.alive,
                found[start:stop], found_dots[start:stop],
            )  # fmt: skip
        return found, found_dots

    def entrants(self, rows: Int32, bounds: Int32) -> tuple[Int32, Int32, Int32]:
        """All pairs (new row, other row) whose dot reaches the other row's bound.

        `bounds`: int32 (points.rows,). Returns new rows, other rows and dots, int32 (pairs,).
        """
        points = self.points
        floors = (bounds.astype(np.float64) / DOT_SCALE).astype(np.float32) - np.float32(self._slack)
        floors[bounds == NEVER] = np.inf
        blocks: list[tuple[Int32, Int32, Int32]] = []
        for start, block in self._similarities(rows):
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
        """A bound of |float32 product - true product| for vectors of length 1.001 at most.

        A dot of d products summed in any order errs by at most d u / (1 - d u) |x||y|, u = 2^-24
        (Higham, Accuracy and Stability of Numerical Algorithms, 3.1); 2^-22 covers the bound's own
        conversion to float32.
        """
        dim = int(self.points.vectors.shape[1])
        return float(1.01 * dim * 2.0**-24 + 2.0**-22)

    def _similarities(self, rows: Int32) -> Any:
        points = self.points
        floats = self._floats[: points.rows]
        step = max(1, min(2048, _BLOCK_CELLS // max(1, points.rows)))
        for start in range(0, len(rows), step):
            # A BLAS may compute on whatever lies behind short rows, and drop it; what is here is finite.
            with np.errstate(invalid="ignore"):
                block = self._floats[rows[start : start + step]] @ floats.T
            yield start, block


@njit(cache=True, nogil=True, inline="always")
def precedes(dot_a: Any, hash_a: Any, dot_b: Any, hash_b: Any) -> Any:
    """The order of all lists: greater dot first, then smaller hash."""
    return dot_a > dot_b or (dot_a == dot_b and hash_a < hash_b)


@njit(cache=True, nogil=True)
def offer(best: Any, best_dots: Any, length: Any, row: Any, exact: Any, hashes: Any) -> Any:
    """Insert a row into a sorted list where it belongs, if it does; returns the new length."""
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
    block: Any, slack: Any, rows: Any, points: Any, hashes: Any, alive: Any, found: Any, found_dots: Any
) -> None:
    width = found.shape[1]
    for q in prange(block.shape[0]):
        length = 0
        floor = np.float32(-np.inf)
        for j in range(block.shape[1]):
            if block[q, j] >= floor and alive[j] and j != rows[q]:
                exact = dot(points[rows[q]], points[j])
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


class HnswIndex:
    """hnswlib behind the interface. A fresh label for each insert; deletes leave tombstones.

    M, ef_construction, ef: hnswlib's. `threads`: for inserts and searches, which never overlap.
    When tombstones pass `tombstone_share` of all elements the graph is built anew.
    """

    exact = False

    def __init__(
        self,
        points: Points,
        *,
        M: int = 16,
        ef_construction: int = 200,
        ef: int = 200,
        threads: int = 2,
        seed: int = 100,
        tombstone_share: float = 0.3,
    ) -> None:
        self.points = points
        self.M, self.ef_construction, self.ef = M, ef_construction, ef
        self.threads, self.seed, self.tombstone_share = threads, seed, tombstone_share
        self._turns = Turnstile()  # hnswlib must not insert and search at once
        self._graph = self._new_graph(1024)
        self._row_of = np.empty(0, np.int32)  # label -> row
        self._label_of = np.empty(0, np.int64)  # row -> label, -1: not in the graph
        self._live = 0
        self.leaving = np.empty(0, np.int32)  # removed last; until the commit their items are still there

    def _new_graph(self, capacity: int) -> Any:
        graph = hnswlib.Index(space="ip", dim=self.points.vectors.shape[1])
        graph.init_index(capacity, M=self.M, ef_construction=self.ef_construction, random_seed=self.seed)
        graph.set_ef(self.ef)
        return graph

    @property
    def dim(self) -> int:
        return int(self.points.vectors.shape[1])

    def file_size(self) -> int:
        """Bytes that `save` has to have written."""
        return int(self._graph.index_file_size())

    @property
    def tombstones(self) -> int:
        return len(self._row_of) - self._live

    def insert(self, rows: Int32) -> None:
        if not len(rows):
            return
        first = len(self._row_of)
        labels = np.arange(first, first + len(rows), dtype=np.int64)
        floats = vectors.as_float(self.points.vectors[rows])
        self._row_of = np.concatenate([self._row_of, rows])
        at = 0
        while at < len(rows):
            part = slice(at, at + (_SLICE_BUSY if self._turns.busy else _SLICE))
            with self._turns.insert():
                if first + len(rows) > self._graph.get_max_elements():
                    self._graph.resize_index(2 * (first + len(rows)))
                self._graph.add_items(floats[part], labels[part], self.threads)
                self._live += len(rows[part])
            at = part.stop
        self._set_labels(rows, labels)

    def _set_labels(self, rows: Int32, labels: Int64) -> None:
        if len(self._label_of) < len(self.points.alive):
            grown = np.full(len(self.points.alive), -1, np.int64)
            grown[: len(self._label_of)] = self._label_of
            self._label_of = grown
        self._label_of[rows] = labels

    def remove(self, rows: Int32) -> None:
        """Once a batch, before its inserts: rows of the one before are committed by then."""
        self.leaving = rows
        with self._turns.insert():
            for label in self._label_of[rows]:
                self._graph.mark_deleted(int(label))
            self._label_of[rows] = -1
            self._live -= len(rows)
        if self.tombstones > max(1024, self.tombstone_share * len(self._row_of)):
            self.rebuild()

    def rebuild(self) -> None:
        """A new graph of the live rows alone; the old one answers until it is complete."""
        rows = np.flatnonzero(self._label_of >= 0).astype(np.int32)
        labels = np.arange(len(rows), dtype=np.int64)
        graph = self._new_graph(max(1024, 2 * len(rows)))
        if len(rows):
            graph.add_items(vectors.as_float(self.points.vectors[rows]), labels, self.threads)
        with self._turns.insert():
            self._graph, self._row_of, self._live = graph, rows, len(rows)
            self._set_labels(rows, labels)

    def search(self, rows: Int32, width: int) -> tuple[Int32, Int32]:
        """As `Index.search`; a graph that cannot answer (torn apart by deletes) is passed over."""
        neighbors = self._propose(vectors.as_float(self.points.vectors[rows]), width + 1)
        if neighbors is None:
            return self._scan().search(rows, width)
        found, found_dots = _score(self.points.vectors, self.points.hashes, rows, neighbors, width)
        return found, found_dots

    def query(self, queries: Int16, width: int) -> Int32:
        """Live rows near vectors that are not in the index, int32 (m, min(width, live)), unscored."""
        neighbors = self._propose(vectors.as_float(queries), width)
        if neighbors is None:
            live = np.flatnonzero(self._label_of >= 0).astype(np.int32)
            return np.broadcast_to(live, (len(queries), len(live)))
        return neighbors

    def _propose(self, floats: Float32, width: int) -> Int32 | None:
        with self._turns.search():
            count = min(width, self._live)
            if count == 0:
                return np.empty((len(floats), 0), np.int32)
            try:
                labels, _ = self._graph.knn_query(floats, k=count, num_threads=self.threads)
            except RuntimeError:  # fewer than `count` elements were reachable
                return None
            found: Int32 = self._row_of[labels.astype(np.int64)]
            return found

    def _scan(self) -> ExactIndex:
        scan = ExactIndex(self.points)
        scan.insert(np.flatnonzero(self._label_of >= 0).astype(np.int32))
        return scan

    def save(self, path: Path) -> tuple[Int64, Int64]:
        """Write the graph; returns its live labels and their rows, which the caller must keep."""
        with self._turns.insert():
            self._graph.save_index(str(path))
            live = np.flatnonzero(self._label_of >= 0)
            return self._label_of[live], live

    def load(self, path: Path, labels: Int64, rows: Int32) -> None:
        """Take a saved graph whose element `labels[i]` is now at `rows[i]`; all others are deleted."""
        with self._turns.insert():
            self._graph = hnswlib.Index(space="ip", dim=self.dim)
            self._graph.load_index(str(path))
            self._graph.set_ef(self.ef)  # a load sets it back to 10
            count = self._graph.get_current_count()
            self._row_of = np.full(count, _NO_ROW)
            self._row_of[labels] = rows
            self._label_of = np.empty(0, np.int64)
            self._set_labels(rows, labels)
            self._live = len(rows)
            for label in np.flatnonzero(self._row_of < 0):
                try:
                    self._graph.mark_deleted(int(label))
                except RuntimeError:  # was deleted before it was saved
                    continue


@njit(cache=True, parallel=True, nogil=True)
def _score(points: Any, hashes: Any, rows: Any, neighbors: Any, width: Any) -> Any:
    found = np.full((len(rows), width), np.int32(-1))
    found_dots = np.full((len(rows), width), np.int32(-1))
    for q in prange(len(rows)):
        length = 0
        for t in range(neighbors.shape[1]):
            j = neighbors[q, t]
            if j == rows[q]:
                continue
            exact = dot(points[rows[q]], points[j])
            length = offer(found[q], found_dots[q], length, j, exact, hashes)
    return found, found_dots
