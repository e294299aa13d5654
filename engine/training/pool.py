"""Pools of training examples that are drawn from again and again."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

T = TypeVar("T")


def keep(pool: list[T], example: T, most: int, rng: np.random.Generator) -> None:
    """Put an example into a pool, in the place of a random one where it holds `most` already."""
    if len(pool) < most:
        pool.append(example)
    else:
        pool[rng.integers(most)] = example
