"""What every request passes, asked without a socket."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.api.middleware import Gate, Keys, Meters
from engine.config import load


@pytest.mark.parametrize(
    ("accept", "streams"),
    [
        (["text/event-stream", "text/html"], 1.0),
        (["text/html", "text/event-stream"], 0.0),
    ],
)
def test_of_two_headers_the_first_counts_as_it_does_behind_the_gate(
    accept: list[str], streams: float
) -> None:
    meters, seen = Meters(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(meters.registry.get_sample_value("shoal_http_streams"))

    async def never(*message: Any) -> Any:
        raise AssertionError

    headers = [(b"host", b"localhost"), *((b"accept", one.encode()) for one in accept)]
    scope = {"type": "http", "method": "GET", "path": "/v1/changes", "headers": headers}
    asyncio.run(Gate(app, load(None, {}).api, Keys([]), meters)(scope, never, never))
    assert seen == [streams]
