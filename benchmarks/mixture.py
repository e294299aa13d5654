"""The generated collection of the speed benchmarks: clusters of 50 items around random directions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PER_CLUSTER = 50
SPREAD = 0.5  # of an item's noise, against the length of its centre; at 0.9 most items stay alone


def mixture(items: int, dim: int, seed: int, spread: float = SPREAD) -> NDArray[np.float32]:
    """Shuffled rows (items, dim); an item's noise has `spread` times the length of its centre."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, items // PER_CLUSTER), dim), dtype=np.float32)
    labels = rng.permutation(np.arange(items) % len(centres))
    rows: NDArray[np.float32] = rng.standard_normal((items, dim), dtype=np.float32)
    rows *= np.float32(spread)
    rows += centres[labels]
    return rows
