"""The neighbour lists of a level as arrays, and the kernels that change and follow them.

Cell (u, w) of the lists is entry w of node u; its number is u * width + w. The cells that hold one node form
a doubly linked chain (`heads`, `links`): so a node's holders are found without reading all lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit, prange

from engine.index.base import ALWAYS, NEVER, precedes
from engine.types import Bool, Int8, Int16, Int32, UInt64
from engine.vectors import dot, rounded_mean


class ListArrays(NamedTuple):
    """The lists of a level as arrays, for kernels."""

    neighbors: Int32  # (capacity, width)
    dots: Int32  # (capacity, width)
    lengths: Int32  # (capacity,)
    heads: Int32  # (capacity,)
    links: Int32  # (capacity, width, 2)


class Offers(NamedTuple):
    """Items offered to lists, pair by pair, int32 (pairs,) each."""

    lists: Int32
    items: Int32
    dots: Int32


class Near(NamedTuple):
    """Search results and bounds for `nearby`."""

    found: Int32  # (new, searched), what its own search found
    k: int
    holders_max: int  # of each of its k nearest
    complete: Bool  # (capacity,), lists that take any newcomer


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
    """Move the entry of cell `source` to the unused cell `goal`; it keeps its place in the chain."""
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
def drop(gone: Int32, k: int, lists: ListArrays, marks: Int8) -> Int32:
    """Remove `gone` nodes from all lists; return the rows that lost an entry, int32.

    `marks` (capacity,), zero before the call: 1 for a row that lost one of the first k, 2 for one that lost
    another only. The caller resets it.
    """
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
def replace(rows: Int32, found: Int32, found_dots: Int32, lists: ListArrays) -> None:
    """Replace the whole lists of `rows` (m,) by `found` (m, width), best first, -1 pads, and their dots."""
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
def bounds_of(rows: int, alive: Bool, lists: ListArrays, complete: Bool) -> Int32:
    """Return the dot from which a newcomer may enter each list, int32 (rows,); on a tie the hash decides."""
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
def offer(offers: Offers, complete: Bool, k: int, hashes: UInt64, lists: ListArrays, marks: Int8) -> Int32:
    """Offer items to lists, pair by pair; return the lists that took one, int32.

    `marks` as in `drop`: 1 for a list whose first k changed, 2 for one that changed behind them only.
    """
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
def nearby(
    new: Int32, near: Near, points: Int16, hashes: UInt64, lists: ListArrays
) -> tuple[Int32, Int32, Int32]:
    """Return pairs (list, item, dot) worth offering, int32 (pairs,) each: each new node with what its own
    search found and with the holders of its k nearest, both ways."""
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
    """Return `changed` and the rows that have one of them in N(i), int32, rising; follows the chains.

    `marks`: scratch (capacity,), zero before and after.
    """
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
    """Return what `holders` does, by reading the first `rows` lists in sequence."""
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
def incident(rows: Int32, k: int, lists: ListArrays, marks: Int8) -> tuple[Int32, Int32]:
    """Return the edges of `rows` with an end in `marks` (capacity,): their sources and ranks, int32 (e,)."""
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


@njit(cache=True, nogil=True)
def means(rows: Int32, k: int, neighbors: Int32, lengths: Int32, vectors: Int16) -> Int16:
    """Return the mean of the vectors of each node and of its N(i), (m, d), rounded half up to the grid."""
    d = vectors.shape[1]
    out, sums = np.empty((len(rows), d), np.int16), np.empty(d, np.int32)
    for t in range(len(rows)):
        row = rows[t]
        degree = min(k, lengths[row])
        sums[:] = vectors[row]
        for w in range(degree):
            near = vectors[neighbors[row, w]]
            for c in range(d):
                sums[c] += near[c]
        for c in range(d):
            out[t, c] = rounded_mean(sums[c], degree + 1)
    return out
