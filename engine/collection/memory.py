"""`assign` and membership strength on an in-memory `State`, for the estimator."""

from __future__ import annotations

import numpy as np

from engine.clustering.level import Level, Model
from engine.clustering.list_arrays import means
from engine.clustering.state import State
from engine.types import Epoch, Float32, Float64, Int16, Int32, Int64, KnnGraph
from engine.vectors import hash_vectors

BLOCK = 256  # vectors that are compared with all nodes at once


def assign(state: State, grid: Int16) -> Int64:
    """Return the final cluster id of each grid vector (m, d), were it inserted alone; 0: a new one.

    The cluster is that of the most probable linkage above tau, whatever the densities; a vector that items
    have already is in theirs.
    """
    base = state.hierarchy.base
    rows = base.nodes.all_rows()
    out = np.zeros(len(grid), np.int64)
    if not len(rows) or not len(grid):
        return out
    known = state.distinct.find(grid)
    held = known >= 0
    out[held] = state.final_of_nodes(known[held])
    asked = np.flatnonzero(~held)
    for first in range(0, len(asked), BLOCK):
        part = asked[first : first + BLOCK]
        best, linkage = _most_probable(state, grid[part], *_nearest(base, rows, grid[part]))
        links = linkage > base.tau
        out[part[links]] = state.final_of_nodes(best[links])
    return out


def strengths(state: State) -> Float64:
    """Return of each row of level 0 the greatest linkage to a neighbour in the same final cluster.

    1 for the vectors of several items, 0 without such a neighbour, and for rows not in use.
    """
    base, k = state.hierarchy.base, state.hierarchy.shape.k
    out = np.zeros(len(base.root))
    rows = base.nodes.all_rows()
    final = np.zeros(len(base.root), np.int64)
    final[rows] = state.final_of_nodes(rows)
    near = base.lists.neighbors[rows, :k]
    used = np.arange(k) < base.lists.lengths[rows][:, None]
    same = used & (final[near] == final[rows][:, None])
    out[rows] = np.where(same, base.linkage[rows], 0.0).max(axis=1, initial=0.0)
    out[rows[state.copies[rows] > 1]] = 1.0
    return out


def _nearest(base: Level, rows: Int32, grid: Int16) -> tuple[Int32, Int32]:
    """Return the k nearest nodes of each vector and their dots, (m, k) int32 each; -1 pads."""
    k = base.shape.k
    neighbors, dots = np.full((len(grid), k), -1, np.int32), np.full((len(grid), k), -1, np.int32)
    nodes = base.nodes
    exact = grid.astype(np.float64) @ nodes.vectors[rows].astype(np.float64).T  # integers below 2^53
    few = min(2 * k, len(rows))
    for at, found in enumerate(exact):
        least = np.partition(found, len(found) - few)[len(found) - few]
        near = np.flatnonzero(found >= least)
        order = near[np.lexsort((nodes.hashes[rows[near]], -found[near]))][:k]
        neighbors[at, : len(order)], dots[at, : len(order)] = rows[order], found[order]
    return neighbors, dots


def _most_probable(state: State, grid: Int16, neighbors: Int32, dots: Int32) -> tuple[Int32, Float32]:
    """Return each vector's neighbour of the greatest linkage, ties by hash, and that linkage."""
    base, k = state.hierarchy.base, state.hierarchy.shape.k
    seen, count, asked = base.graph(), len(base.root), len(grid)
    degree = (neighbors >= 0).sum(axis=1, dtype=np.int32)
    own = np.arange(count, count + asked, dtype=np.int32)
    vectors = np.concatenate([seen.identity[:count], grid])
    lists, lengths = np.concatenate([seen.neighbors[:count, :k], neighbors]), np.append(seen.degree, degree)
    graph = KnnGraph(
        k,
        lists,
        np.concatenate([seen.dots[:count, :k], dots]),
        lengths,
        np.concatenate([seen.size[:count], np.ones(asked, np.int64)]),
        vectors,
        np.concatenate([seen.mean[:count], means(own, k, lists, lengths, vectors)]),
        True,
    )
    best, linkage = most_probable(state.hierarchy.model, graph, state.calibration.epoch, own)
    return neighbors[np.arange(asked), best], linkage


def most_probable(model: Model, graph: KnnGraph, epoch: Epoch, rows: Int32) -> tuple[Int64, Float32]:
    """Return the rank of each row's neighbour of the greatest linkage, ties by hash, and that linkage, (m,).

    The graph is of level 0; nothing but the rows and their neighbours is embedded.
    """
    near = graph.neighbors[rows]
    own, ranks = np.nonzero(near >= 0)
    sources, targets = rows[own], near[own, ranks]
    ends = np.unique(np.concatenate([sources, targets])).astype(np.int32)
    hidden = np.zeros((len(graph.degree), model.base.hidden), np.float32)
    hidden[ends] = model.base.embed(graph, epoch, ends)
    linkage, order = np.full(near.shape, -1.0, np.float32), np.zeros(near.shape, np.uint64)
    linkage[own, ranks] = model.base.link(graph, epoch, hidden, sources, ranks.astype(np.int32))
    order[own, ranks] = hash_vectors(graph.identity[targets])
    best = np.lexsort((order, -linkage), axis=1)[:, 0]
    return best, linkage[np.arange(len(rows)), best]
