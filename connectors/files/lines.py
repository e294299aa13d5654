"""Lines of text as they come: from a plain or compressed file, a pipe, or a file that still grows."""

from __future__ import annotations

import contextlib
import gzip
import os
import select
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from connectors.files.reading import CHUNK_BYTES, STDIN
from engine.errors import InputError
from engine.records import brief
from engine.streams import Line, Lines

ZSTD_BYTES = 2**14  # read at once: little may unpack to much
PAUSE_S = 0.2  # between two looks for more
COMPRESSED = (".gz", ".zst")
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)

Read = Callable[[], "bytes | None"]  # the next bytes; b"": the end; None: nothing at the moment


def lines(read: Read, most: int, at: int = 0) -> Iterator[Line | None]:
    """Yield lines without their breaks; None: nothing is available now. Holds at most `most` bytes of a line.

    `at`: the byte at which reading begins. The last line may lack its break.
    """
    cut = Lines(most, at)
    while (piece := read()) != b"":
        if piece is None:
            yield None
        else:
            yield from cut.feed(piece)
    yield from cut.end()


def is_compressed(path: Path) -> bool:
    """Return whether the file name ends like a compressed file's, in either case."""
    return path.suffix.lower() in COMPRESSED


def is_pipe(path: Path) -> bool:
    """Return whether a path can be read only once: standard input, a FIFO, a device."""
    return path == STDIN or (path.exists() and not path.is_file() and not path.is_dir())


@contextmanager
def opened(path: Path, offset: int = 0) -> Iterator[Read]:
    """Open a file or pipe, decompressed. Reading raises InputError where it is damaged."""
    if is_pipe(path):
        with _pipe(path) as descriptor:
            yield lambda: _of_pipe(descriptor)
        return
    with path.open("rb") as file:
        stream = cast(BinaryIO, file)
        suffix = path.suffix.lower()
        if suffix == ".gz":
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=file))
        elif suffix == ".zst":
            unpacked = _unpacked(file)
            yield lambda: _guarded(path, lambda: next(unpacked, b""))
            return
        else:
            file.seek(offset)
        yield lambda: _guarded(path, lambda: stream.read(CHUNK_BYTES))


def _guarded(path: Path, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except _DAMAGE as problem:
        raise InputError(f"{path} is damaged or truncated: {brief(problem)}.") from None


def _unpacked(file: BinaryIO) -> Iterator[bytes]:
    """Yield the content of Zstandard frames; zstandard's own reader ignores a truncated frame."""
    frame = zstandard.ZstdDecompressor().decompressobj()
    begun = False
    while piece := file.read(ZSTD_BYTES):
        while piece:
            begun = True
            if found := frame.decompress(piece):
                yield found
            piece = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame, begun = zstandard.ZstdDecompressor().decompressobj(), False
    if begun:
        raise EOFError("the last frame is cut short")


@contextmanager
def followed(path: Path, offset: int) -> Iterator[Read]:
    """Open a plain file that grows, from `offset` on; reading never ends.

    Reading raises Replaced where another file has come in its place.
    """
    file = path.open("rb")
    file.seek(offset)
    replaced = False

    def read() -> bytes | None:
        nonlocal replaced
        if piece := file.read(CHUNK_BYTES):
            return piece
        if replaced:  # and what came before it was taken
            raise Replaced
        time.sleep(PAUSE_S)
        with contextlib.suppress(FileNotFoundError):
            found, own = path.stat(), os.fstat(file.fileno())
            replaced = not os.path.samestat(found, own) or found.st_size < file.tell()
        return None

    try:
        yield read
    finally:
        file.close()


class Replaced(Exception):
    """The followed file is another one now, or was cut short."""


@contextmanager
def _pipe(path: Path) -> Iterator[int]:
    if path == STDIN:
        yield sys.stdin.fileno()
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _of_pipe(descriptor: int) -> bytes | None:
    """Read what is available, blocking at most PAUSE_S so that signals are handled."""
    ready, _, _ = select.select([descriptor], [], [], PAUSE_S)
    return os.read(descriptor, CHUNK_BYTES) if ready else None


def count_lines(path: Path) -> int:
    count, last = 0, b"\n"
    with path.open("rb") as stream:
        while piece := stream.read(CHUNK_BYTES):
            count += piece.count(b"\n")
            last = piece[-1:]
    return count + (last != b"\n")
