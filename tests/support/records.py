"""Records as clients of the HTTP API send them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from engine import submissions
from engine.daemon.control import Control
from engine.records import Record
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


def submit(
    control: Control,
    keys: Sequence[str],
    vectors: Sequence[Any],
    times: Sequence[int] | None = None,
    deletes: Sequence[str] = (),
) -> dict[str, Any]:
    """Upserts, then deletes, through the socket of a writer with the HTTP source."""
    rows = zip(keys, vectors, times or [None] * len(keys), strict=True)
    records = [Record(key.encode(), np.asarray(vector, np.float64), time_ms) for key, vector, time_ms in rows]
    body, blob = submissions.pack([*records, *(Record(key.encode(), None) for key in deletes)])
    return control.call("submit", body, blob=blob)
