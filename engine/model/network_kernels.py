"""Kernels between the products of `engine.model.network`: what an edge adds up from its two ends."""

from __future__ import annotations

import numpy as np
from numba import njit

from engine.types import Float32, Int32


@njit(cache=True, nogil=True)
def add_ends(out: Float32, ends: Float32, heads: Int32, tails: Int32) -> None:
    """out[t] = relu((out[t] + a) + b): a, the first half of the row `heads[t]` of `ends`; b, the second half
    of the row `tails[t]`.
    """
    width = out.shape[1]
    for t in range(heads.shape[0]):
        i, j = heads[t], tails[t]
        for c in range(width):
            out[t, c] = max((out[t, c] + ends[i, c]) + ends[j, width + c], np.float32(0.0))


@njit(cache=True, nogil=True)
def add_messages(
    sums: Float32, products: Float32, near: Float32, far: Float32, heads: Int32, tails: Int32
) -> None:
    """sums[heads[t]] += relu((products[t] + a) + b): a, the first columns of the row `heads[t]` of `near`; b,
    the row `tails[t]` of `far`.
    """
    for t in range(heads.shape[0]):
        i, j = heads[t], tails[t]
        for c in range(products.shape[1]):
            sums[i, c] += max((products[t, c] + near[i, c]) + far[j, c], np.float32(0.0))
