"""Clusters the levels of the hierarchy and propagates a change from each level to the next.

Nodes of level 0 are distinct vectors; how many items share one is unknown here. Each peak of a level is a
node of the next one, with the sums of its tree. The changes of one level are the next one's batch, as
differences; a level that adds no link is the top. Clustering from scratch runs the same code with everything
at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from engine.clustering.level import Clustered, Delta, Level, Model, Shape, Work
from engine.clustering.supernodes import lift
from engine.index.base import ExactIndex
from engine.index.columns import Nodes
from engine.index.hnsw import HnswIndex
from engine.system.stopwatch import Stopwatch
from engine.types import NO_ROWS, Epoch, Int32, Int64


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
        self.levels = [Level(shape, model, True, base_index)]

    @property
    def base(self) -> Level:
        return self.levels[0]

    def update(self, new: Int32, gone: Int32, epoch: Epoch, everything: bool, watch: Stopwatch) -> Clustered:
        """Cluster after inserts and deletes, which are already applied to `base.nodes`."""
        delta = Delta.of(new, gone)
        found = self.base.update(delta, epoch, everything, watch)
        above = self._climb(delta, found, epoch, everything, watch)
        return replace(found, work=[*found.work, *above])

    def restore(self, epoch: Epoch, watch: Stopwatch) -> list[Work]:
        """Cluster from the lists of level 0, which are already in place."""
        delta = Delta.of(self.base.nodes.all_rows(), NO_ROWS)
        found = self.base.recluster(delta, delta.new, epoch, watch)
        return [*found.work, *self._climb(delta, found, epoch, True, watch)]

    def retune(self, tau: float, base_tau: float | None, epoch: Epoch) -> None:
        """Cluster anew at other taus, `base_tau` that of level 0: it has its linkage already."""
        self.shape = replace(self.shape, tau=tau, base_tau=base_tau)
        self.base.retune(self.shape)
        self.climb(epoch)

    def climb(self, epoch: Epoch) -> None:
        """Cluster the levels above level 0 anew."""
        del self.levels[1:]
        base = self.base
        base.above[: base.nodes.rows] = -1
        arrival = base.arrival()
        found = Clustered(arrival, NO_ROWS, arrival.rows, [])
        self._climb(Delta.of(arrival.rows, NO_ROWS), found, epoch, True, Stopwatch())

    def _climb(
        self, delta: Delta, found: Clustered, epoch: Epoch, everything: bool, watch: Stopwatch
    ) -> list[Work]:
        """`found` and `delta`: of level 0."""
        works: list[Work] = []
        moves, told = found.moves, found.judged  # told: rows with other edges or entries
        for at in range(1, self.shape.max_levels):
            lower = self.levels[at - 1]
            released = delta.gone
            if lower.links == 0:
                del self.levels[at:]
                lower.above[: lower.nodes.rows] = -1
                lower.nodes.release(released)
                return works
            if at == len(self.levels):
                self.levels.append(Level(self.shape, self.model, False, ExactIndex))
                moves = lower.arrival()
                delta, told = Delta.of(NO_ROWS, NO_ROWS), moves.rows
            upper = self.levels[at]
            delta, told = lift(lower, upper, delta, moves, told)
            lower.nodes.release(released)
            watch.lap("supernodes")
            found = upper.update(delta, epoch, everything, watch)
            moves = found.moves
            works += found.work
        self.levels[-1].nodes.release(delta.gone)
        return works
