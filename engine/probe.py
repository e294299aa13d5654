"""Which cluster would a vector be in? Answered without inserting it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.hierarchy import Level, Model
from engine.index import HnswIndex, offer
from engine.state import State
from engine.types import Float32, Int16, Int32, KnnGraph


@dataclass(frozen=True, slots=True)
class Answer:
    """A cluster id, or None for "new"; `probability` and `neighbor` of the best linkage."""

    cluster: int | None
    probability: float
    neighbor: bytes | None


NEW = Answer(None, 0.0, None)


def assign(state: State, model: Model, vector: Int16) -> Answer:
    """The final cluster of the most probable linkage above tau of a grid vector (d,), whatever the
    densities. Features are as if it were inserted and no other list changed."""
    base = state.hierarchy.base
    neighbors, dots = _nearest(base, vector)
    if not len(neighbors):
        return NEW
    graph, hidden = _local_graph(base, vector, neighbors, dots)
    hidden[0] = model.embed(graph, state.calibration.epoch, np.zeros(1, np.int32))[0]
    ranks = np.arange(len(neighbors), dtype=np.int32)
    linkage = model.link(graph, state.calibration.epoch, hidden, np.zeros_like(ranks), ranks)
    best = min(range(len(linkage)), key=lambda t: (-linkage[t], base.nodes.hashes[neighbors[t]]))
    if linkage[best] <= np.float32(state.hierarchy.shape.tau):
        return Answer(None, float(linkage[best]), state.keys[neighbors[best]])
    cluster = state.final_clusters(neighbors[best : best + 1])[0]
    return Answer(int(cluster), float(linkage[best]), state.keys[neighbors[best]])


def _nearest(base: Level, vector: Int16) -> tuple[Int32, Int32]:
    """The k nearest items and their exact dots."""
    index, nodes, k = base.lists.index, base.nodes, base.shape.k
    if isinstance(index, HnswIndex):
        rows = index.query(vector[None], base.lists.search_width)[0]
    else:
        rows = nodes.all_rows()
    exact = (nodes.vectors[rows].astype(np.int32) * vector).sum(axis=1, dtype=np.int32)
    best, best_dots = np.full(k, -1, np.int32), np.full(k, -1, np.int32)
    length = 0
    for row, dot in zip(rows, exact, strict=True):
        length = offer(best, best_dots, length, row, dot, nodes.hashes)
    return best[:length], best_dots[:length]


def _local_graph(base: Level, vector: Int16, near: Int32, dots: Int32) -> tuple[KnnGraph, Float32]:
    """A graph of the vector (row 0), its neighbours (1 ..) and whoever is in their lists.

    Only the neighbours' lists are read of it, so nobody else has one. Returns it with what is known
    of the neighbours' embeddings.
    """
    k, lists = base.shape.k, base.lists
    degree = np.minimum(lists.lengths[near], k)
    listed = np.where(np.arange(k) < degree[:, None], lists.neighbors[near, :k], -1)
    others = np.setdiff1d(listed[listed >= 0], near)
    rows = np.concatenate([near, others])
    place = {int(row): at + 1 for at, row in enumerate(rows)} | {-1: -1}
    count = len(rows) + 1
    neighbors, exact = np.full((count, k), -1, np.int32), np.full((count, k), -1, np.int32)
    neighbors[0, : len(near)] = np.arange(1, len(near) + 1)
    exact[0, : len(near)] = dots
    neighbors[1 : len(near) + 1] = np.vectorize(place.__getitem__, otypes=[np.int32])(listed)
    exact[1 : len(near) + 1] = lists.dots[near, :k]
    degrees = np.zeros(count, np.int32)
    degrees[0], degrees[1 : len(near) + 1] = len(near), degree
    points = np.concatenate([vector[None], base.nodes.vectors[rows]])
    hidden = np.zeros((count, base.hidden.shape[1]), np.float32)
    hidden[1 : len(near) + 1] = base.hidden[near]
    sizes = np.ones(count, np.int64)
    return KnnGraph(k, neighbors, exact, degrees, sizes, points, points, True), hidden


