"""Training graphs: the levels that a model builds of a labelled collection, with soft targets.

Supernodes of a real hierarchy are impure, and a model trained on pure ones fails above level 0. So the model
in training builds the hierarchy itself (a roll-out). The target of an edge between two supernodes i and j is
the probability that a random pair of items, one of each, is of one class: sum_c n_ic n_jc / (n_i n_j).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

from engine.clustering.level import Level
from engine.evaluation.bulk import BulkClustering, places
from engine.model.features import list_edges, raw_features
from engine.training.datasets import UNKNOWN
from engine.types import Cache, Epoch, Float32, Int32, Int64, KnnGraph
from engine.vectors import DOT_SCALE


@dataclass(frozen=True, slots=True)
class TrainingGraph:
    """One level of a hierarchy as the network reads it: n nodes, and e edges side by side by source."""

    x: Float32  # (n, F) node features, raw or standardised
    e: Float32  # (e, G) edge features
    degrees: Int32  # (n,) edges of each node
    heads: Int64  # (e,) the source of each edge, the node whose list it is in
    tails: Int64  # (e,) its target, the neighbour
    target: Float32  # (e,) probability that both ends are of one class
    similarity: Float32  # (e,)
    size: Float32  # (n,) items of each node
    level: int


class Oracle:
    """A linkage model that knows the labels and errs at random: impure supernodes before there is a model."""

    def __init__(self, labels: Int64, rng: np.random.Generator) -> None:
        """`labels` (n,): of the nodes of level 0; no vector may occur twice."""
        self.labels, self.rng, self.k, self.hidden, self.cache_widths = labels, rng, 10, 1, (0, 0)
        self.wrong = rng.uniform(0.0, 0.12)
        self.base = self.upper = self

    def embed(self, graph: KnnGraph, epoch: Epoch, rows: Int32, cache: Cache | None = None) -> Float32:
        """Return zeros (m, 1)."""
        return np.zeros((len(rows), 1), np.float32)

    def link(
        self,
        graph: KnnGraph,
        epoch: Epoch,
        hidden: Float32,
        sources: Int32,
        ranks: Int32,
        cache: Cache | None = None,
    ) -> Float32:
        """Return p (e,): at level 0 mostly above 1/2 for edges within a class; 0 above level 0."""
        if not graph.is_base:
            return np.zeros(len(sources), np.float32)
        same = self.labels[sources] == self.labels[graph.neighbors[sources, ranks]]
        same ^= self.rng.random(len(sources)) < self.wrong
        p: Float32 = (0.5 * same + 0.5 * self.rng.random(len(sources))).astype(np.float32)
        return p


def training_graphs(
    built: BulkClustering, labels: Int64, epoch: Epoch, lowest: int = 0
) -> list[TrainingGraph]:
    """Return the levels from `lowest` up, features raw; `labels` (n,): of the items."""
    levels = zip(built.levels, places(built), strict=True)
    return [
        _training_graph(level, place, labels, epoch, depth)
        for depth, (level, place) in enumerate(levels)
        if depth >= lowest and level.nodes.live > 1
    ]


def counts_of(place: Int64, labels: Int64, nodes: int) -> scipy.sparse.csr_matrix:
    """Count the items of each node by class, (nodes, classes); `place`, `labels` (n,): of the items."""
    _, of = np.unique(labels, return_inverse=True)
    return scipy.sparse.csr_matrix((np.ones(len(of)), (place, of)), (nodes, int(of.max(initial=-1)) + 1))


@dataclass(frozen=True, slots=True)
class VersionPair:
    """One level of two successive versions of a collection, and the edges that both have."""

    before: TrainingGraph
    after: TrainingGraph
    edges_before: Int64  # (m,) indices of the shared edges in `before`
    edges_after: Int64  # (m,) and in `after`, in the same order


def version_pairs(
    before: BulkClustering, after: BulkClustering, labels: Int64, epoch: Epoch
) -> list[VersionPair]:
    """Pair the upper levels of two versions. `labels` (n,): of the items of `after`; `before` has the first.

    Supernodes of both versions are the same if their peaks are.
    """
    found = []
    levels = [
        zip(
            training_graphs(built, labels[: len(built.node_of)], epoch, lowest=1), _peaks(built), strict=False
        )
        for built in (before, after)
    ]
    for (old, old_peaks), (new, new_peaks) in zip(*levels, strict=False):
        at = {edge: place for place, edge in enumerate(_named(old, old_peaks))}
        places = [at.get(edge, -1) for edge in _named(new, new_peaks)]
        both = np.flatnonzero(np.array(places, np.int64) >= 0)
        if len(both):
            found.append(VersionPair(old, new, np.array(places, np.int64)[both], both))
    return found


def _peaks(built: BulkClustering) -> list[list[bytes]]:
    """Return the vectors of each upper level's nodes, by row."""
    out, at = [], np.arange(built.levels[0].nodes.rows)
    vectors = built.levels[0].nodes.vectors
    for level in built.levels[1:]:
        at = at[level.below[: level.nodes.rows]]
        out.append([vectors[row].tobytes() for row in at])
    return out


def _named(graph: TrainingGraph, names: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Return the names of both ends of each edge."""
    return [(names[i], names[j]) for i, j in zip(graph.heads.tolist(), graph.tails.tolist(), strict=True)]


def _training_graph(level: Level, place: Int64, labels: Int64, epoch: Epoch, depth: int) -> TrainingGraph:
    graph, n = level.graph(), level.nodes.rows
    rows = np.arange(n, dtype=np.int32)
    sources, ranks = list_edges(graph, rows)
    heads, tails = sources.astype(np.int64), graph.neighbors[sources, ranks].astype(np.int64)
    size, target, _ = chances(place, labels, n, heads, tails)
    cut = KnnGraph(
        graph.k, graph.neighbors[:n], graph.dots[:n], graph.degree[:n], graph.size[:n],
        graph.identity[:n], graph.mean[:n], graph.is_base, graph.evidence,
    )  # fmt: skip
    x, e = raw_features(cut, epoch, sources, ranks)
    similarity = (graph.dots[sources, ranks] / DOT_SCALE).astype(np.float32)
    return TrainingGraph(
        x, e, cut.degree.astype(np.int32), heads, tails, target, similarity, size, depth,
    )  # fmt: skip


def chances(
    place: Int64, labels: Int64, nodes: int, heads: Int64, tails: Int64
) -> tuple[Float32, Float32, Float32]:
    """Return items (nodes,), target (e,) and known (e,) where some of the labels (n,) are UNKNOWN.

    The target is over the pairs across an edge whose item at the head has a label; `known` is their share.
    A pair with a label at the tail only is of two classes, which is known, too. But of an unlabelled item's
    list these are all that is known, no neighbour of its own class: counted, they would make every item look
    as if it had fewer of these than it has. `place` (n,): the node of each item.
    """
    is_labelled = labels != UNKNOWN
    counts = counts_of(place[is_labelled], labels[is_labelled], nodes)
    items, labelled = (np.bincount(at, minlength=nodes) for at in (place, place[is_labelled]))
    told = labelled[heads] * items[tails]
    same = np.asarray(counts[heads].multiply(counts[tails]).sum(axis=1)).ravel()
    target, known = same / np.maximum(told, 1), (labelled / np.maximum(items, 1))[heads]
    return items.astype(np.float32), target.astype(np.float32), known.astype(np.float32)


def side_by_side(parts: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    """Concatenate these columns of several graphs, with `heads` and `tails` as rows of the joint graph."""
    offsets = np.concatenate([[0], np.cumsum([len(part.degrees) for part in parts])[:-1]])
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    ends = {
        name: np.concatenate([getattr(part, name) + at for part, at in zip(parts, offsets, strict=True)])
        for name in ("heads", "tails")
    }
    return columns | ends


def joined(parts: Sequence[TrainingGraph]) -> TrainingGraph:
    """Return several graphs side by side as one disconnected graph."""
    names = ("x", "e", "degrees", "target", "similarity", "size")
    return TrainingGraph(**side_by_side(parts, names), level=0)
