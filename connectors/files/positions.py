"""Stored read positions of files, and file identity by content or path.

A finished or interrupted file is known by the SHA-256 of its content (`file:<digest>`), a followed one by its
path and the bytes before its position (`follow:<path>`). Keys made of a file's name are the file's own: the
store remembers whose they are (`keys:<stem>`).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from connectors.files.reading import CHUNK_BYTES

TAIL_BYTES = 2**16  # before a position, by which a followed file is known again
NAME_BYTES = 400  # of a position's name; the store takes 511
_FORMAT = struct.Struct(">QQQQ")
_DIGEST_BYTES = 32  # as many as _FORMAT has


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a file is read."""

    row: int = 0  # the next one
    offset: int = 0  # its first byte; 0: not known
    size: int = 0  # of the file, when its digest was taken
    rejected: int = 0  # of the rows so far
    tail: bytes = b""  # digest of the bytes before `offset`, of a followed file
    blank: int = 0  # of the rows so far

    def dump(self) -> bytes:
        return (
            _FORMAT.pack(self.row, self.offset, self.size, self.rejected)
            + self.tail
            + (self.blank.to_bytes(8, "big") if self.blank else b"")
        )

    @classmethod
    def load(cls, raw: bytes | None) -> Mark:
        """Earlier releases kept the row alone."""
        if not raw:
            return cls()
        if len(raw) < _FORMAT.size:
            return cls(int.from_bytes(raw, "big"))
        row, offset, size, rejected = _FORMAT.unpack_from(raw)
        tail = raw[_FORMAT.size : len(raw) // _DIGEST_BYTES * _DIGEST_BYTES]
        return cls(row, offset, size, rejected, tail, int.from_bytes(raw[_FORMAT.size + len(tail) :], "big"))


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prefix of a file that was read before as a whole file. `cut`: it ends in the middle of a line."""

    mark: Mark
    cut: bool
    breaks: bool  # it ends with a line break


def digest_of(path: Path, positions: Mapping[str, bytes], appendable: bool) -> tuple[str, Prefix | None]:
    """Return a file's SHA-256 in hex and, if `appendable`, the longest beginning that the positions know."""
    known = {Mark.load(raw).size: "" for name, raw in positions.items() if name.startswith("file:")}
    sizes = sorted(size for size in known if appendable and 0 < size < path.stat().st_size)
    digest, at, last = hashlib.sha256(), 0, b""
    found: Prefix | None = None
    with path.open("rb") as stream:
        for piece in _pieces(stream, sizes):
            if at in sizes and (raw := positions.get(f"file:{digest.hexdigest()}")):
                found = Prefix(Mark.load(raw), b"\n" not in (last, piece[:1]), last == b"\n")
            digest.update(piece)
            at += len(piece)
            last = piece[-1:]
    return digest.hexdigest(), found


def _pieces(stream: BinaryIO, sizes: list[int]) -> Iterator[bytes]:
    """Yield the bytes of a file in pieces, none of which crosses one of the rising `sizes`."""
    at, ends = 0, [*sizes]
    while piece := stream.read(min(CHUNK_BYTES, ends[0] - at) if ends else CHUNK_BYTES):
        at += len(piece)
        if ends and at == ends[0]:
            del ends[0]
        yield piece


def tail_digest(path: Path, offset: int) -> bytes:
    """Return the SHA-256 of the bytes before an offset; of fewer bytes if the file is shorter."""
    with path.open("rb") as stream:
        stream.seek(max(0, offset - TAIL_BYTES))
        return hashlib.sha256(stream.read(min(offset, TAIL_BYTES))).digest()


def name_of(kind: str, text: str) -> str:
    """Return the name of a position; a long or non-ASCII one is replaced by its SHA-256."""
    plain = f"{kind}:{text}"
    raw = plain.encode(errors="surrogateescape")
    return plain if raw.isascii() and len(raw) <= NAME_BYTES else f"{kind}:{hashlib.sha256(raw).hexdigest()}"


def own_stem(path: Path, positions: Mapping[str, bytes]) -> str:
    """Return a file's key prefix: its stem, with parent folders where another file owns the stem."""
    whole = path.absolute()
    parts = [*whole.parts[1:-1], whole.stem]
    for count in range(1, len(parts) + 1):
        stem = "/".join(parts[-count:])
        if positions.get(name_of("keys", stem), owner_bytes(whole)) == owner_bytes(whole):
            return stem
    return str(whole)


def owner_bytes(path: Path) -> bytes:
    """Return a file's absolute path as bytes: the store's value for the owner of a key prefix."""
    return str(path.absolute()).encode(errors="surrogateescape")
