"""Replay pools of training examples."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

T = TypeVar("T")


def keep(pool: list[T], example: T, most: int, rng: np.random.Generator) -> None:
    """Add an example to a pool; a full pool, of `most`, loses a random one."""
    if len(pool) < most:
        pool.append(example)
    else:
        pool[rng.integers(most)] = example
