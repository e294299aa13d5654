"""The neighbour lists of one level, kept up to date, and what a change of them affects.

A list holds up to `width` neighbours, best first, all of them *certain*: it has every live node
closer than its last entry. The first k are N(i), what the model sees; the rest is slack, so that
deletes seldom cost a search. A list that has all other nodes is complete: it takes any newcomer.

Who has node i in its list? `links` answers: the cells (u, w) with neighbors[u, w] == i form a
doubly linked chain that starts at `heads[i]`; a cell's number is u * width + w.
"""

from __future__ import annotations

import numpy as np

from engine.clustering import list_arrays
from engine.clustering.list_arrays import ListArrays, Near, Offers
from engine.index.base import NEVER, Index
from engine.index.columns import Columns, Nodes
from engine.system.stopwatch import Stopwatch
from engine.types import Bool, Int8, Int32

_WALK = 300  # lists read one after the other in the time in which one node's holders are found


class Neighborhood(Columns):
    """Lists of the nodes of one level and the index that finds them.

    `search_width`: candidates asked of an HNSW index for each new node.
    `holders_max`: list holders looked at per neighbour when an HNSW index cannot name all entrants.
    """

    neighbors: Int32  # (capacity, width), -1 pads
    dots: Int32  # (capacity, width)
    lengths: Int32  # (capacity,)
    heads: Int32  # (capacity,) first cell of the chain, -1: in nobody's list
    links: Int32  # (capacity, width, 2) next and previous cell, -1 ends
    marks: Int8  # (capacity,) scratch, zero between calls

    def __init__(
        self,
        nodes: Nodes,
        index: Index,
        *,
        k: int,
        width: int,
        search_width: int = 100,
        holders_max: int = 64,
    ) -> None:
        super().__init__(
            {
                "neighbors": (np.int32, -1, (width,)),
                "dots": (np.int32, -1, (width,)),
                "lengths": (np.int32, 0, ()),
                "heads": (np.int32, -1, ()),
                "links": (np.int32, -1, (width, 2)),
                "marks": (np.int8, 0, ()),
            }
        )
        self.nodes, self.index = nodes, index
        self.k, self.width = k, width
        self.search_width, self.holders_max = max(search_width, width), holders_max

    def update(self, new: Int32, gone: Int32, watch: Stopwatch) -> tuple[Int32, Int32]:
        """Update the lists after inserts and deletes already applied to `nodes`.

        Returns the live rows whose N(i) changed, and those whose list changed at all, each (n,) rising.
        """
        self.reserve(self.nodes.capacity)
        self.index.remove(gone)
        self.index.insert(new)
        watch.lap("insert")
        dropped = list_arrays.drop(gone, self.k, self.arrays, self.marks)
        short = self._short(dropped, len(new))
        complete = self._complete(len(new))
        searched = np.concatenate([new, short])
        found, found_dots = self.index.search(searched, self.width if self.index.exact else self.search_width)
        watch.lap("search")
        list_arrays.replace(searched, found[:, : self.width], found_dots[:, : self.width], self.arrays)
        self.marks[searched] = 1
        entered = self._enter(new, searched, found, complete)
        rewritten = np.unique(np.concatenate([dropped, searched, entered]))
        rewritten = rewritten[self.nodes.alive[rewritten]]
        changed = rewritten[self.marks[rewritten] == 1]
        self.marks[dropped] = self.marks[searched] = self.marks[entered] = 0
        watch.lap("lists")
        return changed, rewritten

    def restore(self, rows: Int32, neighbors: Int32, dots: Int32) -> None:
        """Set lists as they were stored (their nodes are in the index, or will be)."""
        self.reserve(self.nodes.capacity)
        list_arrays.replace(rows, neighbors, dots, self.arrays)

    @property
    def degrees(self) -> Int32:
        """Neighbours in use, int32 (rows,)."""
        return np.minimum(self.lengths[: self.nodes.rows], self.k)

    def affected_nodes(self, changed: Int32) -> Int32:
        """Return `changed` and the nodes that have one of them in N(i), int32, rising."""
        held: Int32
        if len(changed) * _WALK > self.nodes.rows:
            held = list_arrays.holding(changed, self.nodes.rows, self.k, self.arrays, self.marks)
        else:
            held = list_arrays.holders(changed, self.k, self.arrays, self.marks)
        return held

    def affected_edges(self, rows: Int32, changed: Int32) -> tuple[Int32, Int32]:
        """Return edges (source rows, ranks) with a changed end, ordered as `rows`.

        `rows`: `affected_nodes(changed)`.
        """
        self.marks[changed] = 1
        sources, ranks = list_arrays.incident(rows, self.k, self.arrays, self.marks)
        self.marks[changed] = 0
        return sources, ranks

    @property
    def arrays(self) -> ListArrays:
        """The columns as the kernels take them."""
        return ListArrays(self.neighbors, self.dots, self.lengths, self.heads, self.links)

    def _short(self, dropped: Int32, arrivals: int) -> Int32:
        """Return lists with too few certain neighbours left. Complete ones are filled by the arrivals."""
        others = self.nodes.live - 1
        before = others - arrivals
        rows = dropped
        if not self.index.exact and before < self.k:
            rows = self.nodes.all_rows()
        lengths = self.lengths[rows]
        short = lengths < min(self.k, others)
        if self.index.exact:
            short &= lengths < before
        return rows[short & self.nodes.alive[rows]]

    def _complete(self, arrivals: int) -> Bool:
        """Mark lists with room that hold all other nodes, before the arrivals and after the departures."""
        before = self.nodes.live - arrivals - 1
        if before >= self.width:
            return np.zeros(self.capacity, np.bool_)
        complete: Bool = (self.lengths >= before) & self.nodes.alive[: self.capacity]
        return complete

    def _enter(self, new: Int32, searched: Int32, found: Int32, complete: Bool) -> Int32:
        """Offer the newcomers to the old lists that they may enter; returns the lists that took one.

        An exact index names them all. HNSW does not: there, a newcomer is offered to the lists near it,
        and their owners to the newcomer.
        """
        if self.index.exact:
            bounds = list_arrays.bounds_of(self.nodes.rows, self.nodes.alive, self.arrays, complete)
            bounds[searched] = NEVER  # just searched: has the newcomers already
            items, lists, exact = self.index.entrants(new, bounds)
        else:
            near = Near(found, self.k, self.holders_max, complete)
            points = self.nodes.vectors
            lists, items, exact = list_arrays.nearby(new, near, points, self.nodes.hashes, self.arrays)
        offers, hashes = Offers(lists, items, exact), self.nodes.hashes
        entered: Int32 = list_arrays.offer(offers, complete, self.k, hashes, self.arrays, self.marks)
        return entered
