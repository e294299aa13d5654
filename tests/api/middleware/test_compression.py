"""Answers are compressed where the client accepts it, and where it is worth it."""

from __future__ import annotations

import gzip
from typing import Any

import pytest
import zstandard

from engine.api.middleware.compression import INLINE_BYTES
from tests.support.asgi import Client

SMALL, LARGE = b"small" * 10, b"large " * INLINE_BYTES


def answering(kind: str, *parts: bytes, status: int = 200) -> Client:
    """With a body in these parts."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", kind.encode()), (b"etag", b'"7"'), (b"vary", b"Origin")]
        if len(parts) == 1:
            headers.append((b"content-length", b"%d" % len(parts[0])))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for at, part in enumerate(parts, 1):
            await send({"type": "http.response.body", "body": part, "more_body": at < len(parts)})

    return Client(app)


@pytest.mark.parametrize("parts", [[LARGE], [LARGE, b"", SMALL], [SMALL, SMALL]])
@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_body_is_compressed(parts: list[bytes], coding: str) -> None:
    found = answering("application/json", *parts).ask("/", [(b"accept-encoding", coding.encode())])
    assert found.headers[b"content-encoding"] == coding.encode()
    assert found.headers[b"vary"] == b"Origin, Accept-Encoding"
    assert found.headers[b"etag"] == b'W/"7"'
    if len(parts) == 1:
        assert found.headers[b"content-length"] == b"%d" % len(found.body)
    else:
        assert b"content-length" not in found.headers
    if coding == "gzip":
        assert gzip.decompress(found.body) == b"".join(parts)
    else:
        assert zstandard.ZstdDecompressor().decompressobj().decompress(found.body) == b"".join(parts)


@pytest.mark.parametrize(
    ("kind", "body", "status", "accepted"),
    [
        ("application/json", SMALL, 200, b"gzip"),
        ("application/json", LARGE, 200, b"gzip;q=0, br"),
        ("application/json", LARGE, 200, b""),
        ("application/json", LARGE, 206, b"gzip"),
        ("text/event-stream", LARGE, 200, b"gzip"),
        ("image/png", LARGE, 200, b"gzip"),
        ("application/vnd.apache.parquet", LARGE, 200, b"gzip"),
    ],
)
def test_a_body_stays_as_it_is(kind: str, body: bytes, status: int, accepted: bytes) -> None:
    found = answering(kind, body, status=status).ask("/", [(b"accept-encoding", accepted)])
    assert found.body == body
    assert b"content-encoding" not in found.headers
    assert found.headers[b"etag"] == b'"7"'
