"""Evidence: level-0 edge statistics within and between supernodes.

A supernode's entry for a partner sums up the edges out of its own members into the partner's: how many
they are, their p and their similarity. Entries of one level follow from the level below and its trees: at
level 1 from lists and p, further up from the entries there. All sums are integers, so the order of
addition is free and a row computed again has the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from engine.index.columns import Columns
from engine.types import EVIDENCE_SCALE, Bool, EvidenceArrays, Float32, Int32, Int64

DOT_SHIFT = 12  # from a dot's scale, 2^28, to 2^16: sums of squares stay below 2^63
_LEAST_POOL = 4096


class Sources(NamedTuple):
    """The edges out of the nodes of the level below, for kernels. One of the two kinds is empty."""

    neighbors: Int32  # (n, width): level 0
    dots: Int32
    lengths: Int32
    linkage: Float32  # (n, k)
    entries: EvidenceArrays  # above level 0
    is_base: bool


class Trees(NamedTuple):
    """Where the nodes of the level below belong."""

    root: Int32  # (n,), their peak, -1: not alive
    above: Int32  # (n,), a peak's row


class Fresh(NamedTuple):
    """The recomputed evidence of some supernodes: their entries one after the other, by rising partner."""

    counts: Int32  # (m,)
    partners: Int32  # (e,)
    sums: Int64  # (e, 4)
    totals: Int64  # (m, 7)


class Evidence(Columns):
    """The entries of one level's supernodes, in a pool that is compacted when half of it is unused."""

    starts: Int64
    rooms: Int32  # entries that fit at a row's place
    counts: Int32
    totals: Int64

    def __init__(self) -> None:
        super().__init__(
            {
                "starts": (np.int64, 0, ()),
                "rooms": (np.int32, 0, ()),
                "counts": (np.int32, 0, ()),
                "totals": (np.int64, 0, (7,)),
            }
        )
        self._partners = np.zeros(0, np.int32)
        self._sums = np.zeros((0, 4), np.int64)
        self._used = 0

    @property
    def arrays(self) -> EvidenceArrays:
        """The entries as the kernels take them."""
        return EvidenceArrays(self.starts, self.counts, self._partners, self._sums, self.totals)

    def update(self, rows: Int32, gone: Int32, trees: Trees, sources: Sources, capacity: int) -> Int32:
        """Recompute the entries of `rows` and drop those of `gone`; return the rows that differ.

        `rows`: live, distinct; all whose members, or edges of members, or the trees of those edges'
        ends changed. `capacity`: of the level.
        """
        self.reserve(capacity)
        self.counts[gone] = 0
        self.totals[gone] = 0
        fresh = gather(rows, trees, sources, capacity)
        stops = np.cumsum(fresh.counts, dtype=np.int64)
        differs = _differing(rows, stops, fresh, self.arrays)
        self._place(rows[differs], fresh.counts[differs])
        _write(rows, differs, stops, fresh, self.arrays)
        return rows[differs]

    def _place(self, rows: Int32, counts: Int32) -> None:
        """Find places in the pool for this many entries of each row."""
        large = counts > self.rooms[rows]
        if self._used + 2 * int(counts[large].sum()) > len(self._partners):
            self.counts[rows] = 0  # about to be written: not worth moving
            self._compact(int(counts.sum()))
            large = counts > self.rooms[rows]
        rows, rooms = rows[large], counts[large] + counts[large] // 4
        self.starts[rows] = self._used + np.cumsum(rooms, dtype=np.int64) - rooms
        self.rooms[rows] = rooms
        self._used += int(rooms.sum())

    def _compact(self, wanted: int) -> None:
        """Move the live entries to a pool with as much room again, and `wanted` more."""
        live = np.flatnonzero(self.counts)
        counts = self.counts[live]
        entries = int(counts.sum())
        begins = np.cumsum(counts, dtype=np.int64) - counts
        at = np.repeat(self.starts[live] - begins, counts) + np.arange(entries)
        room = max(_LEAST_POOL, 2 * entries + 4 * wanted)
        partners, sums = np.zeros(room, np.int32), np.zeros((room, 4), np.int64)
        partners[:entries], sums[:entries] = self._partners[at], self._sums[at]
        self._partners, self._sums, self._used = partners, sums, entries
        self.rooms[:] = 0
        self.rooms[live] = counts
        self.starts[live] = begins


def gather(rows: Int32, trees: Trees, sources: Sources, capacity: int) -> Fresh:
    """Return the evidence of `rows` (m,), from the level below. `capacity`: of the rows' level."""
    place = np.full(capacity, -1, np.int32)  # of a row among `rows`
    place[rows] = np.arange(len(rows), dtype=np.int32)
    members, stops = _members(place, len(rows), trees)
    return Fresh(*_gather(rows, members, stops, trees, sources, capacity))


@njit(cache=True, nogil=True)
def _members(place: Int32, count: int, trees: Trees) -> tuple[Int32, Int64]:
    """The nodes below, side by side by the supernode they belong to; where each one's stop, (count,)."""
    root, above = trees.root, trees.above
    stops = np.zeros(count + 1, np.int64)
    for i in range(len(root)):
        if root[i] >= 0 and place[above[root[i]]] >= 0:
            stops[place[above[root[i]]] + 1] += 1
    for at in range(count):
        stops[at + 1] += stops[at]
    members = np.empty(stops[count], np.int32)
    for i in range(len(root)):
        if root[i] >= 0:
            at = place[above[root[i]]]
            if at >= 0:
                members[stops[at]] = i
                stops[at] += 1
    return members, stops[:count]


@njit(cache=True, nogil=True)
def _most_entries(members: Int32, sources: Sources) -> int:
    most = 0
    k = sources.linkage.shape[1]
    for i in members:
        most += min(k, sources.lengths[i]) if sources.is_base else sources.entries.counts[i]
    return most


@njit(cache=True, nogil=True)
def _gather(
    rows: Int32, members: Int32, stops: Int64, trees: Trees, sources: Sources, capacity: int
) -> tuple[Int32, Int32, Int64, Int64]:
    k, entries = sources.linkage.shape[1], sources.entries
    most = _most_entries(members, sources)
    counts = np.zeros(len(rows), np.int32)
    partners = np.empty(most, np.int32)
    sums = np.empty((most, 4), np.int64)
    totals = np.zeros((len(rows), 7), np.int64)
    seen = np.zeros((capacity, 4), np.int64)
    used = 0
    for t in range(len(rows)):
        own, begin = rows[t], used
        total = totals[t]
        for m in range(stops[t - 1] if t else 0, stops[t]):
            i = members[m]
            if sources.is_base:
                for w in range(min(k, sources.lengths[i])):
                    other = trees.above[trees.root[sources.neighbors[i, w]]]
                    p = np.int64(sources.linkage[i, w] * EVIDENCE_SCALE + 0.5)
                    s = np.int64(sources.dots[i, w]) >> DOT_SHIFT
                    if other == own:
                        total[0] += 1
                        total[1] += p
                        total[2] += s
                        total[3] += s * s
                        continue
                    if seen[other, 0] == 0:
                        partners[used] = other
                        used += 1
                    seen[other, 0] += 1
                    seen[other, 1] += p
                    seen[other, 2] += s
                    seen[other, 3] += s * s
            else:
                for c in range(4):
                    total[c] += entries.totals[i, c]
                for at in range(entries.starts[i], entries.starts[i] + entries.counts[i]):
                    other = trees.above[trees.root[entries.partners[at]]]
                    if other == own:
                        for c in range(4):
                            total[c] += entries.sums[at, c]
                        continue
                    if seen[other, 0] == 0:
                        partners[used] = other
                        used += 1
                    for c in range(4):
                        seen[other, c] += entries.sums[at, c]
        partners[begin:used] = np.sort(partners[begin:used])
        counts[t] = used - begin
        for at in range(begin, used):
            other = partners[at]
            for c in range(4):
                sums[at, c] = seen[other, c]
                seen[other, c] = 0
            total[4] += sums[at, 0]
            total[5] += sums[at, 1]
            total[6] = max(total[6], sums[at, 1])
    return counts, partners[:used].copy(), sums[:used].copy(), totals


@njit(cache=True, nogil=True)
def _differing(rows: Int32, stops: Int64, fresh: Fresh, old: EvidenceArrays) -> Bool:
    differs = np.zeros(len(rows), np.bool_)
    for t in range(len(rows)):
        row, count = rows[t], fresh.counts[t]
        same = old.counts[row] == count
        for c in range(fresh.totals.shape[1]):
            same &= old.totals[row, c] == fresh.totals[t, c]
        if same:
            begin, start = stops[t] - count, old.starts[row]
            for at in range(count):
                same &= old.partners[start + at] == fresh.partners[begin + at]
                for c in range(4):
                    same &= old.sums[start + at, c] == fresh.sums[begin + at, c]
        differs[t] = not same
    return differs


@njit(cache=True, nogil=True)
def _write(rows: Int32, differs: Bool, stops: Int64, fresh: Fresh, out: EvidenceArrays) -> None:
    for t in range(len(rows)):
        if differs[t]:
            row, count = rows[t], fresh.counts[t]
            begin, start = stops[t] - count, out.starts[row]
            out.counts[row] = count
            out.totals[row] = fresh.totals[t]
            for at in range(count):
                out.partners[start + at] = fresh.partners[begin + at]
                out.sums[start + at] = fresh.sums[begin + at]


@njit(cache=True, nogil=True)
def pointing(moved: Int32, alive: Bool, entries: EvidenceArrays) -> Int32:
    """Return the live rows with an entry for a row of `moved`, rising."""
    marked = np.zeros(len(alive), np.bool_)
    for i in moved:
        marked[i] = True
    out = np.empty(len(alive), np.int32)
    count = 0
    for i in range(len(alive)):
        if alive[i]:
            for at in range(entries.starts[i], entries.starts[i] + entries.counts[i]):
                if marked[entries.partners[at]]:
                    out[count] = i
                    count += 1
                    break
    return out[:count].copy()
