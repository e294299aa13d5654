"""Requests and event streams are bounded apart."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.api.middleware.limits import Limits
from engine.api.middleware.metrics import Meters
from engine.config import load
from tests.support.asgi import Asked, scope_of


@pytest.mark.parametrize(
    ("accept", "streams"),
    [
        (["text/event-stream", "text/html"], 1.0),
        (["text/html", "text/event-stream"], 0.0),
    ],
)
def test_of_two_headers_the_first_counts_as_it_does_for_handlers(accept: list[str], streams: float) -> None:
    meters, seen = Meters(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(meters.registry.get_sample_value("shoal_http_streams"))

    headers = [(b"accept", one.encode()) for one in accept]
    asked = Asked()
    limits = Limits(app, load(None, {}).api, meters)
    asyncio.run(limits(scope_of("/v1/changes", headers), asked.receive, asked.send))
    assert seen == [streams]


def test_each_kind_has_a_bound_of_its_own() -> None:
    meters = Meters()
    settings = load(None, {"api.requests_max": 2, "api.streams_max": 1}).api
    stream = [(b"accept", b"text/event-stream")]

    async def story() -> None:
        release = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await release.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        limits = Limits(app, settings, meters)

        async def go(path: str, headers: list[tuple[bytes, bytes]]) -> int:
            asked = Asked()
            await limits(scope_of(path, headers), asked.receive, asked.send)
            return asked.status

        held = [asyncio.create_task(go("/v1/levels", [])) for _ in range(2)]
        held += [asyncio.create_task(go("/v1/changes", stream)), asyncio.create_task(go("/readyz", []))]
        await asyncio.sleep(0)
        assert meters.registry.get_sample_value("shoal_http_streams") == 1.0
        assert await go("/v1/levels", []) == 503
        assert await go("/v1/changes", stream) == 503
        release.set()
        assert await asyncio.gather(*held) == [200, 200, 200, 200]
        assert await go("/v1/levels", []) == 200

    asyncio.run(story())
    assert meters.registry.get_sample_value("shoal_http_requests_now") == 0.0
