"""A scripted source: records in memory, delivered as a stream would be, with an injected clock.

Delivery: as of a file, every record exactly once with a store that commits positions with state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from connectors.files.chunks import Chunk, Origin, next_row, to_chunk
from connectors.files.records import Rows, Unusable, checked_key, checked_payload
from engine.config import BoundsSettings
from engine.types import Float64


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the script; without an embedding it deletes its key."""

    key: str
    embedding: Sequence[float] | Float64 | None
    payload: Any = None
    time_ms: int | None = None  # None: when it is delivered


class MemorySource:
    """`records` in batches of at most `size`. `clock` gives seconds since 1970."""

    def __init__(
        self,
        name: str,
        records: Sequence[Record],
        size: int,
        bounds: BoundsSettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name, self.total = name, len(records)
        self._records, self._size, self._clock = records, size, clock
        self._bounds = bounds or BoundsSettings()

    def next_row(self, position: bytes | None) -> int:
        """The record a stored position points at; 0 without one."""
        return next_row(position)

    def chunks(self, position: bytes | None = None, dim: int | None = None) -> Iterator[Chunk]:
        """From a stored position to the end. `dim`: the collection's, None: the first valid vector's."""
        for first in range(next_row(position), self.total, self._size):
            rows = Rows(first, min(first + self._size, self.total))
            for number in range(first, rows.end):
                self._take(number, self._records[number], rows)
            chunk = to_chunk(rows, dim, Origin(self.name, self.name))
            dim = chunk.dim
            yield chunk

    def _take(self, number: int, record: Record, rows: Rows) -> None:
        try:
            key = checked_key(record.key, self._bounds)
            payload = checked_payload(record.payload, self._bounds)
        except Unusable as problem:
            rows.rejected.append((number, str(problem)))
            return
        if record.embedding is None:
            rows.deletes.append((number, key))
            return
        now_ms = int(self._clock() * 1000)
        rows.numbers.append(number)
        rows.keys.append(key)
        rows.add_vector(np.asarray(record.embedding, np.float64))
        rows.times.append(now_ms if record.time_ms is None else record.time_ms)
        rows.payloads.append(payload)
