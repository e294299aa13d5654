"""Clusters one level of the hierarchy: lists, then linkage, density, parents, and roots (the peaks)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numba import njit

from engine.clustering import decode
from engine.clustering.decode import ROOT
from engine.clustering.evidence import Evidence, Sources, Trees
from engine.clustering.list_arrays import means
from engine.clustering.neighborhood import Neighborhood
from engine.errors import InputError
from engine.index.base import ExactIndex
from engine.index.columns import Columns, Nodes
from engine.index.hnsw import HnswIndex
from engine.system.stopwatch import Stopwatch
from engine.types import NO_ROWS, Bool, Cache, Epoch, Float32, Int16, Int32, Int64, KnnGraph, UInt64


class Linkage(Protocol):
    """A network of a linkage model; see `engine.model.network`."""

    hidden: int  # floats of a node that `embed` returns
    cache_widths: tuple[int, int]  # floats of a node and of an edge in `engine.types.Cache`

    def embed(self, graph: KnnGraph, epoch: Epoch, rows: Int32, cache: Cache | None = None) -> Float32:
        """Return the embeddings of the distinct nodes `rows` (m,), float32 (m, hidden).

        Reads the lists of `rows` and of their neighbours, and their features. Valid entries of `cache` are
        read, missing ones added; the caller invalidates those of changed nodes, and discards the cache if
        the call fails.
        """
        ...

    def link(
        self,
        graph: KnnGraph,
        epoch: Epoch,
        hidden: Float32,
        sources: Int32,
        ranks: Int32,
        cache: Cache | None = None,
    ) -> Float32:
        """Return p of the edges from `sources` (e,) to their neighbours at `ranks` (e,), float32 (e,).

        `hidden` (n, hidden): embeddings by row, valid at both ends of each edge. Reads the lists of both
        ends, and their features. `cache`: as in `embed`.
        """
        ...


class Model(Protocol):
    """A linkage model: a network for level 0 and one for the levels above it."""

    k: int

    @property
    def base(self) -> Linkage: ...

    @property
    def upper(self) -> Linkage: ...


@dataclass(frozen=True, slots=True)
class Shape:
    """The parameters that determine a hierarchy's arrays and its clustering."""

    dim: int
    k: int
    tau: float
    max_levels: int
    base_width: int = 16  # neighbours kept per item
    peak_width: int = 32  # neighbours kept per supernode: peaks come and go with every batch
    search_width: int = 100  # see `Neighborhood`
    holders_max: int = 64
    base_tau: float | None = None  # level 0's; None: tau

    def tau_at(self, is_base: bool) -> np.float32:
        """Return the probability that a link has to exceed, at level 0 or above it."""
        return np.float32(self.base_tau if is_base and self.base_tau is not None else self.tau)


@dataclass(frozen=True, slots=True)
class Delta:
    """A level's batch: rows already added or removed, and the gains (or losses) of supernodes."""

    new: Int32 = field(default_factory=lambda: NO_ROWS)
    gone: Int32 = field(default_factory=lambda: NO_ROWS)
    touched: Int32 = field(default_factory=lambda: NO_ROWS)
    gained_sizes: Int64 = field(default_factory=lambda: np.empty(0, np.int64))  # (touched,)
    gained_sums: Int64 = field(default_factory=lambda: np.empty((0, 0), np.int64))  # (touched, d)
    # Rows whose size, rounded mean or evidence, which a model sees, changed.
    reshaped: Int32 = field(default_factory=lambda: NO_ROWS)


@dataclass(frozen=True, slots=True)
class Moves:
    """Rows whose tree changed: its root before and after, -1 for none."""

    rows: Int32  # (m,)
    before: Int32  # (m,)
    after: Int32  # (m,)


@dataclass(frozen=True, slots=True)
class Work:
    """The cost of a change at one level."""

    nodes: int
    changed: int  # nodes whose lists or features changed
    embedded: int  # nodes embedded again
    linked: int  # edges whose linkage was computed again
    moved: int


@dataclass(frozen=True, slots=True)
class Clustered:
    """The effect of a change on a level, and its cost there and at each level above."""

    moves: Moves
    rewritten: Int32  # rows whose list changed
    judged: Int32  # rows whose N(i) or p may have changed
    work: list[Work]


class Level(Columns):
    """One level's nodes, lists and clustering."""

    sizes: Int64  # (capacity,) nodes of level 0 in the supernode: distinct vectors
    sums: Int64  # (capacity, d) of their vectors; none at level 0
    means: Int16  # (capacity, d): of their vectors; at level 0 of the node and N(i)
    hidden: Float32  # (capacity, hidden)
    linkage: Float32  # (capacity, k)
    density: Float32
    parent: Int32
    root: Int32  # the peak of the node's tree, -1: not alive
    above: Int32  # the peak's row at the next level, -1: none
    below: Int32  # the row of the node's peak at the level below
    cached_nodes: Float32  # what the model keeps, see `engine.types.Cache`
    node_valid: Bool
    cached_edges: Float32  # not at level 0, where edges are computed as fast as fetched
    edge_valid: Bool

    def __init__(
        self, shape: Shape, model: Model, is_base: bool, index: Callable[[Nodes], ExactIndex | HnswIndex]
    ) -> None:
        own, edges = (0, 0) if is_base else (shape.dim, shape.k)
        self.model = model.base if is_base else model.upper
        of_node, of_edge = self.model.cache_widths
        super().__init__(
            {
                "sizes": (np.int64, 1, ()),
                "sums": (np.int64, 0, (own,)),
                "means": (np.int16, 0, (shape.dim,)),
                "hidden": (np.float32, 0, (self.model.hidden,)),
                "linkage": (np.float32, 0, (shape.k,)),
                "density": (np.float32, 0, ()),
                "parent": (np.int32, ROOT, ()),
                "root": (np.int32, -1, ()),
                "above": (np.int32, -1, ()),
                "below": (np.int32, -1, ()),
                "cached_nodes": (np.float32, 0, (of_node,)),
                "node_valid": (np.bool_, False, ()),
                "cached_edges": (np.float32, 0, (edges, of_edge)),
                "edge_valid": (np.bool_, False, (edges,)),
            }
        )
        self.shape, self.is_base, self.tau = shape, is_base, shape.tau_at(is_base)
        self.nodes = Nodes(shape.dim)
        width = shape.base_width if is_base else shape.peak_width
        self.lists = Neighborhood(
            self.nodes,
            index(self.nodes),
            k=shape.k,
            width=max(width, shape.k),
            search_width=shape.search_width,
            holders_max=shape.holders_max,
        )
        self.evidence = Evidence()  # none at level 0
        self.peaks = 0

    @property
    def links(self) -> int:
        return self.nodes.live - self.peaks

    def graph(self) -> KnnGraph:
        """Return the model's view of the level as it is now."""
        lists = self.lists
        return KnnGraph(
            k=self.shape.k,
            neighbors=lists.neighbors,
            dots=lists.dots,
            degree=np.minimum(lists.lengths, self.shape.k),
            size=self.sizes,
            identity=self.nodes.vectors,
            mean=self.means,
            is_base=self.is_base,
            evidence=None if self.is_base else self.evidence.arrays,
        )

    def add(self, vectors: Int16, hashes: UInt64) -> Int32:
        """Add nodes with vectors (m, d) and hashes (m,); return their rows, int32 (m,).

        They are in no list and no index until `update`.
        """
        rows = self.nodes.add(vectors, hashes)
        self.prepare(rows)
        return rows

    def prepare(self, rows: Int32) -> None:
        """Reset the columns of rows that were just added to `nodes`."""
        self.reserve(self.nodes.capacity)
        self.parent[rows] = self.root[rows] = self.above[rows] = self.below[rows] = -1

    def update(self, delta: Delta, epoch: Epoch, everything: bool, watch: Stopwatch) -> Clustered:
        """Recluster what a batch affects; `everything`: all nodes (a new calibration)."""
        changed, rewritten = self.lists.update(delta.new, delta.gone, watch)
        changed = self.nodes.all_rows() if everything else np.union1d(changed, delta.reshaped)
        return self.recluster(delta, changed, epoch, watch, rewritten)

    def recluster(
        self, delta: Delta, changed: Int32, epoch: Epoch, watch: Stopwatch, rewritten: Int32 = NO_ROWS
    ) -> Clustered:
        """Run the stages after the lists. `changed`: live rows whose N(i) or features changed.

        Each stage continues only with rows whose bits changed.
        """
        graph = self.graph()
        cache = Cache(self.cached_nodes, self.node_valid, self.cached_edges, self.edge_valid)
        embedded, differing = self._embed(graph, cache, changed, epoch)
        watch.lap("embed")
        linked, relinked = self._link(graph, cache, np.union1d(changed, differing), epoch)
        watch.lap("link")
        judged = np.union1d(changed, relinked)
        rehung = self._rehang(judged)
        moves = self._move(delta, rehung)
        watch.lap("decode")
        work = Work(self.nodes.live, len(changed), embedded, linked, len(moves.rows))
        return Clustered(moves, rewritten, judged, [work])

    def retune(self, shape: Shape) -> None:
        """Change to a shape that differs in tau alone; recompute parents and roots from the linkage."""
        self.shape, tau = shape, shape.tau_at(self.is_base)
        if tau != self.tau:
            self.tau = tau
            self._move(Delta(), self._rehang(self.nodes.all_rows()))

    def sources(self) -> Sources:
        """Return what the evidence of the level above sums up."""
        lists = self.lists
        entries = self.evidence.arrays
        return Sources(lists.neighbors, lists.dots, lists.lengths, self.linkage, entries, self.is_base)

    def trees(self) -> Trees:
        """Return where the level's nodes belong at the level above."""
        return Trees(self.root[: self.nodes.rows], self.above)

    def arrival(self) -> Moves:
        """Return the moves that bring all nodes to their trees, from nowhere."""
        rows = self.nodes.all_rows()
        return Moves(rows, np.full(len(rows), -1, np.int32), self.root[rows])

    def average(self, rows: Int32) -> None:
        """Compute the means of nodes of level 0, which follow from their lists."""
        lists = self.lists
        self.means[rows] = means(rows, self.shape.k, lists.neighbors, lists.lengths, self.nodes.vectors)

    def _embed(self, graph: KnnGraph, cache: Cache, changed: Int32, epoch: Epoch) -> tuple[int, Int32]:
        if self.is_base:
            self.average(changed)
        rows = self._by_tree(self.lists.affected_nodes(changed))
        self.node_valid[changed] = False
        if not self.is_base:
            self.edge_valid[self.lists.affected_edges(rows, changed)] = False
        fresh = self.model.embed(graph, epoch, rows, cache)
        return len(rows), _write_nodes(self.hidden, rows, fresh)

    def _link(self, graph: KnnGraph, cache: Cache, changed: Int32, epoch: Epoch) -> tuple[int, Int32]:
        rows = self._by_tree(self.lists.affected_nodes(changed))
        sources, ranks = self.lists.affected_edges(rows, changed)
        fresh = self.model.link(graph, epoch, self.hidden, sources, ranks, cache)
        if np.isnan(fresh).any():  # NaN breaks the density order, so parent links could form cycles
            raise InputError("the model's p is not a number: its weights are too large. Train it again")
        return len(sources), _write_edges(self.linkage, sources, ranks, fresh)

    def _by_tree(self, rows: Int32) -> Int32:
        """Sort rows by tree, so that the neighbours read by consecutive rows stay in the cache."""
        trees = self.root[rows]
        homeless = trees < 0  # new: sorted with its nearest neighbour
        trees[homeless] = self.root[self.lists.neighbors[rows[homeless], 0]]
        return rows[np.argsort(trees, kind="stable")]

    def _rehang(self, rows: Int32) -> Int32:
        """Update densities and parents after the rows' edges changed; return rows with a new parent."""
        lists, k = self.lists, self.shape.k
        density = decode.densities(rows, k, lists.dots, lists.lengths, self.linkage)
        differs = density != self.density[rows]
        self.density[rows] = density
        rows = np.union1d(rows, lists.affected_nodes(rows[differs]))
        edges = decode.Edges(lists.neighbors, lists.lengths, self.linkage)
        order = decode.Order(self.density, self.nodes.hashes)
        parent = decode.parents(rows, k, self.tau, edges, order)
        rehung: Int32 = rows[parent != self.parent[rows]]
        self.parent[rows] = parent
        return rehung

    def _move(self, delta: Delta, rehung: Int32) -> Moves:
        lists, gone = self.lists, delta.gone
        before_gone = self.root[gone]
        self.parent[gone], self.root[gone] = ROOT, -1
        rows, before = decode.roots(
            np.union1d(rehung, delta.new), self.parent, self.root, lists.heads, lists.links, lists.marks
        )
        was_peak = np.count_nonzero(before == rows) + np.count_nonzero(before_gone == gone)
        self.peaks += int(np.count_nonzero(self.root[rows] == rows) - was_peak)
        return Moves(
            np.concatenate([rows, gone]),
            np.concatenate([before, before_gone]),
            np.concatenate([self.root[rows], self.root[gone]]),
        )


@njit(cache=True, nogil=True)
def _write_nodes(values: Any, rows: Any, fresh: Any) -> Any:
    """Set values[rows] = fresh; return the rows whose values changed (0 equals -0: p is the same)."""
    differing = np.empty(len(rows), np.int32)
    count = 0
    for t, row in enumerate(rows):
        same = True
        for c in range(values.shape[1]):
            same &= values[row, c] == fresh[t, c]
            values[row, c] = fresh[t, c]
        if not same:
            differing[count] = row
            count += 1
    return differing[:count]


@njit(cache=True, nogil=True)
def _write_edges(values: Any, sources: Any, ranks: Any, fresh: Any) -> Any:
    """Set values[sources, ranks] = fresh; return the sources with a changed value."""
    differing = np.empty(len(sources), np.int32)
    count = 0
    for t, source in enumerate(sources):
        if values[source, ranks[t]] != fresh[t]:
            values[source, ranks[t]] = fresh[t]
            if count == 0 or differing[count - 1] != source:
                differing[count] = source
                count += 1
    return differing[:count]
