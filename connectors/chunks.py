"""The result of reading some records: a batch, rejects and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.types import Batch


@dataclass(frozen=True, slots=True)
class Remark:
    """A sentence about one record. `place`: "row 7" counts from 0, "line 8" from 1."""

    source: str
    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source}, {self.place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Chunk:
    """The result of reading the next records of a source."""

    batch: Batch
    rejects: Sequence[Remark]
    doubts: Sequence[Remark]  # on records that were taken
    rows: int  # read, rejected and blank ones included
    superseded: int  # records that a later one of the same key replaced
    dim: int | None  # of the vectors, None: not known yet
    blank: int = 0  # of the rows
