"""The neighbour lists of one level, kept up to date, and what a change of them affects.

A list holds up to `width` neighbours, best first, all of them *certain*: it has every live node
closer than its last entry. The first k are N(i), what the model sees; the rest is slack, so that
deletes seldom cost a search. A list that has all other nodes is complete: it takes any newcomer.

Who has node i in its list? `links` answers: the cells (u, w) with neighbors[u, w] == i form a
doubly linked chain that starts at `heads[i]`; a cell's number is u * width + w.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit, prange

from engine.index.base import ALWAYS, NEVER, Index, precedes
from engine.index.columns import Columns, Nodes
from engine.system.stopwatch import Stopwatch
from engine.types import Bool, Int8, Int16, Int32, UInt64
from engine.vectors import dot

_WALK = 300  # lists read one after the other in the time in which one node's holders are found


class ListArrays(NamedTuple):
    """The lists of a level as arrays, for kernels."""

    neighbors: Int32  # (capacity, width)
    dots: Int32  # (capacity, width)
    lengths: Int32  # (capacity,)
    heads: Int32  # (capacity,)
    links: Int32  # (capacity, width, 2)


class _Offers(NamedTuple):
    """Items offered to lists, pair by pair, int32 (pairs,) each."""

    lists: Int32
    items: Int32
    dots: Int32


class _Near(NamedTuple):
    """Where to look for lists near a newcomer."""

    found: Int32  # (new, searched), what its own search found
    k: int
    holders_max: int  # of each of its k nearest
    complete: Bool  # (capacity,), lists that take any newcomer


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
        """Nodes came and went (already so in `nodes`).

        Returns the live rows whose N(i) changed, and those whose list changed at all.
        """
        self.reserve(self.nodes.capacity)
        self.index.remove(gone)
        self.index.insert(new)
        watch.lap("insert")
        dropped = _drop(gone, self.k, self.arrays, self.marks)
        short = self._short(dropped, len(new))
        complete = self._complete(len(new))
        searched = np.concatenate([new, short])
        found, found_dots = self._search(searched)
        watch.lap("search")
        _replace(searched, found[:, : self.width], found_dots[:, : self.width], self.arrays)
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
        _replace(rows, neighbors, dots, self.arrays)

    @property
    def degrees(self) -> Int32:
        """Neighbours in use, int32 (rows,)."""
        return np.minimum(self.lengths[: self.nodes.rows], self.k)

    def affected_nodes(self, changed: Int32) -> Int32:
        """`changed` and the nodes that have one of them in N(i), rising."""
        held: Int32
        if len(changed) * _WALK > self.nodes.rows:
            held = holding(changed, self.nodes.rows, self.k, self.arrays, self.marks)
        else:
            held = holders(changed, self.k, self.arrays, self.marks)
        return held

    def affected_edges(self, rows: Int32, changed: Int32) -> tuple[Int32, Int32]:
        """Edges (source row, rank) with a changed end, in the order of `rows`: `affected_nodes(changed)`."""
        self.marks[changed] = 1
        sources, ranks = _incident(rows, self.k, self.arrays, self.marks)
        self.marks[changed] = 0
        return sources, ranks

    @property
    def arrays(self) -> ListArrays:
        """The columns as the kernels take them."""
        return ListArrays(self.neighbors, self.dots, self.lengths, self.heads, self.links)

    def _short(self, dropped: Int32, arrivals: int) -> Int32:
        """Lists with too few certain neighbours left. Complete ones are filled by the arrivals."""
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
        """Lists with room that have all nodes there were before the arrivals (after the departures)."""
        before = self.nodes.live - arrivals - 1
        if before >= self.width:
            return np.zeros(self.capacity, np.bool_)
        complete: Bool = (self.lengths >= before) & self.nodes.alive[: self.capacity]
        return complete

    def _search(self, rows: Int32) -> tuple[Int32, Int32]:
        width = self.width if self.index.exact else self.search_width
        return self.index.search(rows, width)

    def _enter(self, new: Int32, searched: Int32, found: Int32, complete: Bool) -> Int32:
        """Offer the newcomers to the old lists that they may enter; returns the lists that took one.

        An exact index names them all. HNSW does not: there, a newcomer is offered to the lists near it,
        and their owners to the newcomer.
        """
        if self.index.exact:
            bounds = _bounds(self.nodes.rows, self.nodes.alive, self.arrays, complete)
            bounds[searched] = NEVER  # just searched: has the newcomers already
            items, lists, exact = self.index.entrants(new, bounds)
        else:
            near = _Near(found, self.k, self.holders_max, complete)
            lists, items, exact = _nearby(new, near, self.nodes.vectors, self.nodes.hashes, self.arrays)
        offers = _Offers(lists, items, exact)
        entered: Int32 = _offer(offers, complete, self.k, self.nodes.hashes, self.arrays, self.marks)
        return entered


# --- kernels: lists and links -------------------------------------------------------------------


@njit(cache=True, nogil=True, inline="always")
def _link(cell: int, target: int, lists: ListArrays) -> None:
    heads, links = lists.heads, lists.links
    width = links.shape[1]
    first = heads[target]
    links[cell // width, cell % width, 0] = first
    links[cell // width, cell % width, 1] = -1
    if first >= 0:
        links[first // width, first % width, 1] = cell
    heads[target] = cell


@njit(cache=True, nogil=True, inline="always")
def _unlink(cell: int, target: int, lists: ListArrays) -> None:
    heads, links = lists.heads, lists.links
    width = links.shape[1]
    after = links[cell // width, cell % width, 0]
    before = links[cell // width, cell % width, 1]
    if after >= 0:
        links[after // width, after % width, 1] = before
    if before >= 0:
        links[before // width, before % width, 0] = after
    else:
        heads[target] = after


@njit(cache=True, nogil=True, inline="always")
def _move(source: int, goal: int, lists: ListArrays) -> None:
    """The entry of cell `source` goes to the unused cell `goal`; it keeps its place in the chain."""
    neighbors, dots, heads, links = lists.neighbors, lists.dots, lists.heads, lists.links
    width = neighbors.shape[1]
    u, v, w = source // width, source % width, goal % width
    target = neighbors[u, v]
    after, before = links[u, v, 0], links[u, v, 1]
    links[u, w, 0], links[u, w, 1] = after, before
    if after >= 0:
        links[after // width, after % width, 1] = goal
    if before >= 0:
        links[before // width, before % width, 0] = goal
    else:
        heads[target] = goal
    neighbors[u, w] = target
    dots[u, w] = dots[u, v]


@njit(cache=True, nogil=True)
def _remove_entry(u: int, w: int, lists: ListArrays) -> None:
    neighbors, dots, lengths = lists.neighbors, lists.dots, lists.lengths
    width = neighbors.shape[1]
    _unlink(u * width + w, neighbors[u, w], lists)
    for v in range(w + 1, lengths[u]):
        _move(u * width + v, u * width + v - 1, lists)
    lengths[u] -= 1
    neighbors[u, lengths[u]] = -1
    dots[u, lengths[u]] = -1


@njit(cache=True, nogil=True)
def _insert_entry(u: int, w: int, item: int, exact: int, lists: ListArrays) -> None:
    neighbors, dots, lengths = lists.neighbors, lists.dots, lists.lengths
    width = neighbors.shape[1]
    if lengths[u] == width:
        _remove_entry(u, width - 1, lists)
    for v in range(lengths[u] - 1, w - 1, -1):
        _move(u * width + v, u * width + v + 1, lists)
    neighbors[u, w] = item
    dots[u, w] = exact
    lengths[u] += 1
    _link(u * width + w, item, lists)


@njit(cache=True, nogil=True)
def _as_rows(touched: Sequence[int]) -> Int32:
    rows = np.empty(len(touched), np.int32)
    for t in range(len(touched)):
        rows[t] = touched[t]
    return rows


@njit(cache=True, nogil=True)
def _drop(gone: Int32, k: int, lists: ListArrays, marks: Int8) -> Int32:
    """Take gone nodes out of all lists. Returns live rows that lost one; marks: one of the first k."""
    width = lists.neighbors.shape[1]
    lengths, heads = lists.lengths, lists.heads
    for g in gone:
        for w in range(lengths[g] - 1, -1, -1):
            _remove_entry(g, w, lists)
    touched = []
    for g in gone:
        while heads[g] >= 0:
            cell = heads[g]
            u, w = cell // width, cell % width
            _remove_entry(u, w, lists)
            if marks[u] == 0:
                marks[u] = 2
                touched.append(u)
            if w < k:
                marks[u] = 1
    return _as_rows(touched)


@njit(cache=True, nogil=True)
def _replace(rows: Int32, found: Int32, found_dots: Int32, lists: ListArrays) -> None:
    neighbors, dots, lengths = lists.neighbors, lists.dots, lists.lengths
    width = neighbors.shape[1]
    for t in range(len(rows)):
        u = rows[t]
        for w in range(lengths[u]):
            _unlink(u * width + w, neighbors[u, w], lists)
        lengths[u] = 0
        for w in range(min(width, found.shape[1])):
            item = found[t, w]
            if item < 0:
                break
            neighbors[u, w] = item
            dots[u, w] = found_dots[t, w]
            lengths[u] = w + 1
            _link(u * width + w, item, lists)
        neighbors[u, lengths[u] :] = -1
        dots[u, lengths[u] :] = -1


@njit(cache=True, nogil=True)
def _bounds(rows: int, alive: Bool, lists: ListArrays, complete: Bool) -> Int32:
    """The dot from which a newcomer may enter each list (at equality the hash decides)."""
    dots, lengths = lists.dots, lists.lengths
    bounds = np.full(rows, np.int32(NEVER))
    width = dots.shape[1]
    for u in range(rows):
        if alive[u]:
            if complete[u] and lengths[u] < width:
                bounds[u] = ALWAYS
            elif lengths[u] > 0:
                bounds[u] = dots[u, lengths[u] - 1]
    return bounds


@njit(cache=True, nogil=True, inline="always")
def _admits(u: int, item: int, exact: int, complete: Bool, hashes: UInt64, lists: ListArrays) -> bool:
    neighbors, dots = lists.neighbors, lists.dots
    length = lists.lengths[u]
    if complete[u] and length < neighbors.shape[1]:
        return True
    if length == 0:
        return False
    last = length - 1
    admitted: bool = precedes(exact, hashes[item], dots[u, last], hashes[neighbors[u, last]])
    return admitted


@njit(cache=True, nogil=True)
def _offer(offers: _Offers, complete: Bool, k: int, hashes: UInt64, lists: ListArrays, marks: Int8) -> Int32:
    """Offer items to lists, pair by pair. Returns the lists that took one; marks: into the first k."""
    neighbors, dots, lengths = lists.neighbors, lists.dots, lists.lengths
    touched = []
    for t in range(len(offers.lists)):
        u, item, exact = offers.lists[t], offers.items[t], offers.dots[t]
        if not _admits(u, item, exact, complete, hashes, lists):
            continue
        at = lengths[u]
        while at > 0 and precedes(exact, hashes[item], dots[u, at - 1], hashes[neighbors[u, at - 1]]):
            at -= 1
        # Only an equal pair can be there already, just before its own place.
        if at > 0 and neighbors[u, at - 1] == item:
            continue
        _insert_entry(u, at, item, exact, lists)
        if marks[u] == 0:
            marks[u] = 2
            touched.append(u)
        if at < k:
            marks[u] = 1
    return _as_rows(touched)


@njit(cache=True, parallel=True, nogil=True)
def _nearby(
    new: Int32, near: _Near, points: Int16, hashes: UInt64, lists: ListArrays
) -> tuple[Int32, Int32, Int32]:
    """Pairs (list, item, dot) worth offering: each new node with what its own search found and with
    the holders of its k nearest, both ways."""
    found, k, holders_max, complete = near.found, near.k, near.holders_max, near.complete
    neighbors, lengths, heads, links = lists.neighbors, lists.lengths, lists.heads, lists.links
    width = neighbors.shape[1]
    most = found.shape[1] + k * holders_max
    chunk = 64
    chunks = (len(new) + chunk - 1) // chunk
    parts = [np.empty((0, 3), np.int32) for _ in range(chunks)]
    for c in prange(chunks):
        first, stop = c * chunk, min(len(new), (c + 1) * chunk)
        pairs = np.empty((2 * most * (stop - first), 3), np.int32)
        count = 0
        candidates = np.empty(most, np.int32)
        for q in range(first, stop):
            x = new[q]
            total = 0
            for t in range(found.shape[1]):
                if found[q, t] >= 0:
                    candidates[total] = found[q, t]
                    total += 1
            for w in range(min(k, lengths[x])):
                cell = heads[neighbors[x, w]]
                for _ in range(holders_max):
                    if cell < 0:
                        break
                    candidates[total] = cell // width
                    total += 1
                    cell = links[cell // width, cell % width, 0]
            ordered = np.sort(candidates[:total])
            previous = np.int32(-1)
            for u in ordered:
                if u in (previous, x):
                    continue
                previous = u
                exact = dot(points[x], points[u])
                if _admits(u, x, exact, complete, hashes, lists):
                    pairs[count, 0], pairs[count, 1], pairs[count, 2] = u, x, exact
                    count += 1
                if _admits(x, u, exact, complete, hashes, lists):
                    pairs[count, 0], pairs[count, 1], pairs[count, 2] = x, u, exact
                    count += 1
        parts[c] = pairs[:count].copy()
    total_pairs = 0
    for c in range(chunks):
        total_pairs += len(parts[c])
    takers = np.empty(total_pairs, np.int32)
    items = np.empty(total_pairs, np.int32)
    exacts = np.empty(total_pairs, np.int32)
    at = 0
    for c in range(chunks):
        part = parts[c]
        for t in range(len(part)):
            takers[at], items[at], exacts[at] = part[t, 0], part[t, 1], part[t, 2]
            at += 1
    return takers, items, exacts


# --- kernels: what is affected ------------------------------------------------------------------


@njit(cache=True, nogil=True)
def holders(changed: Int32, k: int, lists: ListArrays, marks: Int8) -> Int32:
    """`changed` and the rows that have one of them in N(i), along the chains; rising."""
    heads, links = lists.heads, lists.links
    width = links.shape[1]
    rows = [np.int32(0) for _ in range(0)]
    for i in changed:
        if marks[i] == 0:
            marks[i] = 1
            rows.append(i)
    for i in changed:
        cell = heads[i]
        while cell >= 0:
            u, w = cell // width, cell % width
            if w < k and marks[u] == 0:
                marks[u] = 1
                rows.append(np.int32(u))
            cell = links[u, w, 0]
    out = np.array(rows, np.int32) if len(rows) else np.empty(0, np.int32)
    for u in out:
        marks[u] = 0
    return np.sort(out)


@njit(cache=True, nogil=True)
def holding(changed: Int32, rows: int, k: int, lists: ListArrays, marks: Int8) -> Int32:
    """As `holders`, from all lists one after the other."""
    neighbors, lengths = lists.neighbors, lists.lengths
    for i in changed:
        marks[i] = 1
    out = np.empty(rows, np.int32)
    count = 0
    for u in range(rows):
        held = marks[u] != 0
        for w in range(min(k, lengths[u])):
            held |= marks[neighbors[u, w]] != 0
        if held:
            out[count] = u
            count += 1
    for i in changed:
        marks[i] = 0
    return out[:count]


@njit(cache=True, nogil=True)
def _incident(rows: Int32, k: int, lists: ListArrays, marks: Int8) -> tuple[Int32, Int32]:
    neighbors, lengths = lists.neighbors, lists.lengths
    sources = np.empty(len(rows) * k, np.int32)
    ranks = np.empty(len(rows) * k, np.int32)
    count = 0
    for u in rows:
        for w in range(min(k, lengths[u])):
            if marks[u] or marks[neighbors[u, w]]:
                sources[count] = u
                ranks[count] = w
                count += 1
    return sources[:count].copy(), ranks[:count].copy()
