"""A file as a source of batches: .npz, .npy, .parquet, .jsonl.

Delivery: each batch carries the file's next position; a store that commits both together takes every
record exactly once, however often it is interrupted. The source's name is the SHA-256 of the file's
content and the position the next row, so a finished file changes nothing when it comes again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from connectors.jsonl import JsonLinesReader
from connectors.npz import NumpyReader
from connectors.parquet import ParquetReader
from connectors.records import CHUNK_BYTES, Array, Reader, Rows
from engine.config import BoundsSettings
from engine.errors import InputError
from engine.types import Batch, Int16
from engine.vectors import quantize

READERS: dict[str, Callable[[Path, BoundsSettings], Reader]] = {
    ".npz": NumpyReader,
    ".npy": NumpyReader,
    ".parquet": ParquetReader,
    ".jsonl": JsonLinesReader,
}


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that cannot be used. `place`: "row 7" counts from 0, "line 8" from 1."""

    file: str
    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, {self.place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Chunk:
    """What came of the next rows of the file."""

    batch: Batch
    rejects: Sequence[Reject]
    rows: int  # rows read, rejected ones included


class FileSource:
    """One file, read in batches of at most `size` rows.

    `strict`: raise `InputError` at the first record that cannot be used, without its chunk.
    Raises `InputError` where the file as a whole cannot be used.
    """

    def __init__(self, path: Path, size: int, bounds: BoundsSettings, strict: bool = False) -> None:
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise InputError(f"{path} must be one of {', '.join(READERS)}.")
        try:
            self.name = f"file:{_sha256(path)}"
            self._reader = reader(path, bounds)
        except OSError as problem:
            raise InputError(f"{path} cannot be read: {problem.strerror or problem}.") from None
        self.path, self.total = path, self._reader.total
        self._size, self._strict = size, strict
        self._unit, self._from = ("line", 1) if path.suffix.lower() == ".jsonl" else ("row", 0)

    def next_row(self, position: bytes | None) -> int:
        """The row a stored position points at; 0 without one."""
        return int.from_bytes(position, "big") if position else 0

    def chunks(self, position: bytes | None = None, dim: int | None = None) -> Iterator[Chunk]:
        """From a stored position to the end. `dim`: the collection's, None: the first valid vector's."""
        for rows in self._reader.rows(self.next_row(position), self._size):
            grid, kept, wrong, dim = _on_grid(rows.vectors, dim)
            refused = [*rows.rejected, *((rows.numbers[i], reason) for i, reason in wrong.items())]
            rejects = [
                Reject(self.path.name, f"{self._unit} {number + self._from}", reason)
                for number, reason in sorted(refused)
            ]
            if rejects and self._strict:
                raise InputError(f"{rejects[0]} (stopped there: --strict).")
            yield Chunk(self._batch(rows, grid, kept), rejects, rows.end - rows.first)

    def _batch(self, rows: Rows, grid: Int16, kept: Sequence[int]) -> Batch:
        """The net effect: of several records of a key the last one counts."""
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
            positions={self.name: rows.end.to_bytes(8, "big")},
        )


def _on_grid(
    vectors: Array | list[Array], dim: int | None
) -> tuple[Int16, list[int], dict[int, str], int | None]:
    """Valid vectors on the grid, which they are, the reasons of the others, and the dimension."""
    lengths = np.fromiter(map(len, vectors), np.int64, len(vectors))
    if dim is None:
        dim = next((len(v) for v in vectors if len(v) and not quantize([v])[1]), None)
    fits = np.flatnonzero(lengths == dim)
    wrong = {
        int(i): f"the embedding has {lengths[i]} dimensions, not the {dim or 'one or more'} expected"
        for i in np.flatnonzero(lengths != dim)
    }
    if not len(fits):
        return np.zeros((0, dim or 1), np.int16), [], wrong, dim
    rows = vectors[fits] if isinstance(vectors, np.ndarray) else np.stack([vectors[i] for i in fits])
    grid, reasons = quantize(rows)
    wrong |= {int(fits[i]): reason for i, reason in reasons.items()}
    good = np.array([i for i in range(len(fits)) if i not in reasons], np.int64)
    return grid[good], fits[good].tolist(), wrong, dim


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()
