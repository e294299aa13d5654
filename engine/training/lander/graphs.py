"""Training graphs for `lander`: levels of labelled collections for several k, true ones and rolled out.

As in the paper, the first graphs are of levels built from the true labels, for k = 10, 5 and 3 and 2, 3 and 4
levels. Real supernodes are less pure, so later ones are of levels that the network itself makes, with soft
targets: the probability that a random pair of items across an edge is of one class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import dgl
import numpy as np
import torch
from torch import Tensor

from engine.clustering.level import Level, Model
from engine.evaluation.bulk import BulkClustering, hierarchy, places
from engine.model.features import list_edges
from engine.training.rollout import chances, side_by_side
from engine.types import Cache, Epoch, Float32, Int16, Int32, Int64, KnnGraph
from engine.vectors import DOT_SCALE, SCALE, quantize

DEPTHS = {10: 2, 5: 3, 3: 4}  # of levels from true labels, by k
EPOCH = Epoch(0.0, 1.0, 0)  # a lander reads no calibration


@dataclass(frozen=True, slots=True)
class LevelGraph:
    """One level of one hierarchy, as the network reads it. n nodes, e edges by their heads."""

    identity: Int16  # (n, d)
    mean: Int16  # (n, d)
    degrees: Int32  # (n,)
    heads: Int64  # (e,), the node in whose list `tails` are
    tails: Int64
    similarity: Float32  # (e,)
    target: Float32  # (e,) probability of one class
    known: Float32  # (e,) share of the pairs across whose head has a label; the target is of these
    size: Float32  # (n,) items

    def features(self, average: bool) -> Tensor:
        """Return x of `engine.model.lander`, (n, d) or (n, 2 d) float32."""
        both = (self.identity, self.mean) if average else (self.identity,)
        return torch.from_numpy(np.concatenate(both, axis=1).astype(np.float32) / np.float32(SCALE))

    def affinity(self) -> Tensor:
        """Return a_ij (e,): similarities, floored at 0, as shares of their list's sum."""
        floored = np.maximum(self.similarity, 0.0).astype(np.float64)
        total = np.bincount(self.heads, floored, len(self.degrees))
        return torch.from_numpy((floored / np.where(total > 0, total, 1.0)[self.heads]).astype(np.float32))

    def even_shares(self) -> Tensor:
        """1 / the list's length, (e,)."""
        return torch.from_numpy(1.0 / np.maximum(self.degrees, 1)[self.heads]).float()

    def graph(self) -> dgl.DGLGraph:
        """Return a DGL graph with edges from neighbours to the nodes in whose lists they are."""
        ends = torch.from_numpy(self.tails), torch.from_numpy(self.heads)
        return dgl.graph(ends, num_nodes=len(self.degrees))


class TrueLinks:
    """Links by true labels: the most similar neighbour of the same class has the greatest linkage.

    A supernode's label is its peak's.
    """

    hidden, cache_widths = 1, (0, 0)

    def __init__(self, emb: Float32, labels: Int64, k: int) -> None:
        grid, _ = quantize(emb)
        self.k = k
        self.base = self.upper = self
        self._label = {vector.tobytes(): float(label) for vector, label in zip(grid, labels, strict=True)}

    def embed(self, graph: KnnGraph, epoch: Epoch, rows: Int32, cache: Cache | None = None) -> Float32:
        """The labels, (m, 1)."""
        return np.array([[self._label[graph.identity[row].tobytes()]] for row in rows], np.float32)

    def link(
        self,
        graph: KnnGraph,
        epoch: Epoch,
        hidden: Float32,
        sources: Int32,
        ranks: Int32,
        cache: Cache | None = None,
    ) -> Float32:
        """Above 1/2 within a class, 0 across."""
        same = hidden[sources, 0] == hidden[graph.neighbors[sources, ranks], 0]
        similarity = np.maximum(graph.dots[sources, ranks] / DOT_SCALE, 0.0)
        p: Float32 = (same * (0.6 + 0.4 * similarity)).astype(np.float32)
        return p


def true_levels(emb: Float32, labels: Int64, k: int) -> list[LevelGraph]:
    """Return the levels that the labels make, as many as the paper takes for this k."""
    return graphs_of(true_links(emb, labels, k, DEPTHS.get(k, 2)), labels)


def true_links(emb: Float32, labels: Int64, k: int, depth: int) -> BulkClustering:
    """Cluster embeddings (n, d) by their labels (n,); the lists are those of every model."""
    return hierarchy(emb, TrueLinks(emb, labels, k), 0.5, depth, EPOCH)


def levels(
    emb: Float32, labels: Int64, model: Model, taus: tuple[float, float], depth: int
) -> list[LevelGraph]:
    """Return the levels that a model makes of embeddings (n, d) with labels (n,), UNKNOWN for some.

    `taus`: level 0's, and that of the levels above.
    """
    return graphs_of(hierarchy(emb, model, taus[1], depth, EPOCH, base_tau=taus[0]), labels)


def graphs_of(built: BulkClustering, labels: Int64) -> list[LevelGraph]:
    """Return the levels of a clustering; an item without a label says nothing about its list."""
    return [
        _level_graph(level, place, labels)
        for level, place in zip(built.levels, places(built), strict=True)
        if level.nodes.live > 1
    ]


def _level_graph(level: Level, place: Int64, labels: Int64) -> LevelGraph:
    graph, rows, nodes = level.graph(), level.nodes.all_rows(), level.nodes.rows
    sources, ranks = list_edges(graph, rows)
    heads, tails = sources.astype(np.int64), graph.neighbors[sources, ranks].astype(np.int64)
    size, target, known = chances(place, labels, nodes, heads, tails)
    return LevelGraph(
        graph.identity[rows].copy(),
        (graph.identity if graph.is_base else graph.mean)[rows].copy(),
        graph.degree[rows].astype(np.int32),
        heads,
        tails,
        (graph.dots[sources, ranks] / DOT_SCALE).astype(np.float32),
        target,
        known,
        size[rows],
    )


def joined(parts: Sequence[LevelGraph]) -> LevelGraph:
    """Return graphs of one space side by side as one."""
    names = ("identity", "mean", "degrees", "similarity", "target", "known", "size")
    return LevelGraph(**side_by_side(parts, names))
