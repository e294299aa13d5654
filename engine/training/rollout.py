"""Training graphs: the levels that a model makes of a labelled collection, with soft targets.

Supernodes of a real hierarchy are impure, so a model trained on pure ones fails above level 0.
Here the hierarchy is built by the model itself (a roll-out), and the target of an edge between two
supernodes is the probability that a random pair of items across them is of one class:
sum_c n_ic n_jc / (n_i n_j).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

from engine.clustering.level import Level
from engine.evaluation.bulk import Built, places
from engine.model.features import list_edges, raw_features
from engine.types import Epoch, Float32, Int32, Int64, Kept, KnnGraph
from engine.vectors import DOT_SCALE


@dataclass(frozen=True, slots=True)
class Scene:
    """One level of one hierarchy, as the network reads it. n nodes, e edges."""

    x: Float32  # (n, F) raw, then standardised
    e: Float32  # (e, G)
    degrees: Int32  # (n,)
    heads: Int64  # (e,) rows of x
    tails: Int64
    target: Float32  # (e,) probability of one class
    similarity: Float32  # (e,)
    size: Float32  # (n,) items
    level: int


class Oracle:
    """Links by true labels, wrong now and then: makes impure supernodes before there is a model."""

    def __init__(self, labels: Int64, rng: np.random.Generator, k: int = 10) -> None:
        """`labels`: of the nodes, (n,): each vector occurs once."""
        self.labels, self.rng, self.k, self.hidden, self.keeps = labels, rng, k, 1, (0, 0)
        self.wrong = rng.uniform(0.0, 0.12)
        self.base = self.upper = self

    def embed(self, graph: KnnGraph, epoch: Epoch, rows: Int32, kept: Kept | None = None) -> Float32:
        """Nothing to see: zeros (m, 1)."""
        return np.zeros((len(rows), 1), np.float32)

    def link(
        self,
        graph: KnnGraph,
        epoch: Epoch,
        hidden: Float32,
        sources: Int32,
        ranks: Int32,
        kept: Kept | None = None,
    ) -> Float32:
        """p (e,): above 1/2 for edges within a class, at level 0; 0 above it."""
        if not graph.is_base:
            return np.zeros(len(sources), np.float32)
        same = self.labels[sources] == self.labels[graph.neighbors[sources, ranks]]
        same ^= self.rng.random(len(sources)) < self.wrong
        p: Float32 = (0.5 * same + 0.5 * self.rng.random(len(sources))).astype(np.float32)
        return p


def scenes(built: Built, labels: Int64, epoch: Epoch, lowest: int = 0) -> list[Scene]:
    """Return the levels from `lowest` up as training graphs; features raw. `labels`: of the items."""
    levels = zip(built.levels, places(built), strict=True)
    return [
        _scene(level, counts_of(place, labels, level.nodes.rows), epoch, depth)
        for depth, (level, place) in enumerate(levels)
        if depth >= lowest and level.nodes.live > 1
    ]


def counts_of(place: Int64, labels: Int64, nodes: int) -> scipy.sparse.csr_matrix:
    """Return the items of each node and class, (nodes, classes), of the nodes and labels of items (n,)."""
    _, of = np.unique(labels, return_inverse=True)
    return scipy.sparse.csr_matrix((np.ones(len(of)), (place, of)), (nodes, int(of.max(initial=-1)) + 1))


@dataclass(frozen=True, slots=True)
class Twins:
    """A level of two successive versions of a collection, and where the edges are that both have."""

    before: Scene
    after: Scene
    edges_before: Int64  # (m,) of the edges of `before`
    edges_after: Int64  # (m,), the same ones of `after`


def twins(before: Built, after: Built, labels: Int64, epoch: Epoch) -> list[Twins]:
    """Return the levels above 0 that both versions have. `labels`: of the items of `after`.

    `before` is made of the first ones of these. Supernodes are the same if their peaks are.
    """
    found = []
    levels = [
        zip(scenes(built, labels[: len(built.node_of)], epoch, lowest=1), _peaks(built), strict=False)
        for built in (before, after)
    ]
    for (old, old_peaks), (new, new_peaks) in zip(*levels, strict=False):
        at = {edge: place for place, edge in enumerate(_named(old, old_peaks))}
        places = [at.get(edge, -1) for edge in _named(new, new_peaks)]
        both = np.flatnonzero(np.array(places, np.int64) >= 0)
        if len(both):
            found.append(Twins(old, new, np.array(places, np.int64)[both], both))
    return found


def _peaks(built: Built) -> list[list[bytes]]:
    """The vectors of each upper level's peaks, by row."""
    out, at = [], np.arange(built.levels[0].nodes.rows)
    vectors = built.levels[0].nodes.vectors
    for level in built.levels[1:]:
        at = at[level.below[: level.nodes.rows]]
        out.append([vectors[row].tobytes() for row in at])
    return out


def _named(scene: Scene, names: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The ends of each edge."""
    return [(names[i], names[j]) for i, j in zip(scene.heads.tolist(), scene.tails.tolist(), strict=True)]


def _scene(level: Level, counts: scipy.sparse.csr_matrix, epoch: Epoch, depth: int) -> Scene:
    graph, n = level.graph(), level.nodes.rows
    rows = np.arange(n, dtype=np.int32)
    sources, ranks = list_edges(graph, rows)
    tails = graph.neighbors[sources, ranks]
    size, target = chances(counts, sources, tails)
    cut = KnnGraph(
        graph.k, graph.neighbors[:n], graph.dots[:n], graph.degree[:n], graph.size[:n],
        graph.identity[:n], graph.mean[:n], graph.is_base, graph.evidence,
    )  # fmt: skip
    x, e = raw_features(cut, epoch, sources, ranks)
    similarity = (graph.dots[sources, ranks] / DOT_SCALE).astype(np.float32)
    return Scene(
        x, e, cut.degree.astype(np.int32), sources.astype(np.int64), tails.astype(np.int64),
        target.astype(np.float32), similarity, size.astype(np.float32), depth,
    )  # fmt: skip


def chances(counts: scipy.sparse.csr_matrix, heads: Int32, tails: Int32) -> tuple[Any, Any]:
    """Return the items of each node (n,), and per edge the chance that a pair across is of one class (e,).

    `counts` (n, classes): items of the nodes.
    """
    size = np.asarray(counts.sum(axis=1)).ravel()
    both = np.asarray(counts[heads].multiply(counts[tails]).sum(axis=1)).ravel()
    return size, both / np.maximum(size[heads] * size[tails], 1.0)


def side_by_side(parts: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    """Return columns of graphs put together as one graph's; `heads` and `tails` are rows of its nodes."""
    offsets = np.concatenate([[0], np.cumsum([len(part.degrees) for part in parts])[:-1]])
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    ends = {
        name: np.concatenate([getattr(part, name) + at for part, at in zip(parts, offsets, strict=True)])
        for name in ("heads", "tails")
    }
    return columns | ends


def joined(parts: Sequence[Scene]) -> Scene:
    """Scenes side by side as one graph."""
    names = ("x", "e", "degrees", "target", "similarity", "size")
    return Scene(**side_by_side(parts, names), level=0)
