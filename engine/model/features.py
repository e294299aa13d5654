"""Computes the node and edge features of a k-NN graph from its neighbour lists.

The receptive field keeps updates local. A node's features depend on its own list, size and mean, an edge's
on the lists, sizes and means of its two ends; the model adds one round of messages. Of the rest of the
collection, only the calibration epoch has a part: neither row numbers nor the number of items do. The
kernels are scalar loops without fast-math, so a feature has the same bits wherever it is computed.

Every feature is clipped to its range in training and standardised, so that inputs from new kinds of
collections stay within the training domain.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from engine.model.evidence_features import (
    EDGE_EVIDENCE,
    FLOOR,
    NODE_EVIDENCE,
    edge_evidence,
    log_distance,
    node_evidence,
    squash,
)
from engine.model.ranges import Ranges
from engine.types import (
    Bool,
    Cache,
    Epoch,
    EvidenceArrays,
    Float32,
    Float64,
    Int16,
    Int32,
    Int64,
    KnnGraph,
)
from engine.vectors import DOT_STEP, dot

MIN_DEVIATION = 2.0**-10
KEPT = 256  # list summaries that the edge kernel caches: edges of one tree share targets

_EDGE_FEATURES = (
    "similarity",
    "log_distance",
    "rank",
    "rank_back",  # of the source in the target's list; 1 where it is missing
    "mutual",
    "common",  # share of common neighbours
    "common_near",  # of the nearer halves of the lists
    "similarity_to_source_first",
    "similarity_to_source_mean",
    "similarity_to_source_last",
    "log_to_source_first",
    "log_to_source_mean",
    "log_to_source_last",
    "similarity_to_target_first",
    "similarity_to_target_mean",
    "similarity_to_target_last",
    "log_to_target_first",
    "log_to_target_mean",
    "log_to_target_last",
    "identity_average",
    "average_identity",
    "average_average",
    "log_identity_average",
    "log_average_identity",
    "log_average_average",
    "average_to_source_inner",  # against the mean similarity within the source
    "average_to_target_inner",
)


HALFWAY = ("log_halfway",)  # distance between the points halfway from each vector to its average


def edge_feature_names(is_base: bool) -> tuple[str, ...]:
    """Return the names of the edge features, in order; `is_base`: at level 0."""
    return _EDGE_FEATURES + (HALFWAY if is_base else EDGE_EVIDENCE)


def node_feature_names(k: int, is_base: bool) -> tuple[str, ...]:
    """Return the names of the node features, in order, for lists of `k`; `is_base`: at level 0."""
    return _node_feature_names(k) if is_base else _node_feature_names(k) + NODE_EVIDENCE


def _node_feature_names(k: int) -> tuple[str, ...]:
    return (
        *(f"similarity_{rank}" for rank in range(k)),
        *(f"log_distance_{rank}" for rank in range(k)),
        *(f"jump_{rank}" for rank in range(k - 1)),
        "similarity_mean",
        "similarity_spread",
        "log_mean",
        "log_spread",
        "degree",
        "size",
        "tightness",
        "inner",  # standardised mean similarity between two items of the node
        "base",  # 1 at level 0
        "cone",  # of the epoch, on an absolute scale: log(1 - mean); -9.7 where all vectors are alike
        "dispersion",  # log(deviation / (1 - mean)): low where all pairs are about equally similar
        "isotropy",  # dispersion minus that of random directions, log(1 / sqrt(d)); 0 without structure
    )


class _Graph(NamedTuple):
    """The columns of a `KnnGraph` for the kernels."""

    k: int
    neighbors: Int32
    dots: Int32
    degree: Int32
    size: Int64
    identity: Int16
    average: Int16
    is_base: bool
    evidence: EvidenceArrays


class _Scale(NamedTuple):
    """The calibration epoch, with a floor under the deviation."""

    mean: float
    deviation: float


class _Ranges(NamedTuple):
    """The columns of `Ranges`."""

    low: Float64
    high: Float64
    center: Float64
    scale: Float64


class _EdgeCache(NamedTuple):
    """Edge features computed before: by source and rank, and which are valid."""

    features: Float32
    valid: Bool


_NO_EVIDENCE = EvidenceArrays(
    np.empty(0, np.int64),
    np.empty(0, np.int32),
    np.empty(0, np.int32),
    np.empty((0, 4), np.int64),
    np.empty((0, 7), np.int64),
)
_NO_CACHE = _EdgeCache(np.empty((0, 0, 0), np.float32), np.empty((0, 0), np.bool_))


@njit(cache=True, nogil=True, inline="always")
def _dot(a: Any, b: Any) -> Any:
    """Return the similarity of two grid vectors, exact: a 32-bit integer fits a float64."""
    return dot(a, b) * DOT_STEP


@njit(cache=True, nogil=True)
def _standardise(row: Float32, raw: Float64, ranges: _Ranges) -> None:
    for f in range(raw.shape[0]):
        row[f] = (min(max(raw[f], ranges.low[f]), ranges.high[f]) - ranges.center[f]) / ranges.scale[f]


@njit(cache=True, nogil=True)
def _inner(size: int, tightness: float) -> float:
    """Return the mean similarity of two different items of a node, from the norm of their mean vector."""
    return (size * tightness * tightness - 1.0) / (size - 1.0)


@njit(cache=True, nogil=True)
def _members(graph: _Graph, i: int) -> int:
    """Return the number of vectors that a node's average is of."""
    return int(graph.degree[i] + 1) if graph.is_base else int(graph.size[i])


@njit(cache=True, nogil=True)
def _node_kernel(out: Float32, rows: Int32, graph: _Graph, scale: _Scale, ranges: _Ranges) -> None:
    k, dots, degree, size, average = graph.k, graph.dots, graph.degree, graph.size, graph.average
    is_base, mean, deviation = graph.is_base, scale.mean, scale.deviation
    raw = np.zeros(out.shape[1])
    log_unit = log_distance(mean)
    dispersion = math.log(deviation) - log_unit
    for t in range(rows.shape[0]):
        i = rows[t]
        n = degree[i]
        raw[:] = 0.0
        z_sum = z_square = log_sum = log_square = 0.0
        z = log = 0.0
        for r in range(k):
            if r < n:
                s = dots[i, r] * DOT_STEP
                before = log
                z = squash((s - mean) / deviation)
                log = log_distance(s) - log_unit
                z_sum += z
                z_square += z * z
                log_sum += log
                log_square += log * log
                if r > 0:
                    raw[2 * k + r - 1] = log - before
            raw[r] = z  # beyond a short list its last entry is repeated
            raw[k + r] = log
        f = 3 * k - 1
        if n > 0:
            raw[f] = z_sum / n
            raw[f + 1] = math.sqrt(max(z_square / n - (z_sum / n) ** 2, 0.0))
            raw[f + 2] = log_sum / n
            raw[f + 3] = math.sqrt(max(log_square / n - (log_sum / n) ** 2, 0.0))
        raw[f + 4] = n / k
        raw[f + 5] = math.log(float(size[i]))
        members = _members(graph, i)
        tightness = math.sqrt(_dot(average[i], average[i]))
        raw[f + 6] = tightness
        if members > 1:
            raw[f + 7] = squash((_inner(members, tightness) - mean) / deviation)
        else:
            raw[f + 7] = raw[0]
        raw[f + 8] = 1.0 if is_base else 0.0
        raw[f + 9] = log_unit
        raw[f + 10] = dispersion
        raw[f + 11] = dispersion + 0.5 * math.log(float(average.shape[1]))
        if not is_base:
            node_evidence(raw, f + 12, i, graph.evidence, scale)
        _standardise(out[t], raw, ranges)


@njit(cache=True, nogil=True)
def _summary(row: Int32, n: int, mean: float, deviation: float, out: Float64) -> None:
    """Write the first, mean and last standardised similarity of a list to `out`, then the log-distances."""
    s_sum = 0.0
    for r in range(n):
        s_sum += row[r] * DOT_STEP
    first, middle, last = row[0] * DOT_STEP, s_sum / n, row[n - 1] * DOT_STEP
    out[0] = squash((first - mean) / deviation)
    out[1] = squash((middle - mean) / deviation)
    out[2] = squash((last - mean) / deviation)
    out[3] = log_distance(first)
    out[4] = log_distance(middle)
    out[5] = log_distance(last)


@njit(cache=True, nogil=True)
def _around(vector: Int16, average: Int16, out: Float64) -> None:
    """Write the norm of a node's average, and its similarity to the node's vector, to `out`."""
    out[0] = math.sqrt(_dot(average, average))
    out[1] = _dot(vector, average)


@njit(cache=True, nogil=True, inline="always")
def _reach(around: Float64) -> float:
    """Return the norm of the sum of a unit vector and its average; `around`: see `_around`."""
    return math.sqrt(max(1.0 + 2.0 * around[1] + around[0] * around[0], 0.0))


@njit(cache=True, nogil=True)
def _edge_kernel(
    out: Float32,
    sources: Int32,
    ranks: Int32,
    graph: _Graph,
    scale: _Scale,
    ranges: _Ranges,
    cache: _EdgeCache,
) -> None:
    k, neighbors, dots, degree = graph.k, graph.neighbors, graph.dots, graph.degree
    identity, average, is_base = graph.identity, graph.average, graph.is_base
    mean, deviation = scale.mean, scale.deviation
    raw = np.zeros(out.shape[1])
    keeps = cache.valid.shape[1] > 0
    near = (k + 1) // 2
    ends = np.zeros((2, 6))
    around = np.empty(2)  # of the source's average: its norm, and its similarity to the source
    log_unit = log_distance(mean)
    summed = np.int64(-1)
    kept, kept_around, kept_of = np.empty((KEPT, 6)), np.empty((KEPT, 2)), np.full(KEPT, -1)
    for t in range(sources.shape[0]):
        i, r = sources[t], ranks[t]
        if keeps and cache.valid[i, r]:
            out[t] = cache.features[i, r]
            continue
        j = neighbors[i, r]
        s = dots[i, r] * DOT_STEP
        z = squash((s - mean) / deviation)
        log = log_distance(s)
        back = k
        common = common_near = 0
        for b in range(degree[j]):
            node = neighbors[j, b]
            if node == i:
                back = b
            for a in range(degree[i]):
                if neighbors[i, a] == node:
                    common += 1
                    if a < near and b < near:
                        common_near += 1
        raw[0] = z
        raw[1] = log - log_unit
        raw[2] = r / k
        raw[3] = back / k
        raw[4] = 1.0 if back < k else 0.0
        raw[5] = common / k
        raw[6] = common_near / near
        if summed != i:  # edges come by source: its list is summed up once
            _summary(dots[i], degree[i], mean, deviation, ends[0])
            _around(identity[i], average[i], around)
            summed = i
        slot = j % KEPT
        if kept_of[slot] != j:
            if degree[j] > 0:
                _summary(dots[j], degree[j], mean, deviation, kept[slot])
            _around(identity[j], average[j], kept_around[slot])
            kept_of[slot] = j
        if degree[j] > 0:
            ends[1, :] = kept[slot]
        else:
            ends[1, :3] = z
            ends[1, 3:] = log
        for e in range(2):
            for c in range(3):
                raw[7 + 6 * e + c] = z - ends[e, c]
                raw[10 + 6 * e + c] = log - ends[e, 3 + c]
        cross, back_cross = _dot(identity[i], average[j]), _dot(average[i], identity[j])
        both = _dot(average[i], average[j])
        tight_i, tight_j = around[0], kept_around[slot, 0]
        raw[19] = squash((cross - mean) / deviation)
        raw[20] = squash((back_cross - mean) / deviation)
        raw[21] = squash((both - mean) / deviation)
        raw[22] = log_distance(cross / max(tight_j, FLOOR)) - log_unit
        raw[23] = log_distance(back_cross / max(tight_i, FLOOR)) - log_unit
        raw[24] = log_distance(both / max(tight_i * tight_j, FLOOR)) - log_unit
        raw[25] = raw[26] = 0.0
        members_i, members_j = _members(graph, i), _members(graph, j)
        if members_i > 1:
            raw[25] = raw[21] - squash((_inner(members_i, tight_i) - mean) / deviation)
        if members_j > 1:
            raw[26] = raw[21] - squash((_inner(members_j, tight_j) - mean) / deviation)
        if is_base:
            reach = _reach(around) * _reach(kept_around[slot])
            raw[27] = log_distance((s + cross + back_cross + both) / max(reach, FLOOR)) - log_unit
        else:
            edge_evidence(raw, 27, i, j, s, graph, scale)
        _standardise(out[t], raw, ranges)
        if keeps:
            cache.features[i, r] = out[t]
            cache.valid[i, r] = True


def node_features(graph: KnnGraph, epoch: Epoch, rows: Int32, ranges: Ranges, out: Float32) -> None:
    """Write the features of the nodes `rows` (m,) to `out`, (m, F) float32."""
    _node_kernel(out, rows, _graph(graph), _scale(epoch), _ranges(ranges))


def edge_features(
    graph: KnnGraph,
    epoch: Epoch,
    sources: Int32,
    ranks: Int32,
    ranges: Ranges,
    out: Float32,
    cache: Cache | None = None,
) -> None:
    """Write the features of the edges from `sources` to their neighbours at `ranks`, (e,) each.

    `out` is (e, G) float32, see `edge_feature_names`. Fastest with edges of one source side by side. Features
    in `cache` must be of these ranges.
    """
    edges = _EdgeCache(cache.edges, cache.edge_valid) if cache else _NO_CACHE
    _edge_kernel(out, sources, ranks, _graph(graph), _scale(epoch), _ranges(ranges), edges)


def _graph(graph: KnnGraph) -> _Graph:
    own = graph.degree, graph.size, graph.identity, graph.mean, graph.is_base
    return _Graph(graph.k, graph.neighbors, graph.dots, *own, graph.evidence or _NO_EVIDENCE)


def _scale(epoch: Epoch) -> _Scale:
    return _Scale(epoch.mean, max(epoch.deviation, MIN_DEVIATION))


def _ranges(ranges: Ranges) -> _Ranges:
    return _Ranges(ranges.low, ranges.high, ranges.center, ranges.scale)


def raw_features(graph: KnnGraph, epoch: Epoch, sources: Int32, ranks: Int32) -> tuple[Float32, Float32]:
    """Return the features of all nodes (n, F) and some edges (e, G) float32, neither clipped nor scaled."""
    rows = np.arange(len(graph.degree), dtype=np.int32)
    of_node, of_edge = len(node_feature_names(graph.k, graph.is_base)), len(edge_feature_names(graph.is_base))
    x = np.empty((len(rows), of_node), dtype=np.float32)
    e = np.empty((len(sources), of_edge), dtype=np.float32)
    node_features(graph, epoch, rows, Ranges.none(of_node), x)
    edge_features(graph, epoch, sources, ranks, Ranges.none(of_edge), e)
    return x, e


@njit(cache=True, nogil=True)
def _list_edges(rows: Int32, degree: Int32, sources: Int32, ranks: Int32) -> None:
    t = 0
    for row in rows:
        for r in range(degree[row]):
            sources[t] = row
            ranks[t] = r
            t += 1


def list_edges(graph: KnnGraph, rows: Int32) -> tuple[Int32, Int32]:
    """Return sources and ranks, (e,) int32 each, of all edges of `rows`: by row, then by rank."""
    edges = int(graph.degree[rows].sum())
    sources, ranks = np.empty(edges, dtype=np.int32), np.empty(edges, dtype=np.int32)
    _list_edges(rows, graph.degree, sources, ranks)
    return sources, ranks


@njit(cache=True, nogil=True)
def mark_missing(nodes: Int32, marked: Bool) -> Int32:
    """Return the nodes that are not marked, once each, and mark them."""
    missing = np.empty(len(nodes), np.int32)
    count = 0
    for node in nodes:
        if not marked[node]:
            marked[node] = True
            missing[count] = node
            count += 1
    return missing[:count]
