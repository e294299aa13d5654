"""Groups the final clusters into themes: levels above the top one, each at a lower tau.

The peaks of the top level are nodes of one level more, and so on, in the way of `hierarchy`: lists, evidence,
linkage, density, parents. Themes are computed on request, from the state between two batches, and
are neither stored nor named: they are a function of the committed state and the settings. A theme is known
by the smallest id of its final clusters. That is its oldest cluster's: a theme that gains clusters or loses
others keeps it; the largest cluster would hand it on whenever another one outgrows it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.clustering.hierarchy import lift
from engine.clustering.level import Delta, Level, Model
from engine.clustering.state import State
from engine.errors import InputError
from engine.index.base import ExactIndex
from engine.system.stopwatch import Stopwatch
from engine.types import Epoch, Int32, Int64, Themes


@dataclass(frozen=True, slots=True)
class Ground:
    """The input of themes; it shares no array with the state, which may change meanwhile."""

    version: int
    clusters: Int64  # (n,) final cluster ids, by row of `level`
    level: Level  # the final clusters as nodes, not yet clustered
    delta: Delta  # their arrival
    model: Model
    epoch: Epoch


def prepare(state: State, most: int) -> Ground | None:
    """Return the ground of a state; None: it is empty. Call it between batches: it reads all nodes once.

    Raises InputError: there are more than `most` final clusters.
    """
    hierarchy = state.hierarchy
    top = hierarchy.levels[-1]
    if not top.nodes.live:
        return None
    if top.peaks > most:
        raise InputError(
            f"{top.peaks:,} final clusters are more than the {most:,} that are grouped into themes "
            "([limits] theme_clusters)"
        )
    lower = copy.copy(top)
    lower.above = np.full_like(top.above, -1)  # the top level's own stays as it is: there is none above it
    level = Level(hierarchy.shape, hierarchy.model, False, ExactIndex)
    delta = _raise(lower, level)
    rows = level.below[: level.nodes.rows]
    for finer in hierarchy.levels[:0:-1]:
        rows = finer.below[rows]
    clusters = state.final_of_nodes(rows)
    return Ground(state.version, clusters, level, delta, hierarchy.model, state.calibration.epoch)


def none(version: int, levels: int) -> Themes:
    """Return the themes of a version without items."""
    return Themes(version, np.empty(0, np.int64), np.empty((levels, 0), np.int64))


def grow(ground: Ground, taus: Sequence[float]) -> Themes:
    """Return the themes at each tau, the finest first; for each level the one below is the ground.

    Uses `ground` up.
    """
    level, delta = ground.level, ground.delta
    nodes = np.arange(len(ground.clusters), dtype=np.int32)  # of each final cluster, at `level`
    keys = np.empty((len(taus), len(nodes)), np.int64)
    for at, tau in enumerate(taus):
        if at:
            lower, level = level, Level(level.shape, ground.model, False, ExactIndex)
            delta = _raise(lower, level)
            nodes = lower.above[lower.root[nodes]]
        level.tau = np.float32(tau)
        level.update(delta, ground.epoch, False, Stopwatch())
        keys[at] = _smallest(ground.clusters, level.root[nodes])
    order = np.argsort(ground.clusters)
    return Themes(ground.version, ground.clusters[order], np.ascontiguousarray(keys[:, order]))


def _raise(lower: Level, upper: Level) -> Delta:
    """Make the peaks of a level the nodes of an empty one; return their arrival."""
    moves = lower.arrival()
    delta, _ = lift(lower, upper, Delta(), moves, moves.rows)
    return delta


def _smallest(clusters: Int64, roots: Int32) -> Int64:
    """Return for each cluster the smallest one with the same root."""
    least = np.full(int(roots.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(least, roots, clusters)
    out: Int64 = least[roots]
    return out
