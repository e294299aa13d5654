"""Features of the evidence between supernodes, which the upper network reads in addition to the common ones.

A node's features use its own totals and number of partners, an edge's the totals of both ends and their
entries for each other. Other partners have no part, so the receptive field stays that of
`engine.model.features`.
"""

from __future__ import annotations

import math
from typing import Any

from numba import njit

from engine.types import EVIDENCE_SCALE, EvidenceArrays, Float64

STEP = 1.0 / EVIDENCE_SCALE  # of p and of similarities in the sums
MOST_DEVIATIONS = 8.0  # bound of a standardised difference
LEAST_SPREAD = 2.0**-9  # least standard deviation of similarities within a supernode
FLOOR = 2.0**-14  # least distance: the grid's step
BEND = 12.0  # standardised similarities are squashed into (-BEND, BEND)

NODE_EVIDENCE = (
    "log_edges",
    "inner_share",  # of the edges out of its members
    "inner_p",
    "inner_similarity",
    "log_inner_spread",
    "log_partners",
    "outer_p",
    "most_p",  # with one partner, an edge out of its members
)

EDGE_EVIDENCE = (
    "log_cross_edges",
    "joined",  # 1 where there is a cross edge
    "share_of_source",  # of all edges out of its members
    "share_of_target",
    "outer_share_of_source",
    "outer_share_of_target",
    "p_of_source",  # sum of p over all edges out of its members
    "p_of_target",
    "cross_p",
    "cross_p_of_source",
    "cross_p_of_target",
    "source_inner_share",
    "target_inner_share",
    "source_inner_p",
    "target_inner_p",
    "against_most_of_source",
    "against_most_of_target",
    "against_outer_of_source",
    "against_outer_of_target",
    "joint",  # sum of p against the geometric mean of both ends' edges
    "log_cross_distance",
    "cross_to_source_inner",  # similarity, in deviations within the source
    "cross_to_target_inner",
    "cross_to_source_inner_z",  # in the epoch's
    "cross_to_target_inner_z",
    "log_source_size",
    "log_target_size",
)


@njit(cache=True, nogil=True)
def squash(z: float) -> float:
    return z / (1.0 + abs(z) / BEND)


@njit(cache=True, nogil=True)
def log_distance(s: float) -> float:
    return math.log(max(1.0 - s, FLOOR))


@njit(cache=True, nogil=True, inline="always")
def _ratio(a: Any, b: Any) -> float:
    """Return a / b, 0 where b is 0."""
    ratio: float = a / b if b > 0 else 0.0
    return ratio


@njit(cache=True, nogil=True)
def _spread(totals: Any) -> float:
    """Return the standard deviation of the similarities within a supernode; `totals` of EvidenceArrays."""
    mean = _ratio(totals[2] * STEP, totals[0])
    square = _ratio(totals[3] * (STEP * STEP), totals[0])
    return max(math.sqrt(max(square - mean * mean, 0.0)), LEAST_SPREAD)


@njit(cache=True, nogil=True)
def _entry(i: int, j: int, evidence: EvidenceArrays) -> int:
    """Return the index of i's entry for j, -1: there is none."""
    low = evidence.starts[i]
    high = low + evidence.counts[i]
    stop = high
    while low < high:
        middle = (low + high) // 2
        if evidence.partners[middle] < j:
            low = middle + 1
        else:
            high = middle
    return low if low < stop and evidence.partners[low] == j else -1


@njit(cache=True, nogil=True)
def node_evidence(raw: Float64, at: int, i: int, evidence: EvidenceArrays, scale: Any) -> None:
    """Write the features of node i to raw[at:]; `scale`: mean and deviation of the epoch."""
    mean, deviation = scale.mean, scale.deviation
    totals = evidence.totals[i]
    inner, outer = totals[0], totals[4]
    raw[at] = math.log(1.0 + inner + outer)
    raw[at + 1] = _ratio(inner, inner + outer)
    raw[at + 2] = _ratio(totals[1] * STEP, inner)
    raw[at + 3] = squash((totals[2] * STEP / inner - mean) / deviation) if inner > 0 else raw[0]
    raw[at + 4] = math.log(_spread(totals) / deviation) if inner > 0 else 0.0
    raw[at + 5] = math.log(1.0 + evidence.counts[i])
    raw[at + 6] = _ratio(totals[5] * STEP, outer)
    raw[at + 7] = _ratio(totals[6] * STEP, inner + outer)


@njit(cache=True, nogil=True)
def edge_evidence(raw: Float64, at: int, i: int, j: int, s: float, graph: Any, scale: Any) -> None:
    """Write the features of the edge from i to j, of similarity s, to raw[at:].

    `graph` has `evidence` and `size`; `scale`: mean and deviation of the epoch.
    """
    evidence, size = graph.evidence, graph.size
    mean, deviation = scale.mean, scale.deviation
    own, other = evidence.totals[i], evidence.totals[j]
    there, back = _entry(i, j, evidence), _entry(j, i, evidence)
    c1 = c2 = 0
    p1 = p2 = s_sum = 0.0
    if there >= 0:
        c1, p1, s_sum = (
            evidence.sums[there, 0],
            evidence.sums[there, 1] * STEP,
            evidence.sums[there, 2] * STEP,
        )
    if back >= 0:
        c2, p2 = evidence.sums[back, 0], evidence.sums[back, 1] * STEP
        s_sum += evidence.sums[back, 2] * STEP
    cross = s_sum / (c1 + c2) if c1 + c2 > 0 else s
    edges_i, edges_j = own[0] + own[4], other[0] + other[4]
    raw[at] = math.log(1.0 + c1 + c2)
    raw[at + 1] = 1.0 if c1 + c2 > 0 else 0.0
    raw[at + 2], raw[at + 3] = _ratio(c1, edges_i), _ratio(c2, edges_j)
    raw[at + 4], raw[at + 5] = _ratio(c1, own[4]), _ratio(c2, other[4])
    raw[at + 6], raw[at + 7] = _ratio(p1, edges_i), _ratio(p2, edges_j)
    raw[at + 8] = _ratio(p1 + p2, c1 + c2)
    raw[at + 9], raw[at + 10] = _ratio(p1, c1), _ratio(p2, c2)
    raw[at + 11], raw[at + 12] = _ratio(own[0], edges_i), _ratio(other[0], edges_j)
    raw[at + 13], raw[at + 14] = _ratio(own[1] * STEP, own[0]), _ratio(other[1] * STEP, other[0])
    raw[at + 15], raw[at + 16] = _ratio(p1, own[6] * STEP), _ratio(p2, other[6] * STEP)
    raw[at + 17], raw[at + 18] = _ratio(p1, own[5] * STEP), _ratio(p2, other[5] * STEP)
    raw[at + 19] = _ratio(p1 + p2, math.sqrt(float(edges_i) * float(edges_j)))
    raw[at + 20] = log_distance(cross) - log_distance(mean)
    z = squash((cross - mean) / deviation)
    for e in range(2):
        totals = own if e == 0 else other
        raw[at + 21 + e] = raw[at + 23 + e] = 0.0
        if totals[0] > 0:
            inside = totals[2] * STEP / totals[0]
            ratio = (cross - inside) / _spread(totals)
            raw[at + 21 + e] = min(max(ratio, -MOST_DEVIATIONS), MOST_DEVIATIONS)
            raw[at + 23 + e] = z - squash((inside - mean) / deviation)
    raw[at + 25], raw[at + 26] = math.log(float(size[i])), math.log(float(size[j]))
