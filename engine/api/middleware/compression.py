"""ASGI middleware: compress answers with zstd or gzip where the client accepts it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.api.encodings import Encoder, choose, encoder_of
from engine.api.middleware.scopes import header

MIN_BYTES = 1024  # less is not worth it
INLINE_BYTES = 2**14  # more is compressed in a thread: the event loop must not wait a millisecond
TYPES = (
    b"application/json",
    b"application/problem+json",
    b"application/x-ndjson",
    b"application/javascript",
    b"image/svg+xml",
    b"text/css",
    b"text/html",
    b"text/javascript",
    b"text/plain",
)  # not event streams: an encoder holds events back
UNCOMPRESSED = (204, 206, 304)  # no body, or a range of bytes


class Compression:
    """Choose a coding by the q-values of Accept-Encoding; `Vary` says so to caches."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        accepted = header(scope, b"accept-encoding")
        coding = choose(accepted.decode("latin-1") if accepted else None)
        await self._app(scope, receive, _Compressing(send, coding))


class _Compressing:
    """The `send` of one request. It holds the start back until it knows how the body begins."""

    def __init__(self, send: Send, coding: str | None) -> None:
        self._send, self._coding = send, coding
        self._start: Message | None = None
        self._encoder: Encoder | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if _is_compressible(message):
                self._start = message
            else:
                await self._send(message)
            return
        if message["type"] == "http.response.body":
            if self._start:
                message = await self._begin(self._start, message)
            elif self._encoder:
                message = {**message, "body": await self._compress(message)}
        await self._send(message)

    async def _begin(self, start: Message, message: Message) -> Message:
        """Send the start; returns the first part of the body."""
        self._start = None
        body, whole = message.get("body", b""), not message.get("more_body", False)
        varies = [value for name, value in start["headers"] if name == b"vary"]
        changed = {b"vary": b", ".join([*varies, b"Accept-Encoding"])}
        if self._coding and not (whole and len(body) < MIN_BYTES):
            self._encoder = encoder_of(self._coding)
            message = {**message, "body": await self._compress(message)}
            changed |= {b"content-encoding": self._coding.encode()}
            changed |= {b"content-length": b"%d" % len(message["body"]) if whole else b""}
        await self._send({**start, "headers": _headers(start, changed)})
        return message

    async def _compress(self, message: Message) -> bytes:
        encoder, body = self._encoder, message.get("body", b"")
        assert encoder is not None

        def compress() -> bytes:
            done = encoder.compress(body)
            return done if message.get("more_body", False) else done + encoder.flush()

        if len(body) <= INLINE_BYTES:
            return compress()
        return await asyncio.get_running_loop().run_in_executor(None, compress)


def _is_compressible(start: Message) -> bool:
    headers = dict(start.get("headers", ()))
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return start["status"] not in UNCOMPRESSED and kind in TYPES and b"content-encoding" not in headers


def _headers(start: Message, changed: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """Return an answer's headers with some replaced, b"": removed. Compressed answers get a weak ETag."""
    weak = b"content-encoding" in changed
    kept = [
        (name, b"W/" + value if weak and name == b"etag" and value.startswith(b'"') else value)
        for name, value in start["headers"]
        if name not in changed
    ]
    return kept + [(name, value) for name, value in changed.items() if value]
