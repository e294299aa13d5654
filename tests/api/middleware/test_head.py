"""HEAD is GET without a body, whatever the handler does afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.api.middleware.metrics import Meters
from tests.support.asgi import Client


def test_it_has_the_headers_of_get_and_no_body() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["method"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"body"})

    meters = Meters()
    found = Client(app, meters=meters).ask("/v1/levels", method="HEAD")
    assert (found.status, found.headers[b"content-length"], found.body) == (200, b"4", b"")
    assert seen == ["GET"]
    labels = {"method": "HEAD", "route": "none", "status": "200"}
    assert meters.registry.get_sample_value("shoal_http_requests_total", labels) == 1.0


def test_a_stream_is_ended() -> None:
    ended = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"more", "more_body": True})
                await asyncio.sleep(0.01)
        finally:
            ended.append(True)

    found = Client(app).ask("/v1/changes", method="HEAD")
    assert (found.status, found.body) == (200, b"")
    assert ended


def test_an_error_before_the_answer_is_raised() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        Client(app).ask("/", method="HEAD")
