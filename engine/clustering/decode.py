"""From linkage and density to a forest: Hi-LANDER's decoding (arXiv 2107.01319, section 3).

All functions take the arrays of a whole level and the rows to compute, and are pure functions of
the content of the lists: orders end in the key's hash, sums run in rank order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from engine.types import Float32, Int8, Int32, UInt64
from engine.vectors import DOT_SCALE

ROOT = -1  # the parent of a peak


@njit(cache=True, nogil=True)
def densities(rows: Int32, k: int, dots: Int32, lengths: Int32, linkage: Float32) -> Float32:
    """Return d_i = mean over N(i) of s_ij (2 p_ij - 1) of `rows` (m,), float32; 0 without neighbours."""
    out = np.zeros(len(rows), np.float32)
    for t in range(len(rows)):
        i = rows[t]
        degree = min(k, lengths[i])
        total = 0.0
        for w in range(degree):
            total += dots[i, w] / DOT_SCALE * (2.0 * linkage[i, w] - 1.0)
        if degree > 0:
            out[t] = np.float32(total / degree)
    return out


class Edges(NamedTuple):
    """The edges of a level: every node's list, and p_ij of its first k entries."""

    neighbors: Int32  # (n, width)
    lengths: Int32  # (n,)
    linkage: Float32  # (n, k)


class Order(NamedTuple):
    """The total order of a level's nodes: by density, then by hash."""

    density: Float32  # (n,)
    hashes: UInt64  # (n,)


@njit(cache=True, nogil=True)
def parents(rows: Int32, k: int, tau: np.float32, edges: Edges, order: Order) -> Int32:
    """Return the parent of each of `rows` (m,), int32: of the j in N(i) with p_ij > tau and (d_j, hash_j)
    above (d_i, hash_i), the one of highest p_ij, then smallest hash; ROOT if there is none."""
    neighbors, linkage = edges.neighbors, edges.linkage
    density, hashes = order.density, order.hashes
    out = np.full(len(rows), np.int32(ROOT))
    for t in range(len(rows)):
        i = rows[t]
        best = -1
        best_p = np.float32(0.0)
        for w in range(min(k, edges.lengths[i])):
            j = neighbors[i, w]
            p = linkage[i, w]
            if p <= tau or density[j] < density[i]:
                continue
            if density[j] == density[i] and hashes[j] <= hashes[i]:
                continue
            if best < 0 or p > best_p or (p == best_p and hashes[j] < hashes[best]):
                best, best_p = j, p
        out[t] = best
    return out


@njit(cache=True, nogil=True)
def roots(
    changed: Int32, parent: Int32, root: Int32, heads: Int32, links: Int32, marks: Int8
) -> tuple[Int32, Int32]:
    """Re-hang the subtrees under rows whose parent changed; writes `root`.

    `changed` (m,); `parent`, `root`, `heads` (n,) and `links` (n, width, 2): columns of the level, see
    `ListArrays`. `marks` (n,): scratch, zero before and after. Returns the rows that got another root, int32
    (moved,), and the root each had before. A child of i has i in its list, so the chains of `heads` and
    `links` lead to all children.
    """
    width = links.shape[1]
    rows = [np.int32(0) for _ in range(0)]
    for i in changed:
        if marks[i] == 0:
            marks[i] = 1
            rows.append(i)
    at = 0
    while at < len(rows):
        i = rows[at]
        at += 1
        cell = heads[i]
        while cell >= 0:
            u = np.int32(cell // width)
            if parent[u] == i and marks[u] == 0:
                marks[u] = 1
                rows.append(u)
            cell = links[u, cell % width, 0]
    # marks: 1 = root not yet known again, 2 = known
    moved = [np.int32(0) for _ in range(0)]
    before = [np.int32(0) for _ in range(0)]
    path = [np.int32(0) for _ in range(0)]
    for start in rows:
        i = start
        while marks[i] == 1 and parent[i] >= 0:
            path.append(i)
            i = parent[i]
        if marks[i] == 1:
            path.append(i)
            top = i
        else:
            top = root[i]
        while len(path) > 0:
            i = path.pop()
            marks[i] = 2
            if root[i] != top:
                moved.append(i)
                before.append(root[i])
                root[i] = top
    for i in rows:
        marks[i] = 0
    count = len(moved)
    out = np.empty(count, np.int32)
    out_before = np.empty(count, np.int32)
    for t in range(count):
        out[t], out_before[t] = moved[t], before[t]
    return out, out_before
