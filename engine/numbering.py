"""Finds ids among rising ones, and numbers values as they occur."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.types import Bool, Int64


def find(rising: NDArray[Any], wanted: NDArray[Any]) -> tuple[Int64, Bool]:
    """Return places in `rising`, in the shape of `wanted`, and whether each is there.

    The place of one that is not there is some place, or 0 where there is none at all.
    """
    at = np.minimum(np.searchsorted(rising, wanted), max(len(rising) - 1, 0))
    return at, rising[at] == wanted if len(rising) else np.zeros(at.shape, np.bool_)


def by_occurrence(values: NDArray[Any]) -> tuple[Int64, Int64]:
    """Return the rows at which distinct values (n,) or vectors (n, d) occur first, which rise, and the number
    of each row's (n,): its place among those.
    """
    _, first, which = np.unique(values, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    return first[order], number[which.ravel()]
