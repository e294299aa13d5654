"""Kernels of `engine.model.lander`, without fast-math: the bits of a row do not depend on other rows."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from engine.types import Float32, Int16, Int32
from engine.vectors import DOT_STEP, SCALE

STEP = np.float32(1.0 / SCALE)  # the grid's
LEAK = 0.2  # slope of the attention's leaky ReLU below 0


class Lists(NamedTuple):
    """The columns of a `KnnGraph` that the convolutions read."""

    neighbors: Int32  # (n, width)
    dots: Int32
    degree: Int32  # (n,)


@njit(cache=True, nogil=True)
def put_vectors(x: Float32, first: int, vectors: Int16, rows: Int32) -> None:
    """Set x[t, first:] to the grid vector of rows[t], as floats."""
    for t in range(rows.shape[0]):
        for c in range(vectors.shape[1]):
            x[t, first + c] = vectors[rows[t], c] * STEP


@njit(cache=True, nogil=True)
def mean_affinity(out: Float32, rows: Int32, lists: Lists, products: Float32) -> None:
    """Set out[t] = relu(U x_i + sum_j a_ij V x_j) for i = rows[t]; `products` holds U x | V x by row.

    Without a neighbour of positive similarity the sum is 0.
    """
    neighbors, dots, degree = lists.neighbors, lists.dots, lists.degree
    width = out.shape[1]
    for t in range(rows.shape[0]):
        i = rows[t]
        total = 0.0
        for r in range(degree[i]):
            total += max(dots[i, r], 0) * DOT_STEP
        for c in range(width):
            out[t, c] = products[i, c]
        for r in range(degree[i]):
            if dots[i, r] > 0:
                j, a = neighbors[i, r], np.float32(dots[i, r] * DOT_STEP / total)
                for c in range(width):
                    out[t, c] += a * products[j, width + c]
        for c in range(width):
            out[t, c] = max(out[t, c], np.float32(0.0))


@njit(cache=True, nogil=True)
def attention(out: Float32, rows: Int32, lists: Lists, products: Float32, bias: Float32) -> None:
    """Set out[t] = relu(mean over heads of (sum_j c_ij W x_j + bias)) for i = rows[t].

    `products` holds W x of all heads, then l W x and r W x of each, by row; `bias` is (heads, hidden).
    """
    neighbors, degree = lists.neighbors, lists.degree
    heads, width = bias.shape
    scores = np.zeros(neighbors.shape[1])
    left = heads * width
    right = left + heads
    for t in range(rows.shape[0]):
        i = rows[t]
        out[t, :] = np.float32(0.0)
        for head in range(heads):
            most = -np.inf
            for r in range(degree[i]):
                score = float(products[neighbors[i, r], left + head]) + float(products[i, right + head])
                scores[r] = score if score > 0.0 else LEAK * score
                most = max(most, scores[r])
            total = 0.0
            for r in range(degree[i]):
                scores[r] = math.exp(scores[r] - most)
                total += scores[r]
            for c in range(width):
                out[t, c] += bias[head, c]
            for r in range(degree[i]):
                j, share = neighbors[i, r], np.float32(scores[r] / total)
                for c in range(width):
                    out[t, c] += share * products[j, head * width + c]
        for c in range(width):
            out[t, c] = max(out[t, c] / np.float32(heads), np.float32(0.0))


@njit(cache=True, nogil=True)
def add_ends(out: Float32, ends: Float32, heads: Int32, tails: Int32, slopes: Float32) -> None:
    """out[t] = prelu(a + b): a, the first half of the row heads[t] of `ends`; b, the second of tails[t]."""
    width = out.shape[1]
    for t in range(heads.shape[0]):
        i, j = heads[t], tails[t]
        for c in range(width):
            q = ends[i, c] + ends[j, width + c]
            out[t, c] = q if q > 0 else q * slopes[c]


@njit(cache=True, nogil=True)
def prelu(x: Float32, slopes: Float32) -> None:
    """Apply prelu to x in place: each column has its slope below 0."""
    for t in range(x.shape[0]):
        for c in range(x.shape[1]):
            if x[t, c] < 0:
                x[t, c] *= slopes[c]
