"""The HNSW index: hnswlib proposes candidates, the exact integer dot scores them.

Elements of hnswlib are never reused: an insert gets a fresh label, a delete leaves a tombstone. When
tombstones are many, a next graph of the live rows grows next to the current one, a few rows with every
change, and replaces it when it is complete. So no batch waits for a graph to be built.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
from numba import njit, prange

from engine import vectors
from engine.index.base import ExactIndex, Points, offer
from engine.types import Bool, Float32, Int16, Int32, Int64
from engine.vectors import dot

_SLICE, _SLICE_BUSY = 64, 5  # rows inserted at once; fewer, some milliseconds' worth, while queries wait
_LEAST_TOMBSTONES = 1024  # fewer are not worth another graph
# Rows the next graph gets for each row inserted or removed. With steady turnover the switch then comes at
# some 30% tombstones; with 1 it would come later, and with more each batch would take longer.
_BESIDE = 2
PATIENCE_S = 0.02  # how long a waiting insert admits new searches
ASKED_S = 1.0  # how long after a foreign search inserts use short slices


class GraphLock:
    """Lock of a graph: one insert alone, or any number of searches together. `clock` returns seconds.

    A batch inserts in slices, and waiting searches run between two slices: a query waits for a slice, not
    for a batch. An insert waits for those searches, but only for `PATIENCE_S`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._change = threading.Condition()
        self._clock = clock
        self._searching = self._waiting = 0
        self._inserting = self._pressing = False
        self._asked = -ASKED_S  # when another thread last searched
        self._writer = 0  # the thread that inserts

    @property
    def busy(self) -> bool:
        """Return whether searches are to be expected during inserts: slices should then be short."""
        return self._clock() - self._asked < ASKED_S

    @contextmanager
    def search(self) -> Iterator[None]:
        """Hold the lock for a search; wait while an insert runs or waits for its turn. Thread-safe."""
        with self._change:
            if self._writer != threading.get_ident():
                self._asked = self._clock()
            self._waiting += 1
            self._change.wait_for(lambda: not (self._inserting or self._pressing))
            self._waiting -= 1
            self._searching += 1
        try:
            yield
        finally:
            with self._change:
                self._searching -= 1
                self._change.notify_all()

    @contextmanager
    def insert(self) -> Iterator[None]:
        """Hold the lock for an insert or a delete, alone. New searches are admitted for PATIENCE_S only."""
        with self._change:
            self._writer = threading.get_ident()
            self._change.wait_for(lambda: not (self._searching or self._waiting), PATIENCE_S)
            self._pressing = True
            self._change.wait_for(lambda: not (self._searching or self._inserting))
            self._pressing, self._inserting = False, True
        try:
            yield
        finally:
            with self._change:
                self._inserting = False
                self._change.notify_all()


class Graph:
    """An hnswlib graph and the row of each of its elements."""

    def __init__(self, made: Any, row_of: Int32, live: int) -> None:
        """`made`: an hnswlib.Index; `row_of`: the row of each element, `live` of them not deleted."""
        self.made = made
        self.row_of = row_of  # label -> row; may be longer than the number of elements
        self.count, self.live = len(row_of), live
        self.label_of = np.empty(0, np.int64)  # row -> label, -1: not in the graph

    @property
    def tombstones(self) -> int:
        return self.count - self.live

    def reserve(self, rows: int) -> None:
        """Make room for the labels of `rows` rows."""
        if len(self.label_of) < rows:
            grown = np.full(rows, -1, np.int64)
            grown[: len(self.label_of)] = self.label_of
            self.label_of = grown

    def add(self, rows: Int32, floats: Float32, threads: int) -> None:
        """Insert new elements for `rows` (m,) with vectors `floats` (m, d); the caller holds the lock."""
        end = self.count + len(rows)
        if end > self.made.get_max_elements():
            self.made.resize_index(2 * end)
        if end > len(self.row_of):
            self.row_of = np.concatenate([self.row_of, np.full(2 * end - len(self.row_of), -1, np.int32)])
        labels = np.arange(self.count, end, dtype=np.int64)
        self.row_of[labels] = rows
        self.made.add_items(floats, labels, threads)
        self.label_of[rows] = labels
        self.count, self.live = end, self.live + len(rows)

    def remove(self, rows: Int32) -> None:
        """Mark the elements of `rows` (m,) as deleted; they stay as tombstones."""
        for label in self.label_of[rows].tolist():
            self.made.mark_deleted(label)
        self.label_of[rows] = -1
        self.live -= len(rows)

    def holds(self, rows: Int32) -> Bool:
        """Return which of the rows are in the graph."""
        held: Bool = self.label_of[rows] >= 0
        return held

    def live_rows(self) -> Int32:
        """Return the rows in the graph, int32, rising."""
        return np.flatnonzero(self.label_of >= 0).astype(np.int32)


class HnswIndex:
    """hnswlib behind the `Index` protocol.

    M, ef_construction, ef, seed: as in hnswlib (100 is its default seed). `threads`: for inserts and
    searches, which never overlap in one graph; 2 are the cores of the machine that Shoal is measured on. When
    more than `tombstone_share` of all elements are tombstones, a next graph begins to grow.
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
        tombstone_share: float = 0.15,
    ) -> None:
        self.points = points
        self.M, self.ef_construction, self.ef = M, ef_construction, ef
        self.threads, self.seed, self.tombstone_share = threads, seed, tombstone_share
        self._turns = GraphLock()  # hnswlib must not insert and search at once
        self._graph = self._new_graph(1024)
        self._next: Graph | None = None  # grows next to the current one; never searched
        self._awaited = np.empty(0, np.int32)  # rows that the next graph still lacks
        self.leaving = np.empty(0, np.int32)  # removed by the last batch; in the store until its commit

    def _new_graph(self, capacity: int) -> Graph:
        made = hnswlib.Index(space="ip", dim=self.dim)
        made.init_index(capacity, M=self.M, ef_construction=self.ef_construction, random_seed=self.seed)
        made.set_ef(self.ef)
        return Graph(made, np.empty(0, np.int32), 0)

    @property
    def dim(self) -> int:
        return int(self.points.vectors.shape[1])

    @property
    def tombstones(self) -> int:
        return self._graph.tombstones

    def insert(self, rows: Int32) -> None:
        """Insert rows (m,) of `points`, in slices between which searches of other threads run."""
        floats = vectors.as_float(self.points.vectors[rows])
        self._graph.reserve(len(self.points.alive))
        at = 0
        while at < len(rows):
            part = slice(at, at + (_SLICE_BUSY if self._turns.busy else _SLICE))
            with self._turns.insert():
                self._graph.add(rows[part], floats[part], self.threads)
            at = part.stop
        if self._next is not None and len(rows):
            self._next.reserve(len(self.points.alive))
            self._next.add(rows, floats, self.threads)
        self._renew(len(rows))

    def remove(self, rows: Int32) -> None:
        """Remove rows, once per batch and before its inserts: the previous batch is committed by then."""
        self.leaving = rows
        with self._turns.insert():
            self._graph.remove(rows)
        if self._next is not None:
            self._next.remove(rows[self._next.holds(rows)])
        self._renew(len(rows))

    def _renew(self, changed: int) -> None:
        """Begin the next graph when it is due, grow it with the `changed` rows, switch when complete."""
        if self._next is None:
            if self.tombstones <= max(_LEAST_TOMBSTONES, self.tombstone_share * self._graph.count):
                return
            self._awaited = self._graph.live_rows()
            self._next = self._new_graph(max(1024, 2 * len(self._awaited)))
            self._next.reserve(len(self._graph.label_of))
        some, self._awaited = np.split(self._awaited, [_BESIDE * changed])
        # Skip rows that left; a row reused since then came in by its insert.
        some = some[self._graph.holds(some) & ~self._next.holds(some)]
        if len(some):
            self._next.add(some, vectors.as_float(self.points.vectors[some]), self.threads)
        if not len(self._awaited):
            with self._turns.insert():
                self._graph, self._next = self._next, None

    def search(self, rows: Int32, width: int) -> tuple[Int32, Int32]:
        """Search as `Index.search`; fall back to exact search where deletes have disconnected the graph."""
        neighbors = self._propose(vectors.as_float(self.points.vectors[rows]), width + 1)
        if neighbors is None:
            return self._scan().search(rows, width)
        found, found_dots = _score(self.points.vectors, self.points.hashes, rows, neighbors, width)
        return found, found_dots

    def entrants(self, rows: Int32, bounds: Int32) -> tuple[Int32, Int32, Int32]:
        raise TypeError("an HNSW search cannot name all lists that a row may enter")

    def query(self, queries: Int16, width: int) -> Int32:
        """Return live rows near vectors that are not in the index, int32 (m, min(width, live)), unscored."""
        neighbors = self._propose(vectors.as_float(queries), width)
        if neighbors is None:
            live = self._graph.live_rows()
            return np.broadcast_to(live, (len(queries), len(live)))
        return neighbors

    def _propose(self, floats: Float32, width: int) -> Int32 | None:
        with self._turns.search():
            count = min(width, self._graph.live)
            if count == 0:
                return np.empty((len(floats), 0), np.int32)
            try:
                labels, _ = self._graph.made.knn_query(floats, k=count, num_threads=self.threads)
            except RuntimeError:  # fewer than `count` elements were reachable
                return None
            found: Int32 = self._graph.row_of[labels.astype(np.int64)]
            return found

    def _scan(self) -> ExactIndex:
        scan = ExactIndex(self.points)
        scan.insert(self._graph.live_rows())
        return scan

    def save(self, path: Path) -> tuple[Int64, Int32, int]:
        """Write the graph; return live labels, their rows (both for the caller to keep) and its bytes."""
        with self._turns.search():
            self._graph.made.save_index(str(path))
            live = self._graph.live_rows()
            return self._graph.label_of[live], live, int(self._graph.made.index_file_size())

    def load(self, path: Path, labels: Int64, rows: Int32) -> None:
        """Load a saved graph whose element `labels[i]` is now at `rows[i]`; all others are deleted."""
        made = hnswlib.Index(space="ip", dim=self.dim)
        made.load_index(str(path))
        made.set_ef(self.ef)  # hnswlib resets it to 10 on load
        row_of = np.full(made.get_current_count(), -1, np.int32)
        row_of[labels] = rows
        graph = Graph(made, row_of, len(rows))
        graph.reserve(len(self.points.alive))
        graph.label_of[rows] = labels
        for label in np.flatnonzero(row_of < 0).tolist():
            try:
                made.mark_deleted(label)
            except RuntimeError:  # was deleted before it was saved
                continue
        with self._turns.insert():
            self._graph, self._next = graph, None


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
