"""From the trees of a level to the nodes of the next one: their sizes, sums, means and evidence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numba import njit

from engine.clustering import evidence
from engine.clustering.decode import ROOT
from engine.clustering.level import Delta, Level, Moves
from engine.types import Int32, Int64
from engine.vectors import round_means


def lift(lower: Level, upper: Level, delta: Delta, moves: Moves, told: Int32) -> tuple[Delta, Int32]:
    """Translate a level's moves and gains into the next level's batch; also return the rows that are `told`.

    `told`: rows whose edges (at level 0) or evidence (above) changed.
    """
    found = _supernodes(lower, upper, delta, moves)
    heard = _hear(lower, upper, told, moves, found.gone)
    return replace(found, reshaped=np.union1d(found.reshaped, heard)), heard


def _supernodes(lower: Level, upper: Level, delta: Delta, moves: Moves) -> Delta:
    """Let supernodes come, go and change their size and mean; return these changes."""
    roots, sizes, sums = _gains(lower, delta, moves)
    is_peak = lower.nodes.alive[roots] & (lower.parent[roots] == ROOT)
    was_peak = lower.above[roots] >= 0
    appeared, vanished, stayed = is_peak & ~was_peak, was_peak & ~is_peak, is_peak & was_peak
    stayed &= (sizes != 0) | (sums != 0).any(axis=1)

    gone = lower.above[roots[vanished]]
    assert not (upper.sizes[gone] + sizes[vanished]).any(), "a supernode vanished with items in it"
    upper.nodes.remove(gone)
    lower.above[roots[vanished]] = -1

    peaks = roots[appeared]
    new = upper.add(lower.nodes.vectors[peaks], lower.nodes.hashes[peaks])
    upper.below[new], lower.above[peaks] = peaks, new
    upper.sizes[new], upper.sums[new] = sizes[appeared], sums[appeared]

    touched = lower.above[roots[stayed]]
    upper.sizes[touched] += sizes[stayed]
    upper.sums[touched] += sums[stayed]
    fresh = np.concatenate([new, touched])
    means = np.empty((len(fresh), lower.shape.dim), np.int16)
    round_means(upper.sums[fresh], upper.sizes[fresh], means)
    differs = (means != upper.means[fresh]).any(axis=1)[len(new) :] | (sizes[stayed] != 0)
    upper.means[fresh] = means
    return Delta(new, gone, touched, sizes[stayed], sums[stayed], touched[differs])


def _hear(lower: Level, upper: Level, told: Int32, moves: Moves, gone: Int32) -> Int32:
    """Update the evidence of `upper`'s nodes; return the rows that differ. `gone`: former nodes."""
    alive = lower.nodes.alive
    moved = moves.rows[alive[moves.rows]]
    if lower.is_base:
        pointing = lower.lists.affected_nodes(moved)
    else:
        pointing = evidence.pointing(moves.rows, alive[: lower.nodes.rows], lower.evidence.arrays)
    concerned = np.concatenate([told, moved, pointing])
    peaks = np.concatenate([lower.root[concerned], moves.before[moves.before >= 0]])
    rows = np.unique(lower.above[peaks])  # -1: no longer a peak
    return upper.evidence.update(rows[rows >= 0], gone, lower.trees(), lower.sources(), upper.capacity)


def _gains(lower: Level, delta: Delta, moves: Moves) -> tuple[Int32, Int64, Int64]:
    """Return the gains of each affected root's tree: roots (r,), sizes (r,), sums (r, d).

    A moved row takes all it has now from its old root to its new one, so what it gained in the same
    change is given to the old root first.
    """
    was = delta.touched
    if len(was):
        root_before = lower.root.copy()
        root_before[moves.rows] = moves.before
        was = root_before[delta.touched]
    ends = np.concatenate([moves.before, moves.after, was])
    roots, place = np.unique(ends, return_inverse=True)
    before, after, gaining = np.split(place, [len(moves.rows), 2 * len(moves.rows)])
    sizes = np.zeros(len(roots), np.int64)
    sums = np.zeros((len(roots), lower.shape.dim), np.int64)
    vectors = lower.nodes.vectors if lower.is_base else lower.sums
    _carry(moves.rows, before, after, lower.sizes, vectors, sizes, sums)
    np.add.at(sizes, gaining, delta.gained_sizes)
    if len(gaining):
        np.add.at(sums, gaining, delta.gained_sums)
    real = roots >= 0
    return roots[real], sizes[real], sums[real]


@njit(cache=True, nogil=True)
def _carry(rows: Any, before: Any, after: Any, sizes: Any, vectors: Any, out: Any, sums: Any) -> None:
    for t in range(len(rows)):
        row, old, new = rows[t], before[t], after[t]
        out[old] -= sizes[row]
        out[new] += sizes[row]
        for c in range(vectors.shape[1]):
            sums[old, c] -= vectors[row, c]
            sums[new, c] += vectors[row, c]
