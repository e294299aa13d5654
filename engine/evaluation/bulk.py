"""Clusters a whole collection at once, in memory; the levels are those that the engine builds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from engine.clustering import hierarchy as hierarchies
from engine.clustering.calibration import LEAST_ITEMS, Calibration
from engine.clustering.hierarchy import Hierarchy
from engine.clustering.level import Level, Model, Shape
from engine.index.base import ExactIndex
from engine.numbering import by_occurrence
from engine.types import NO_ROWS, Epoch, Float32, Int16, Int64
from engine.vectors import quantize

ASSUMED = Epoch(0.1, 0.1, 0)  # calibration of collections too small to be measured


@dataclass(frozen=True, slots=True)
class BulkClustering:
    """A clustered collection; identical vectors are one node, as in the engine."""

    levels: list[Level]
    node_of: Int64  # (n,) row of each item's node at level 0


def hierarchy(
    emb: Float32,
    model: Model,
    tau: float,
    max_levels: int,
    epoch: Epoch | None = None,
    seed: int = 0,
    base_tau: float | None = None,
) -> BulkClustering:
    """Cluster non-zero embeddings (n, d) with the exact index.

    `epoch`: the collection's own by default. Nodes are in the order of their first items; `seed` breaks ties.
    """
    grid, node_of = _distinct(emb)
    shape = Shape(dim=emb.shape[1], k=model.k, tau=tau, max_levels=max_levels, base_tau=base_tau)
    built = Hierarchy(shape, model, lambda nodes: ExactIndex(nodes))
    hashes = np.random.default_rng(seed).permutation(len(grid)).astype(np.uint64)
    rows = built.base.add(grid, hashes)
    built.update(rows, NO_ROWS, epoch or measure_epoch(emb), True)
    return BulkClustering(built.levels, node_of)


def recluster_upper_levels(
    built: BulkClustering, model: Model, tau: float, max_levels: int, epoch: Epoch
) -> BulkClustering:
    """Return the same level 0 with new levels above it; the upper levels of `built` are no longer valid."""
    base = built.levels[0]
    shape = replace(base.shape, tau=tau, max_levels=max_levels)
    again = Hierarchy(shape, model, lambda nodes: ExactIndex(nodes))
    again.base, again.levels = base, [base]
    again.climb(epoch)
    return BulkClustering(again.levels, built.node_of)


def recluster_base(built: BulkClustering, base_tau: float) -> BulkClustering:
    """Return level 0 alone, by its linkage at another tau; `built` is no longer valid."""
    base = built.levels[0]
    base.retune(replace(base.shape, base_tau=base_tau))
    return BulkClustering([base], built.node_of)


def recluster(
    built: BulkClustering, model: Model, tau: float, base_tau: float | None, max_levels: int, epoch: Epoch
) -> BulkClustering:
    """Return the collection clustered by another model. It shares the nodes of `built` and their lists."""
    lower = built.levels[0]
    shape = replace(lower.shape, tau=tau, base_tau=base_tau, max_levels=max_levels)
    again = Hierarchy(shape, model, lambda nodes: ExactIndex(nodes))
    again.base.nodes, again.base.lists = lower.nodes, lower.lists
    again.base.prepare(lower.nodes.all_rows())
    again.restore(epoch)
    return BulkClustering(again.levels, built.node_of)


def measure_epoch(emb: Float32, card: Epoch = ASSUMED) -> Epoch:
    """Calibrate a collection (n, d) as the engine does; return `card` where it is too small."""
    grid, _ = _distinct(emb)
    if len(grid) < LEAST_ITEMS:
        return card
    calibration = Calibration(emb.shape[1], card)
    calibration.add(grid)
    return calibration.measure()


def _distinct(emb: Float32) -> tuple[Int16, Int64]:
    """Return the distinct grid vectors in the order of their first items, and each item's row, (n,)."""
    grid, reasons = quantize(emb)
    assert not reasons, f"unusable rows: {sorted(reasons)[:5]}"
    first, number = by_occurrence(grid)
    return grid[first], number


def places(built: BulkClustering) -> list[Int64]:
    """Return the row of each item's node (n,) at each level."""
    return hierarchies.places(built.levels, built.node_of)


def partitions(built: BulkClustering) -> list[Int64]:
    """Return the cluster (n,) of each item after each level, as the row of its peak."""
    levels = zip(built.levels, places(built), strict=True)
    return [level.root[place].astype(np.int64) for level, place in levels]
