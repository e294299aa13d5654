"""Clusterers of a whole collection, and two that take one item at a time, as plain as their papers have them.

Vectors have unit length, (n, d) float32; the similarity is the cosine. What needs a threshold or a number of
clusters takes it as an argument: `bench_quality` chooses it by the labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import scipy.cluster.hierarchy
import scipy.sparse
from numba import njit
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import KMeans

from engine.types import Float32, Float64, Int64

BLOCK = 1024  # rows of similarities at once
MOST_EDGES = 6_000_000  # of a graph of similar pairs, which bounds the lowest threshold


def average_linkage(vectors: Float32) -> Float64:
    """Return the tree of average linkage over cosine distances, as scipy has it, (n - 1, 4)."""
    tree: Float64 = scipy.cluster.hierarchy.linkage(vectors, "average", metric="cosine")
    return tree


def cut(tree: Float64, distance: float) -> Int64:
    """Return the clusters of a tree below a distance."""
    return np.asarray(scipy.cluster.hierarchy.fcluster(tree, distance, "distance"), np.int64)


def k_means(vectors: Float32, clusters: int, seed: int = 0) -> Int64:
    """Return the clusters of k-means, the best of three starts."""
    return np.asarray(KMeans(clusters, n_init=3, random_state=seed).fit_predict(vectors), np.int64)


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs i < j of at least the least similarity that leaves no more than `MOST_EDGES`."""

    first: Int64
    second: Int64
    similarity: Float32
    items: int

    def above(self, threshold: float) -> scipy.sparse.csr_matrix:
        """Return the graph of the pairs of at least this similarity, both ways."""
        kept = self.similarity >= threshold
        one, other, weight = self.first[kept], self.second[kept], self.similarity[kept]
        ends = np.concatenate([one, other]), np.concatenate([other, one])
        return scipy.sparse.csr_matrix((np.concatenate([weight, weight]), ends), (self.items, self.items))


def similar_pairs(vectors: Float32) -> Pairs:
    """Find the similar pairs of a collection."""
    items = len(vectors)
    sample = vectors[np.random.default_rng(0).permutation(items)[:2000]]
    dots = (sample @ sample.T)[np.triu_indices(len(sample), 1)]
    share = min(1.0, MOST_EDGES / (items * (items - 1) / 2))
    least = float(np.quantile(dots, 1.0 - share))
    found = [_rows_above(vectors, first, least) for first in range(0, items, BLOCK)]
    one, other, similarity = (np.concatenate(column) for column in zip(*found, strict=True))
    return Pairs(one, other, similarity, items)


def _rows_above(vectors: Float32, first: int, least: float) -> tuple[Int64, Int64, Float32]:
    dots = vectors[first : first + BLOCK] @ vectors[first:].T
    one, other = np.nonzero(np.triu(dots >= least, 1))
    return one + first, other + first, dots[one, other]


def components(pairs: Pairs, threshold: float) -> Int64:
    """Return the connected components of the pairs above a threshold."""
    return np.asarray(connected_components(pairs.above(threshold), directed=False)[1], np.int64)


def chinese_whispers(pairs: Pairs, threshold: float, rounds: int = 20, seed: int = 0) -> Int64:
    """Chinese whispers (Biemann, TextGraphs 2006): each item takes the label of most weight beside it."""
    graph = pairs.above(threshold)
    rng = np.random.default_rng(seed)
    labels = np.arange(pairs.items)
    for _ in range(rounds):
        if not _whisper(rng.permutation(pairs.items), graph.indptr, graph.indices, graph.data, labels):
            break
    return labels


@njit(cache=True)
def _whisper(order: Int64, starts: Int64, ends: Int64, weights: Float32, labels: Int64) -> bool:
    """One round, in place; whether a label changed. The smaller label wins a tie."""
    heard = np.zeros(len(labels))
    changed = False
    for i in order:
        begin, stop = starts[i], starts[i + 1]
        if begin == stop:
            continue
        for at in range(begin, stop):
            heard[labels[ends[at]]] += weights[at]
        best, most = labels[i], 0.0
        for at in range(begin, stop):
            label = labels[ends[at]]
            if heard[label] > most or (heard[label] == most and label < best):
                best, most = label, heard[label]
        for at in range(begin, stop):
            heard[labels[ends[at]]] = 0.0
        changed |= best != labels[i]
        labels[i] = best
    return changed


def finch(vectors: Float32) -> Iterator[Int64]:
    """FINCH (Sarfraz et al., CVPR 2019): every partition, finest first.

    Items that are first neighbours, or share one, are together; so again with the means of the clusters.
    """
    labels, means = np.arange(len(vectors)), vectors
    while len(means) > 1:
        nearest = _first_neighbors(means)
        graph = scipy.sparse.csr_matrix(
            (np.ones(len(means)), (np.arange(len(means)), nearest)), (len(means), len(means))
        )
        count, joined = connected_components(graph, directed=False)  # sharing a neighbour joins through it
        if count == len(means) or count == 1:
            return
        labels = joined[labels].astype(np.int64)
        yield labels
        sums = scipy.sparse.csr_matrix((np.ones(len(labels)), (labels, np.arange(len(labels))))) @ vectors
        means = (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def _first_neighbors(vectors: Float32) -> Int64:
    found = []
    for first in range(0, len(vectors), BLOCK):
        dots = vectors[first : first + BLOCK] @ vectors.T
        dots[np.arange(len(dots)), first + np.arange(len(dots))] = -np.inf
        found.append(dots.argmax(axis=1))
    return np.concatenate(found)


@dataclass(slots=True)
class Links:
    """Links (Mansfield et al., arXiv 1801.10123): subclusters of near items, linked to clusters.

    `cluster`, `sub` and `pair`: the least similarity of a subcluster to its cluster, of an item to its
    subcluster, and the similarity that two items of one cluster reach at most.
    """

    cluster: float
    sub: float
    pair: float = 1.0
    sums: list[Float64] = field(default_factory=list)  # of each subcluster's items
    counts: list[int] = field(default_factory=list)
    of: list[int] = field(default_factory=list)  # the subcluster of each item
    above: list[int] = field(default_factory=list)  # union-find over subclusters: clusters
    centers: Float32 = field(default_factory=lambda: np.empty((0, 0), np.float32))

    def learn(self, vector: Float32) -> None:
        """Take an item into the nearest subcluster, or begin another one, linked to it or not."""
        if not self.sums:
            self.centers = np.zeros((64, len(vector)), np.float32)
            self._begin(vector)
            return
        near = self.centers[: len(self.sums)] @ vector
        best = int(near.argmax())
        if near[best] >= self.sub:
            self.sums[best] = self.sums[best] + vector
            self.counts[best] += 1
            self.centers[best] = self.sums[best] / np.linalg.norm(self.sums[best])
            self.of.append(best)
            self._link(best)
        else:
            self._begin(vector)
            if near[best] >= self.least(1, self.counts[best]):
                self.above[self._root(len(self.above) - 1)] = self._root(best)

    def least(self, one: int, other: int) -> float:
        """The similarity that the means of so many items of one cluster are expected to have."""
        square = self.cluster**2
        beyond = 1.0 / square - 1.0
        expected = 1.0 / np.sqrt((1.0 + beyond / one) * (1.0 + beyond / other))
        return float(square + (self.pair - square) / (1.0 - square) * (expected - square))

    def labels(self) -> Int64:
        """Return the cluster of each item so far."""
        roots = np.array([self._root(at) for at in range(len(self.above))], np.int64)
        return roots[np.array(self.of, np.int64)]

    def _begin(self, vector: Float32) -> None:
        count = len(self.sums)
        if count == len(self.centers):
            self.centers = np.concatenate([self.centers, np.zeros_like(self.centers)])
        self.centers[count] = vector
        self.sums.append(vector.astype(np.float64))
        self.counts.append(1)
        self.above.append(count)
        self.of.append(count)

    def _link(self, moved: int) -> None:
        """Link the subcluster, whose centre has moved, to the nearest other one if both are similar."""
        near = self.centers[: len(self.sums)] @ self.centers[moved]
        near[moved] = -np.inf
        other = int(near.argmax())
        if len(near) > 1 and near[other] >= self.least(self.counts[moved], self.counts[other]):
            self.above[self._root(moved)] = self._root(other)

    def _root(self, at: int) -> int:
        while self.above[at] != at:
            self.above[at] = self.above[self.above[at]]
            at = self.above[at]
        return at
