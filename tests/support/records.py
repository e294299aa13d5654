"""Records as clients of the HTTP API send them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from engine.types import Float64

DIM = 8
NDJSON = {"content-type": "application/x-ndjson"}


def blobs(seed: int, count: int, dim: int = DIM, centers: int = 6) -> Float64:
    """(count, dim) vectors around six random centres."""
    rng = np.random.default_rng(seed)
    middles = rng.normal(size=(centers, dim))
    return middles[rng.integers(0, centers, count)] + 0.15 * rng.normal(size=(count, dim))


def lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """NDJSON."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
