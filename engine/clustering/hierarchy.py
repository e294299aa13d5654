"""Clusters the levels of the hierarchy and propagates a change from each level to the next.

Nodes of level 0 are distinct vectors; how many items share one is unknown here. Each peak of a level is a
node of the next one, with the sums of its tree. The changes of one level are the next one's batch, as
differences; a level that adds no link is the top. Clustering from scratch runs the same code with everything
at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numba import njit

from engine.clustering import evidence
from engine.clustering.decode import ROOT
from engine.clustering.level import Clustered, Delta, Level, Model, Moves, Shape
from engine.index.base import ExactIndex
from engine.index.columns import Nodes
from engine.index.hnsw import HnswIndex
from engine.system.stopwatch import Stopwatch
from engine.types import NO_ROWS, Epoch, Int32, Int64
from engine.vectors import round_means


def places(levels: Sequence[Level], rows: Int64) -> list[Int64]:
    """Return for each level the rows of the nodes that contain these nodes of level 0, (n,) each."""
    out = [rows]
    for level in levels[:-1]:
        out.append(level.above[level.root[out[-1]]].astype(np.int64))
    return out


class Hierarchy:
    """All levels of one collection. `base_index` makes level 0's index."""

    def __init__(
        self, shape: Shape, model: Model, base_index: Callable[[Nodes], ExactIndex | HnswIndex]
    ) -> None:
        self.shape, self.model = shape, model
        self.base = Level(shape, model, True, base_index)
        self.levels = [self.base]  # level 0 first

    def update(
        self,
        new: Int32,
        gone: Int32,
        epoch: Epoch,
        everything: bool = False,
        watch: Stopwatch | None = None,
    ) -> Clustered:
        """Cluster after inserts and deletes, which are already applied to `base.nodes`."""
        delta, watch = Delta(new, gone), watch or Stopwatch()
        found = self.base.update(delta, epoch, everything, watch)
        self._climb(delta, found, epoch, everything, watch)
        return found

    def restore(self, epoch: Epoch) -> None:
        """Cluster from the lists of level 0, which are already in place."""
        delta, watch = Delta(self.base.nodes.all_rows()), Stopwatch()
        self._climb(delta, self.base.recluster(delta, delta.new, epoch, watch), epoch, True, watch)

    def retune(self, tau: float, base_tau: float | None, epoch: Epoch) -> None:
        """Cluster again at other taus, `base_tau` that of level 0, whose linkage is kept."""
        self.shape = replace(self.shape, tau=tau, base_tau=base_tau)
        self.base.retune(self.shape)
        self.climb(epoch)

    def climb(self, epoch: Epoch) -> None:
        """Cluster the levels above level 0 from scratch."""
        del self.levels[1:]
        base = self.base
        base.above[: base.nodes.rows] = -1
        arrival = base.arrival()
        found = Clustered(arrival, NO_ROWS, arrival.rows, [])
        self._climb(Delta(arrival.rows), found, epoch, True, Stopwatch())

    def _climb(
        self, delta: Delta, found: Clustered, epoch: Epoch, everything: bool, watch: Stopwatch
    ) -> None:
        """Cluster the levels above level 0, whose `delta` and `found` these are; `found` gets their work."""
        works = found.work
        moves, told = found.moves, found.judged  # told: rows with other edges or entries
        for at in range(1, self.shape.max_levels):
            lower = self.levels[at - 1]
            released = delta.gone
            if lower.links == 0:
                del self.levels[at:]
                lower.above[: lower.nodes.rows] = -1
                lower.nodes.release(released)
                return
            if at == len(self.levels):
                self.levels.append(Level(self.shape, self.model, False, ExactIndex))
                moves = lower.arrival()
                delta, told = Delta(), moves.rows
            upper = self.levels[at]
            delta, told = lift(lower, upper, delta, moves, told)
            lower.nodes.release(released)
            watch.lap("supernodes")
            found = upper.update(delta, epoch, everything, watch)
            moves = found.moves
            works += found.work
        self.levels[-1].nodes.release(delta.gone)


def lift(lower: Level, upper: Level, delta: Delta, moves: Moves, told: Int32) -> tuple[Delta, Int32]:
    """Translate a level's moves and gains into the next level's batch; also return the rows that are `told`.

    Supernodes come, go, and change their size, mean and evidence. `told`: rows whose edges (at level 0) or
    evidence (above) changed.
    """
    roots, sizes, sums = _gains(lower, delta, moves)
    is_peak = lower.nodes.alive[roots] & (lower.parent[roots] == ROOT)
    was_peak = lower.above[roots] >= 0
    appeared, vanished, stayed = is_peak & ~was_peak, was_peak & ~is_peak, is_peak & was_peak
    stayed &= (sizes != 0) | (sums != 0).any(axis=1)

    gone = lower.above[roots[vanished]]
    assert not (upper.sizes[gone] + sizes[vanished]).any(), "a supernode vanished with items in it"
    upper.nodes.remove(gone)
    lower.above[roots[vanished]] = -1

    peaks = roots[appeared]
    new = upper.add(lower.nodes.vectors[peaks], lower.nodes.hashes[peaks])
    upper.below[new], lower.above[peaks] = peaks, new
    upper.sizes[new], upper.sums[new] = sizes[appeared], sums[appeared]

    touched = lower.above[roots[stayed]]
    upper.sizes[touched] += sizes[stayed]
    upper.sums[touched] += sums[stayed]
    fresh = np.concatenate([new, touched])
    means = np.empty((len(fresh), lower.shape.dim), np.int16)
    round_means(upper.sums[fresh], upper.sizes[fresh], means)
    differs = (means != upper.means[fresh]).any(axis=1)[len(new) :] | (sizes[stayed] != 0)
    upper.means[fresh] = means
    heard = _hear(lower, upper, told, moves, gone)
    reshaped = np.union1d(touched[differs], heard)
    return Delta(new, gone, touched, sizes[stayed], sums[stayed], reshaped), heard


def _hear(lower: Level, upper: Level, told: Int32, moves: Moves, gone: Int32) -> Int32:
    """Update the evidence of `upper`'s nodes; return the rows that differ. `gone`: former nodes."""
    alive = lower.nodes.alive
    moved = moves.rows[alive[moves.rows]]
    if lower.is_base:
        pointing = lower.lists.affected_nodes(moved)
    else:
        pointing = evidence.pointing(moves.rows, alive[: lower.nodes.rows], lower.evidence.arrays)
    concerned = np.concatenate([told, moved, pointing])
    peaks = np.concatenate([lower.root[concerned], moves.before[moves.before >= 0]])
    rows = np.unique(lower.above[peaks])  # -1: no longer a peak
    return upper.evidence.update(rows[rows >= 0], gone, lower.trees(), lower.sources(), upper.capacity)


def _gains(lower: Level, delta: Delta, moves: Moves) -> tuple[Int32, Int64, Int64]:
    """Return the gains of each affected root's tree: roots (r,), sizes (r,), sums (r, d).

    A moved row takes all it has now from its old root to its new one, so what it gained in the same
    change is given to the old root first.
    """
    was = delta.touched
    if len(was):
        root_before = lower.root.copy()
        root_before[moves.rows] = moves.before
        was = root_before[delta.touched]
    ends = np.concatenate([moves.before, moves.after, was])
    roots, place = np.unique(ends, return_inverse=True)
    before, after, gaining = np.split(place, [len(moves.rows), 2 * len(moves.rows)])
    sizes = np.zeros(len(roots), np.int64)
    sums = np.zeros((len(roots), lower.shape.dim), np.int64)
    vectors = lower.nodes.vectors if lower.is_base else lower.sums
    _carry(moves.rows, before, after, lower.sizes, vectors, sizes, sums)
    np.add.at(sizes, gaining, delta.gained_sizes)
    if len(gaining):
        np.add.at(sums, gaining, delta.gained_sums)
    real = roots >= 0
    return roots[real], sizes[real], sums[real]


@njit(cache=True, nogil=True)
def _carry(rows: Any, before: Any, after: Any, sizes: Any, vectors: Any, out: Any, sums: Any) -> None:
    for t in range(len(rows)):
        row, old, new = rows[t], before[t], after[t]
        out[old] -= sizes[row]
        out[new] += sizes[row]
        for c in range(vectors.shape[1]):
            sums[old, c] -= vectors[row, c]
            sums[new, c] += vectors[row, c]
