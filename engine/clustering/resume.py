"""Saves the derived columns of a hierarchy, and resumes from them after a restart.

A restart is replayed as a batch: nodes only in the snapshot are deletes, nodes only in the store are inserts,
and rows computed from other lists or features have changed. The usual stages then run on these alone; without
a snapshot every node is an insert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from engine.clustering.decode import ROOT
from engine.clustering.hierarchy import Hierarchy
from engine.clustering.level import Delta, Level
from engine.index.base import ExactIndex
from engine.numbering import find
from engine.system.stopwatch import Stopwatch
from engine.types import NO_ROWS, Epoch, EvidenceArrays, Float32, Int32, UInt64
from engine.vectors import round_means

_LOST = np.int32(ROOT - 1)  # the parent was deleted: any new parent differs


@dataclass(frozen=True, slots=True)
class Saved:
    """The derived columns of one level. Rows are its live nodes, renumbered; -1 means no row."""

    content: UInt64  # (n,) hash of the node's vector
    basis: UInt64  # (n,) hash of the row's other inputs: N(i) at level 0, size, mean, evidence above
    neighbors: Int32  # (n, width) rows, above level 0; (n, 0) at level 0, whose lists are in the store
    dots: Int32
    hidden: Float32  # (n, hidden)
    linkage: Float32  # (n, k)
    density: Float32
    parent: Int32
    root: Int32


def capture(hierarchy: Hierarchy) -> list[Saved]:
    """Copy the derived columns of all levels."""
    saved = []
    for at, level in enumerate(hierarchy.levels):
        rows = level.nodes.all_rows()
        number = np.full(level.capacity + 1, -1, np.int32)  # the last for -1
        number[rows] = np.arange(len(rows), dtype=np.int32)
        width = level.lists.width if at else 0
        used = np.arange(level.shape.k) < level.lists.degrees[rows][:, None]
        saved.append(
            Saved(
                content=level.nodes.hashes[rows],
                basis=_basis(level, rows),
                neighbors=number[level.lists.neighbors[rows, :width]],
                dots=level.lists.dots[rows, :width],
                hidden=level.hidden[rows],
                linkage=np.where(used, level.linkage[rows], 0),  # beyond the list's length are stale values
                density=level.density[rows],
                parent=number[level.parent[rows]],
                root=number[level.root[rows]],
            )
        )
    return saved


def resume(hierarchy: Hierarchy, saved: Sequence[Saved] | None, epoch: Epoch) -> None:
    """Cluster from the lists of level 0, which are in place, reusing what is still valid in a snapshot.

    The snapshot must be of the same shape, model, arithmetic and epoch.
    """
    base, watch = hierarchy.base, Stopwatch()
    delta, changed = _begin(base, saved[0] if saved else None)
    base.recluster(delta, changed, epoch, watch)
    for at in range(1, hierarchy.shape.max_levels):
        lower = hierarchy.levels[at - 1]
        if lower.links == 0:
            break
        upper = Level(hierarchy.shape, hierarchy.model, False, ExactIndex)
        hierarchy.levels.append(upper)
        known = saved[at] if saved and at < len(saved) else None
        delta = _lift(lower, upper, known)
        upper.update(delta, epoch, False, watch)
        upper.nodes.release(delta.gone)


def _begin(base: Level, saved: Saved | None) -> tuple[Delta, Int32]:
    """Restore the valid part of level 0; return the inserts, and all rows that changed."""
    rows = base.nodes.all_rows()
    if saved is None:
        return Delta(rows), rows
    at = _find(saved.content, base.nodes.hashes[rows])
    known, at = rows[at >= 0], at[at >= 0]
    row_of = np.full(len(saved.content) + 1, -1, np.int32)  # the last for -1
    row_of[at] = known
    base.hidden[known], base.linkage[known] = saved.hidden[at], saved.linkage[at]
    base.density[known] = saved.density[at]
    parent = row_of[saved.parent[at]]
    base.parent[known] = np.where((parent < 0) & (saved.parent[at] >= 0), _LOST, parent)
    base.root[known] = row_of[saved.root[at]]
    base.peaks = int(np.count_nonzero(base.root[known] == known))
    same = np.zeros(base.capacity, np.bool_)
    same[known] = _basis(base, known) == saved.basis[at]
    base.average(rows[same[rows]])  # of the others when they are embedded
    fresh = np.ones(base.capacity, np.bool_)
    fresh[known] = False
    return Delta(rows[fresh[rows]]), rows[~same[rows]]


def _lift(lower: Level, upper: Level, saved: Saved | None) -> Delta:
    """Restore the supernodes of a level's peaks; return what was inserted, deleted and changed since."""
    peaks = lower.nodes.all_rows()
    peaks = peaks[lower.parent[peaks] == ROOT]
    lower.above[: lower.nodes.rows] = -1
    at, gone = np.full(len(peaks), -1, np.int32), NO_ROWS
    if saved is not None:
        at = _find(saved.content, lower.nodes.hashes[peaks])
        gone = _put_back(lower, upper, saved, peaks[at >= 0], at[at >= 0])
    new = upper.add(lower.nodes.vectors[peaks[at < 0]], lower.nodes.hashes[peaks[at < 0]])
    held = at.copy()
    held[at < 0] = new
    lower.above[peaks], upper.below[held] = held, peaks
    _add_up(lower, upper)
    upper.evidence.update(np.sort(held), NO_ROWS, lower.trees(), lower.sources(), upper.capacity)
    stayed = held[at >= 0]
    reshaped = NO_ROWS
    if saved is not None:
        reshaped = stayed[_basis(upper, stayed) != saved.basis[at[at >= 0]]]
    return Delta(new, gone, reshaped=reshaped)


def _put_back(lower: Level, upper: Level, saved: Saved, peaks: Int32, at: Int32) -> Int32:
    """Restore all saved nodes, in rows 0, 1, ...; remove and return those that are no longer peaks.

    `peaks`: rows of the lower level that were peaks before, too; `at`: their saved rows.
    """
    count = len(saved.content)
    vectors = np.zeros((count, upper.nodes.vectors.shape[1]), np.int16)  # deleted nodes are never read
    hashes = np.zeros(count, np.uint64)
    vectors[at], hashes[at] = lower.nodes.vectors[peaks], lower.nodes.hashes[peaks]
    rows = upper.add(vectors, hashes)
    upper.lists.restore(rows, saved.neighbors, saved.dots)
    upper.lists.index.insert(rows)
    upper.hidden[rows], upper.linkage[rows], upper.density[rows] = saved.hidden, saved.linkage, saved.density
    upper.parent[rows], upper.root[rows] = saved.parent, saved.root
    upper.peaks = int(np.count_nonzero(upper.root[rows] == rows))
    gone = np.setdiff1d(rows, at).astype(np.int32)
    upper.nodes.remove(gone)
    return gone


def _add_up(lower: Level, upper: Level) -> None:
    """Compute sizes, sums and means of the supernodes from their trees."""
    rows, held = lower.nodes.all_rows(), upper.nodes.all_rows()
    upper.sizes[held], upper.sums[held] = 0, 0
    vectors = lower.nodes.vectors if lower.is_base else lower.sums
    _sum(rows, lower.above[lower.root[rows]], lower.sizes, vectors, upper.sizes, upper.sums)
    means = np.empty((len(held), upper.sums.shape[1]), np.int16)
    round_means(upper.sums[held], upper.sizes[held], means)
    upper.means[held] = means


def _basis(level: Level, rows: Int32) -> UInt64:
    """Hash the inputs of each row: the neighbours at level 0, size, mean and evidence above it."""
    basis: UInt64
    if level.is_base:
        basis = _hash_lists(
            rows, level.shape.k, level.lists.neighbors, level.lists.lengths, level.nodes.hashes
        )
    else:
        basis = _hash_features(rows, level.sizes, level.means, level.evidence.arrays, level.nodes.hashes)
    return basis


def _find(saved: UInt64, wanted: UInt64) -> Int32:
    """Return the position of each hash in `saved`, int32; -1: not found."""
    order = np.argsort(saved)
    at, there = find(saved[order], wanted)
    out = np.full(len(wanted), -1, np.int32)
    out[there] = order[at[there]]
    return out


@njit(cache=True, nogil=True, inline="always")
def _mix(state: Any, word: Any) -> Any:
    """One round of SplitMix64."""
    z = (state ^ word) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, nogil=True)
def _hash_lists(rows: Any, k: Any, neighbors: Any, lengths: Any, content: Any) -> Any:
    out = np.empty(len(rows), np.uint64)
    for t in range(len(rows)):
        row = rows[t]
        used = min(k, lengths[row])
        state = np.uint64(used)
        for w in range(used):
            state = _mix(state, content[neighbors[row, w]])
        out[t] = state
    return out


@njit(cache=True, nogil=True)
def _hash_features(rows: Any, sizes: Any, means: Any, evidence: EvidenceArrays, content: Any) -> Any:
    out = np.empty(len(rows), np.uint64)
    for t in range(len(rows)):
        row = rows[t]
        state = np.uint64(sizes[row])
        for c in range(means.shape[1]):
            state = _mix(state, np.uint64(means[row, c] + 32768))
        for c in range(evidence.totals.shape[1]):
            state = _mix(state, np.uint64(evidence.totals[row, c]))
        entries = np.uint64(0)  # a sum: their order is that of the rows
        for at in range(evidence.starts[row], evidence.starts[row] + evidence.counts[row]):
            entry = content[evidence.partners[at]]
            for c in range(4):
                entry = _mix(entry, np.uint64(evidence.sums[at, c]))
            entries += entry
        out[t] = _mix(state, entries)
    return out


@njit(cache=True, nogil=True)
def _sum(rows: Any, above: Any, sizes: Any, vectors: Any, out: Any, sums: Any) -> None:
    for t in range(len(rows)):
        row, node = rows[t], above[t]
        out[node] += sizes[row]
        for c in range(vectors.shape[1]):
            sums[node, c] += vectors[row, c]
