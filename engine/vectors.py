"""The one representation of a vector: int16 on a grid of 2^-14, and exact arithmetic on it.

Float products are not a function of the pair (they change with blocking and order), so incremental
and from-scratch results could differ. On the grid a dot product is an integer that fits int32, a
sum of vectors an integer that fits int64, and both are the same whatever the order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray

from engine.records import NOT_FINITE, ZERO
from engine.types import Float32, Int16, UInt64

SCALE = 2**14  # grid steps per unit
DOT_SCALE = 2**28  # a dot's steps per unit of similarity
DOT_STEP = 1.0 / DOT_SCALE
MODERATE = 2.0**-10, 2.0**20  # largest components of vectors that float32 takes as they come
HASH_SEED = 0x5110A1  # keys the hash that breaks ties: the order of equal similarities depends on it

_FINE, _NOT_FINITE, _ZERO = 0, 1, 2
_REASONS = {_NOT_FINITE: NOT_FINITE, _ZERO: ZERO}


def quantize(embeddings: ArrayLike) -> tuple[Int16, dict[int, str]]:
    """Scale to unit length in float64 and round to the grid.

    `embeddings`: (n, d) of any float type. Returns the grid vectors (n, d) int16 and, for each
    row that cannot be used (NaN, infinity, zero), the reason; such rows are all zero.
    """
    rows = np.ascontiguousarray(embeddings, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"embeddings must have the shape (n, d), not {rows.shape}")
    grid = np.zeros(rows.shape, np.int16)
    status = np.zeros(len(rows), np.int8)
    _quantize(rows, grid, status)
    bad = np.flatnonzero(status)
    return grid, {int(row): _REASONS[int(status[row])] for row in bad}


@njit(cache=True, parallel=True, nogil=True)
def _quantize(rows: Any, grid: Any, status: Any) -> None:
    n, d = rows.shape
    for i in prange(n):
        largest = 0.0
        finite = True
        for c in range(d):
            finite = finite and np.isfinite(rows[i, c])
            largest = max(largest, abs(rows[i, c]))
        if not finite:
            status[i] = _NOT_FINITE
        elif largest == 0.0:
            status[i] = _ZERO
        else:
            # Dividing by the largest component first: no square can overflow or vanish.
            total = 0.0
            for c in range(d):
                total += (rows[i, c] / largest) ** 2
            norm = np.sqrt(total)
            for c in range(d):
                grid[i, c] = np.int16(np.rint(rows[i, c] / largest / norm * SCALE))


def moderate(embeddings: NDArray[Any]) -> NDArray[Any]:
    """Return vectors (n, d), with those of extreme length, which float32 loses, scaled to unit length.

    Rows of zeros, and those with NaN or infinity, stay as they are.
    """
    largest = np.maximum(embeddings.max(axis=1, initial=0.0), -embeddings.min(axis=1, initial=0.0))
    extreme = (largest > 0) & np.isfinite(largest) & ((largest < MODERATE[0]) | (largest > MODERATE[1]))
    if not extreme.any():
        return embeddings
    scaled = embeddings[extreme].astype(np.float64) / largest[extreme, None]
    out = embeddings.astype(np.result_type(embeddings, np.float32))
    out[extreme] = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    return out


def hash_vectors(grid: Int16, attempt: int = 0) -> UInt64:
    """Return a keyed 64-bit hash (XXH3) of each vector, (n,) uint64; `grid`: (n, d).

    It breaks the ties of every order. `attempt` 1, 2, ... give further, independent hashes.
    """
    digest, width, seed = xxhash.xxh3_64_intdigest, grid.shape[1] * grid.itemsize, HASH_SEED + attempt
    raw = np.ascontiguousarray(grid, "<i2").tobytes()
    rows = (digest(raw[at * width : (at + 1) * width], seed) for at in range(len(grid)))
    return np.fromiter(rows, np.uint64, len(grid))


def as_float(grid: Int16) -> Float32:
    """Convert grid vectors to float32 of about unit length; the conversion is exact."""
    return grid.astype(np.float32) * np.float32(1 / SCALE)


@njit(cache=True, nogil=True, inline="always")
def dot(x: Any, y: Any) -> Any:
    """Return the exact dot of two grid vectors, int32."""
    total = np.int32(0)
    for c in range(x.shape[0]):
        total = np.int32(total + np.int32(np.int32(x[c]) * np.int32(y[c])))
    return total


@njit(cache=True, parallel=True, nogil=True)
def dots(vectors: Any, sources: Any, targets: Any) -> Any:
    """Return the exact dots of the pairs (vectors[sources[t]], vectors[targets[t]]), int32 (t,)."""
    out = np.empty(len(sources), np.int32)
    for t in prange(len(sources)):
        out[t] = dot(vectors[sources[t]], vectors[targets[t]])
    return out


@njit(cache=True, nogil=True)
def row_dots(vectors: Any, rows: Any, x: Any) -> Any:
    """Return the exact dots of a vector with some rows, int32 (t,); on one thread, for small calls."""
    out = np.empty(len(rows), np.int32)
    for t in range(len(rows)):
        out[t] = dot(vectors[rows[t]], x)
    return out


@njit(cache=True, nogil=True, inline="always")
def rounded_mean(total: Any, size: Any) -> Any:
    """Return total / size of a component, rounded half up to the grid."""
    return np.int16((2 * total + size) // (2 * size))


@njit(cache=True, nogil=True)
def round_means(sums: Any, sizes: Any, out: Any) -> None:
    """Set out[i] = sums[i] / sizes[i], rounded half up to the grid."""
    for i in range(len(sizes)):
        for c in range(sums.shape[1]):
            out[i, c] = rounded_mean(sums[i, c], sizes[i])
