"""Content codings: what comes in compressed is bounded, damage is named, q-values decide what goes out."""

from __future__ import annotations

import asyncio
import gzip
import random
import zlib
from collections.abc import Callable

import pytest
import zstandard

from engine.api import bodies, encodings
from engine.api.problems import Problem
from tests.api.test_bodies import request_of

TEXT = random.Random(3).randbytes(20_000) * 12
CODINGS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("zstd", zstandard.ZstdCompressor().compress),
]


def decoded(coding: str, body: bytes, piece: int, limit: int = 10**7) -> list[bytes]:
    """The chunks of a body that comes in pieces."""
    pieces = [body[at : at + piece] for at in range(0, len(body), piece)]
    request = request_of(*pieces, coding=coding)

    async def read() -> list[bytes]:
        return [chunk async for chunk in bodies.chunks(request, limit, 60.0)]

    return asyncio.run(read())


@pytest.mark.parametrize(("coding", "compress"), CODINGS)
@pytest.mark.parametrize("piece", [1_000, 10**6])
def test_a_body_is_decompressed_as_it_comes(
    coding: str, compress: Callable[[bytes], bytes], piece: int
) -> None:
    for body, text in (
        (compress(TEXT), TEXT),
        (compress(TEXT) + compress(b"more"), TEXT + b"more"),  # two files in a row
        (compress(b""), b""),
        (b"", b""),
    ):
        chunks = decoded(coding, body, piece)
        assert b"".join(chunks) == text
        assert all(len(chunk) <= encodings.CHUNK_BYTES for chunk in chunks)


@pytest.mark.parametrize(("coding", "compress"), CODINGS)
def test_the_bound_is_on_what_comes_out(coding: str, compress: Callable[[bytes], bytes]) -> None:
    bomb = compress(bytes(10**8))
    assert len(bomb) < 200_000
    with pytest.raises(Problem) as caught:
        decoded(coding, bomb, 10**6, limit=10**6)
    assert caught.value.kind.name == "too-large"


@pytest.mark.parametrize(("coding", "compress"), CODINGS)
def test_damage_is_named(coding: str, compress: Callable[[bytes], bytes]) -> None:
    body = compress(TEXT)
    for broken in (body[:-5], b"what", body[:4] + b"\xff" * 20 + body[24:], body + b"tail"):
        with pytest.raises(Problem, match=coding) as caught:
            decoded(coding, broken, 10**6)
        assert caught.value.kind.status == 400


@pytest.mark.parametrize("coding", ["br", "deflate", "gzip, gzip", "what"])
def test_another_coding_is_refused(coding: str) -> None:
    with pytest.raises(Problem, match="Content-Encoding") as caught:
        decoded(coding, b"x", 10)
    assert caught.value.kind.status == 415


def test_no_coding_leaves_a_body_as_it_is() -> None:
    assert decoded("identity", TEXT, 1000) == [TEXT[at : at + 1000] for at in range(0, len(TEXT), 1000)] + [
        b""
    ]


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        (None, None),
        ("", None),
        ("br", None),
        ("gzip", "gzip"),
        ("gzip, zstd", "zstd"),
        ("zstd;q=0.1, gzip;q=0.9", "gzip"),
        ("GZIP ; Q=0.5", "gzip"),
        ("*", "zstd"),
        ("zstd;q=0, *;q=0.5", "gzip"),
        ("*;q=0", None),
        ("gzip;q=0", None),
        ("gzip;q=what", None),
        ("identity, gzip;q=0.5", None),
        ("identity;q=0.5, gzip;q=0.5", "gzip"),
    ],
)
def test_q_values_decide(accepted: str | None, coding: str | None) -> None:
    assert encodings.choose(accepted) == coding


@pytest.mark.parametrize("coding", encodings.SUPPORTED)
def test_an_answer_comes_out_as_it_went_in(coding: str) -> None:
    encoder = encodings.encoder_of(coding)
    body = encoder.compress(TEXT) + encoder.flush()
    unzip = {
        "gzip": lambda: zlib.decompress(body, 31),
        "zstd": lambda: zstandard.ZstdDecompressor().decompressobj().decompress(body),
    }
    assert unzip[coding]() == TEXT
    assert len(body) < len(TEXT)
