"""Content codings: gzip and zstd, for bodies that come in and for answers that go out."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from engine.api.problems import Problem

CHUNK_BYTES = 2**16  # decompressed at once
ZSTD_SLICE = 2**8  # compressed bytes fed at once: they hold 8 MiB at most
ZSTD_WINDOW = 2**23  # RFC 9659: what a zstd coding may ask of a decoder
GZIP_LEVEL, ZSTD_LEVEL = 5, 3
GZIP = 16 + zlib.MAX_WBITS
SUPPORTED = ("zstd", "gzip")  # in the order of preference


class Decoder(Protocol):
    """Decompresses a body that comes in chunks."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield parts of at most CHUNK_BYTES. Raises Problem: the body is damaged."""
        ...

    def end(self) -> None:
        """Raise Problem if the body ended too early."""
        ...


class Encoder(Protocol):
    """Compresses an answer."""

    def compress(self, data: bytes) -> bytes: ...

    def flush(self) -> bytes: ...


def decoder_of(coding: str) -> Decoder | None:
    """Return a decoder for a Content-Encoding; None: not compressed. Raises Problem: not supported."""
    name = coding.strip().lower()
    if name in ("", "identity"):
        return None
    if name in ("gzip", "x-gzip"):
        return _Gunzip()
    if name == "zstd":
        return _Unzstd()
    names = ", ".join(SUPPORTED)
    problem = Problem(
        "wrong-type",
        f"The Content-Encoding {coding!r:.40} is not supported.",
        f"Send the body as it is, or with one Content-Encoding of {names}.",
    )
    problem.headers = {"accept-encoding": names}
    raise problem


def encoder_of(coding: str) -> Encoder:
    """Return an encoder for one of SUPPORTED."""
    if coding == "gzip":
        return zlib.compressobj(GZIP_LEVEL, wbits=GZIP)
    import zstandard

    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj()


def choose(accepted: str | None) -> str | None:
    """Choose the coding for an Accept-Encoding: highest q-value, then in our order; None: uncompressed."""
    weights = _weights(accepted or "")
    best = max(SUPPORTED, key=lambda name: _weight(weights, name))
    weight = _weight(weights, best)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else None


def _weight(weights: Mapping[str, float], name: str) -> float:
    return weights.get(name, weights.get("*", 0.0))


def _weights(header: str) -> dict[str, float]:
    found = {}
    for part in header.split(","):
        name, _, parameter = part.partition(";")
        key, _, value = parameter.strip().partition("=")
        try:
            found[name.strip().lower()] = float(value) if key.strip().lower() == "q" else 1.0
        except ValueError:
            found[name.strip().lower()] = 0.0  # an unreadable q-value
    return found


class _Gunzip:
    """Also of several gzip members in a row, as `cat a.gz b.gz` makes them."""

    def __init__(self) -> None:
        self._member: Any = None  # a zlib decompressor; None: between two members

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        while chunk:
            if self._member is None:
                self._member = zlib.decompressobj(GZIP)
            try:
                part = self._member.decompress(chunk, CHUNK_BYTES)
            except zlib.error as error:
                raise _damaged("gzip", error) from None
            if part:
                yield part
            chunk = self._member.unconsumed_tail
            if self._member.eof:
                chunk, self._member = self._member.unused_data, None

    def end(self) -> None:
        if self._member is not None:
            raise _damaged("gzip", "it ends in the middle")


class _Unzstd:
    """One zstd frame after the other."""

    def __init__(self) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._context = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
        self._frame: Any = None

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        for start in range(0, len(chunk), ZSTD_SLICE):
            rest = chunk[start : start + ZSTD_SLICE]
            while rest:
                if self._frame is None:
                    self._frame = self._context.decompressobj(write_size=CHUNK_BYTES)
                try:
                    part = self._frame.decompress(rest)
                except self._error as error:
                    raise _damaged("zstd", error) from None
                for at in range(0, len(part), CHUNK_BYTES):
                    yield part[at : at + CHUNK_BYTES]
                rest = b""
                if self._frame.eof:
                    rest, self._frame = self._frame.unused_data, None

    def end(self) -> None:
        if self._frame is not None:
            raise _damaged("zstd", "it ends in the middle")


def _damaged(coding: str, reason: object) -> Problem:
    return Problem("bad-request", f"The body is not {coding}: {reason}.")
