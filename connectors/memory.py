"""A scripted source: records in memory, delivered as a stream would be, with an injected clock.

Delivery: as of a file, every record exactly once with a store that commits positions with state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from connectors.chunks import Chunk, Remark
from engine.config import LimitsSettings
from engine.errors import Unusable
from engine.records import Parser
from engine.rows import Rows
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
        limits: LimitsSettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name, self.total = name, len(records)
        self._records, self._size, self._clock = records, size, clock
        self._parser = Parser(limits or LimitsSettings())

    def chunks(self, position: bytes | None = None, dim: int | None = None) -> Iterator[Chunk]:
        """Yield chunks from a stored position on. `dim` None: that of most of the first chunk's vectors."""
        for first in range(int.from_bytes(position or b"", "big"), self.total, self._size):
            end = min(first + self._size, self.total)
            rows = Rows(self._parser.limits, int(self._clock() * 1000))
            for number in range(first, end):
                self._take(number, self._records[number], rows)
            settled = rows.settle(dim)
            dim = settled.dim
            batch = replace(settled.batch, positions={self.name: end.to_bytes(8, "big")})
            rejects, doubts = (
                [Remark(self.name, f"row {number}", reason) for number, reason in remarks]
                for remarks in (settled.rejected, settled.doubts)
            )
            yield Chunk(batch, rejects, doubts, end - first, settled.superseded, dim)

    def _take(self, number: int, record: Record, rows: Rows) -> None:
        values = {"key": record.key, "payload": record.payload, "time": record.time_ms}
        gone = {"delete": True} if record.embedding is None else {"embedding": record.embedding}
        try:
            rows.add(number, self._parser.of(values | gone))
        except Unusable as problem:
            rows.refuse(number, str(problem))
