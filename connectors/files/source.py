"""A file as a source of batches: .npz, .npy, .parquet, .jsonl.

Delivery: each batch carries the file's next position; a store that commits both together takes every
record exactly once, however often it is interrupted. The source's name is the SHA-256 of the file's
content and the position the next row, so a finished file changes nothing when it comes again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from connectors.files.chunks import Chunk, Origin, next_row, to_chunk
from connectors.files.jsonl import JsonLinesReader
from connectors.files.npz import NumpyReader
from connectors.files.parquet import ParquetReader
from connectors.files.records import CHUNK_BYTES, Reader
from engine.config import BoundsSettings
from engine.errors import InputError

READERS: dict[str, Callable[[Path, BoundsSettings], Reader]] = {
    ".npz": NumpyReader,
    ".npy": NumpyReader,
    ".parquet": ParquetReader,
    ".jsonl": JsonLinesReader,
}


class FileSource:
    """One file, read in batches of at most `size` rows.

    `strict`: raise `InputError` at the first record that cannot be used, without its chunk.
    Raises `InputError` where the file as a whole cannot be used.
    """

    def __init__(self, path: Path, size: int, bounds: BoundsSettings, strict: bool = False) -> None:
        suffix = path.suffix.lower()
        if suffix not in READERS:
            raise InputError(f"{path} must be one of {', '.join(READERS)}.")
        try:
            self.name = f"file:{_sha256(path)}"
            self._reader = READERS[suffix](path, bounds)
        except OSError as problem:
            raise InputError(f"{path} cannot be read: {problem.strerror or problem}.") from None
        self.path, self.total = path, self._reader.total
        self._size, self._strict = size, strict
        unit, first = ("line", 1) if suffix == ".jsonl" else ("row", 0)
        self._origin = Origin(self.name, path.name, unit, first)

    def next_row(self, position: bytes | None) -> int:
        """The row a stored position points at; 0 without one."""
        return next_row(position)

    def chunks(self, position: bytes | None = None, dim: int | None = None) -> Iterator[Chunk]:
        """From a stored position to the end. `dim`: the collection's, None: the first valid vector's."""
        for rows in self._reader.rows(next_row(position), self._size):
            chunk = to_chunk(rows, dim, self._origin)
            if chunk.rejects and self._strict:
                raise InputError(f"{chunk.rejects[0]} (stopped there: --strict).")
            dim = chunk.dim
            yield chunk


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()
