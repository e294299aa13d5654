"""From rows to a batch: vectors checked and put on the grid, and of each key only the last record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from connectors.files.records import Array, Rows
from engine.config import MAX_DIM
from engine.types import Batch, Int16
from engine.vectors import quantize


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that cannot be used. `place`: "row 7" counts from 0, "line 8" from 1."""

    source: str
    place: str
    reason: str
    number: int  # of the row, from 0

    def __str__(self) -> str:
        return f"{self.source}, {self.place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Chunk:
    """What came of the next rows of a source."""

    batch: Batch
    rejects: Sequence[Reject]
    rows: int  # rows read, rejected ones included
    dim: int | None  # of the vectors, known from the first valid one on


@dataclass(frozen=True, slots=True)
class Origin:
    """How a source is called in positions and in rejects."""

    name: str  # in positions
    shown: str  # in rejects
    unit: str = "row"
    first: int = 0  # number of the first row for people


def next_row(position: bytes | None) -> int:
    """The row a stored position points at; 0 without one."""
    return int.from_bytes(position, "big") if position else 0


def to_chunk(rows: Rows, dim: int | None, origin: Origin) -> Chunk:
    """Check the vectors, collect what is rejected, and leave the net effect of the rest."""
    grid, kept, wrong, dim = _on_grid(rows.vectors, dim)
    refused = [*rows.rejected, *((rows.numbers[i], reason) for i, reason in wrong.items())]
    rejects = [
        Reject(origin.shown, f"{origin.unit} {number + origin.first}", reason, number)
        for number, reason in sorted(refused)
    ]
    return Chunk(_net_effect(rows, grid, kept, origin), rejects, rows.end - rows.first, dim)


def _net_effect(rows: Rows, grid: Int16, kept: Sequence[int], origin: Origin) -> Batch:
    """Of several records of a key the last one counts. `kept`: the rows that `grid` has."""
    last: dict[bytes, int] = {rows.keys[i]: rows.numbers[i] for i in kept}
    for number, key in rows.deletes:
        last[key] = max(number, last.get(key, -1))
    chosen = [place for place, i in enumerate(kept) if last[rows.keys[i]] == rows.numbers[i]]
    picked = [kept[place] for place in chosen]
    return Batch(
        keys=[rows.keys[i] for i in picked],
        vectors=grid[chosen],
        times=np.array([rows.times[i] for i in picked], np.int64),
        payloads=[rows.payloads[i] for i in picked],
        deletes=[key for number, key in rows.deletes if last[key] == number],
        positions={origin.name: rows.end.to_bytes(8, "big")},
    )


def _on_grid(
    vectors: Array | list[Array], dim: int | None
) -> tuple[Int16, list[int], dict[int, str], int | None]:
    """Valid vectors on the grid, which rows they are, the reasons of the others, and the dimension."""
    lengths = np.fromiter(map(len, vectors), np.int64, len(vectors))
    if dim is None:
        dim = next((len(v) for v in vectors if 1 <= len(v) <= MAX_DIM and not quantize([v])[1]), None)
    fits = np.flatnonzero(lengths == dim)
    wrong = {
        int(i): f"the embedding has {lengths[i]} dimensions, not the {dim or f'1 to {MAX_DIM}'} expected"
        for i in np.flatnonzero(lengths != dim)
    }
    if not len(fits):
        return np.zeros((0, dim or 1), np.int16), [], wrong, dim
    rows = vectors[fits] if isinstance(vectors, np.ndarray) else np.stack([vectors[i] for i in fits])
    grid, reasons = quantize(rows)
    wrong |= {int(fits[i]): reason for i, reason in reasons.items()}
    good = np.array([i for i in range(len(fits)) if i not in reasons], np.int64)
    return grid[good], fits[good].tolist(), wrong, dim
