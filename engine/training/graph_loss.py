"""Terms of the losses on training graphs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.types import Float32


def density(p: Tensor, similarity: Tensor, heads: Tensor, degrees: Tensor) -> Tensor:
    """Return d_i = mean over N(i) of s_ij (2 p_ij - 1); `degrees` are at least 1."""
    return torch.zeros(len(degrees)).index_add(0, heads, similarity * (2 * p - 1)) / degrees


def importance(smaller: Float32, edges: Sequence[int], power: float) -> Float32:
    """Return the weight (e,) of each edge of a batch; `edges`: the number of edges of each of its graphs.

    `smaller` (e,): the items at an edge's smaller end: a wrong link moves that many. The weight is
    proportional to `smaller`**`power`; the weights of a graph sum to the root of its number of edges.
    """
    weight = smaller**power
    for part in np.split(weight, np.cumsum(edges)[:-1]):  # views
        part *= len(part) ** 0.5 / max(part.sum(), 1e-9)
    return weight.astype(np.float32)
