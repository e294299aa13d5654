"""Finds ids among rising ones."""

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
