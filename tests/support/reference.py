"""Hi-LANDER from scratch in the plainest code there is, sharing only the model with the engine.

Lists by comparing all pairs, densities, parents and trees one node at a time, supernodes by adding up
their vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.clustering.distinct import distinct_hashes
from engine.clustering.level import Shape
from engine.types import Epoch, EvidenceArrays, Int16, Int32, KnnGraph, UInt64


@dataclass
class SlowLevel:
    """One level; rows are its nodes by rising hash."""

    hashes: UInt64
    graph: KnnGraph
    hidden: np.ndarray
    linkage: np.ndarray  # (n, k) float32
    density: list[np.float32]
    parents: list[int]  # row, -1: a peak
    roots: list[int]  # row
    items: list[list[int]]  # of each node, as rows of level 0


def cluster(grid: Int16, hashes: UInt64, model: Any, shape: Shape, epoch: Epoch) -> list[SlowLevel]:
    """All levels of nodes with these vectors (n, d), all different, and hashes (n,)."""
    order = np.argsort(hashes)
    grid, hashes = grid[order], hashes[order]
    levels: list[SlowLevel] = []
    items = [[row] for row in range(len(grid))]
    nodes = list(range(len(grid)))  # each node's peak as a row of level 0
    while True:
        mean = None if not levels else np.array([rounded_mean(grid[own]) for own in items], np.int16)
        graph = _graph(grid[nodes], hashes[nodes], mean, items, shape)
        if levels:
            graph = replace(graph, evidence=evidence_of(levels[0], items))
        tau = shape.base_tau if not levels and shape.base_tau is not None else shape.tau
        level = _level(graph, hashes[nodes], items, model, tau, epoch)
        levels.append(level)
        peaks = _peaks(level)
        if len(peaks) == len(nodes) or len(levels) == shape.max_levels:
            return levels
        items = _trees(level)
        nodes = [nodes[peak] for peak in peaks]


def themes(
    grid: Int16, levels: list[SlowLevel], model: Any, shape: Shape, taus: Sequence[float], epoch: Epoch
) -> list[list[list[int]]]:
    """The themes above the levels that `cluster` made of `grid`, at each tau: rows of level 0 by theme."""
    base, level = levels[0], levels[-1]
    grid = np.array([grid[row] for row in np.argsort(distinct_hashes(grid))], np.int16).reshape(grid.shape)
    found = []
    for tau in taus:
        hashes, items = level.hashes[_peaks(level)], _trees(level)
        nodes = [base.hashes.tolist().index(name) for name in hashes.tolist()]
        mean = np.array([rounded_mean(grid[own]) for own in items], np.int16)
        graph = _graph(grid[nodes], hashes, mean, items, shape)
        graph = replace(graph, evidence=evidence_of(base, items))
        level = _level(graph, hashes, items, model, tau, epoch)
        found.append(_trees(level))
    return found


def _peaks(level: SlowLevel) -> list[int]:
    return [row for row, parent in enumerate(level.parents) if parent < 0]


def _trees(level: SlowLevel) -> list[list[int]]:
    """The items under each peak."""
    trees = [[row for row, root in enumerate(level.roots) if root == peak] for peak in _peaks(level)]
    return [[item for row in tree for item in level.items[row]] for tree in trees]


def _graph(
    identity: Int16, hashes: UInt64, mean: Int16 | None, items: list[list[int]], shape: Shape
) -> KnnGraph:
    """`mean`: None at level 0."""
    n, k = len(items), shape.k
    identity = identity.reshape(n, shape.dim)
    neighbors, dots = nearest(identity, hashes, k)
    sizes = np.array([len(own) for own in items], np.int64)
    degree = np.full(n, min(k, max(n - 1, 0)), np.int32)
    is_base = mean is None
    if mean is None:
        near = [[row, *neighbors[row, : degree[row]].tolist()] for row in range(n)]
        mean = np.array([rounded_mean(identity[rows]) for rows in near], np.int16)
    return KnnGraph(k, neighbors, dots, degree, sizes, identity, mean.reshape(n, shape.dim), is_base)


def _level(
    graph: KnnGraph, hashes: UInt64, items: list[list[int]], model: Any, tau: float, epoch: Epoch
) -> SlowLevel:
    n = len(items)
    rows = np.arange(n, dtype=np.int32)
    model = model.base if graph.is_base else model.upper
    hidden = model.embed(graph, epoch, rows)
    linkage = np.zeros((n, graph.k), np.float32)
    if n > 1:
        sources = np.repeat(rows, graph.degree)
        ranks = np.tile(np.arange(graph.degree[0], dtype=np.int32), n)
        linkage[sources, ranks] = model.link(graph, epoch, hidden, sources, ranks)
    density = [_density(graph, linkage, row) for row in range(n)]
    parents = [_parent(graph, hashes, linkage, density, row, tau) for row in range(n)]
    roots = []
    for row in range(n):
        while parents[row] >= 0:
            row = parents[row]
        roots.append(row)
    return SlowLevel(hashes, graph, hidden, linkage, density, parents, roots, items)


def evidence_of(base: SlowLevel, items: list[list[int]]) -> EvidenceArrays:
    """Each edge of level 0 on its own; `items`: the members of each supernode."""
    belongs = {item: node for node, own in enumerate(items) for item in own}
    entries: list[dict[int, list[int]]] = [{} for _ in items]
    totals = np.zeros((len(items), 7), np.int64)
    for item in range(len(base.hashes)):
        node = belongs[item]
        for rank in range(base.graph.degree[item]):
            other = belongs[int(base.graph.neighbors[item, rank])]
            p = int(float(base.linkage[item, rank]) * 2**16 + 0.5)
            s = int(base.graph.dots[item, rank]) >> 12
            if other == node:
                totals[node, :4] += (1, p, s, s * s)
            else:
                old = entries[node].get(other, [0, 0, 0, 0])
                entries[node][other] = [a + b for a, b in zip(old, (1, p, s, s * s), strict=True)]
    for node, own in enumerate(entries):
        sums = list(own.values())
        most = max((entry[1] for entry in sums), default=0)
        totals[node, 4:] = (sum(entry[0] for entry in sums), sum(entry[1] for entry in sums), most)
    counts = np.array([len(own) for own in entries], np.int32)
    return EvidenceArrays(
        starts=np.cumsum(counts, dtype=np.int64) - counts,
        counts=counts,
        partners=np.array([other for own in entries for other in sorted(own)], np.int32),
        sums=np.array([own[other] for own in entries for other in sorted(own)], np.int64).reshape(-1, 4),
        totals=totals,
    )


def nearest(grid: Int16, hashes: UInt64, k: int) -> tuple[Int32, Int32]:
    """The k nearest other rows of each row and their dots, -1 pads: (n, k) int32 each."""
    wide = grid.astype(np.float64)  # holds every sum of products exactly, and is multiplied quickly
    dots = (wide @ wide.T).astype(np.int64)
    least = max(0, len(grid) - k - 1)
    bounds = np.partition(dots, least, axis=1)[:, least] if len(grid) else dots[:, :0]  # k others reach it
    neighbors = np.full((len(grid), k), -1, np.int32)
    found = np.full((len(grid), k), -1, np.int32)
    for row in range(len(grid)):
        near = np.flatnonzero(dots[row] >= bounds[row])
        order = near[np.lexsort((hashes[near], -dots[row, near]))]
        best = order[order != row][:k]
        neighbors[row, : len(best)] = best
        found[row, : len(best)] = dots[row, best]
    return neighbors, found


def rounded_mean(grid: Int16) -> list[int]:
    """Rounded half up, in Python's integers."""
    size = len(grid)
    return [(2 * total + size) // (2 * size) for total in grid.astype(np.int64).sum(axis=0).tolist()]


def _density(graph: KnnGraph, linkage: np.ndarray, row: int) -> np.float32:
    total = 0.0
    degree = int(graph.degree[row])
    for rank in range(degree):
        total += int(graph.dots[row, rank]) / 2**28 * (2.0 * float(linkage[row, rank]) - 1.0)
    return np.float32(total / degree if degree else 0.0)


def _parent(
    graph: KnnGraph, hashes: UInt64, linkage: np.ndarray, density: list[np.float32], row: int, tau: float
) -> int:
    candidates = []
    for rank in range(graph.degree[row]):
        other = int(graph.neighbors[row, rank])
        denser = (density[other], hashes[other]) > (density[row], hashes[row])
        if denser and linkage[row, rank] > np.float32(tau):
            candidates.append((-linkage[row, rank], hashes[other], other))
    return min(candidates)[2] if candidates else -1
