"""Requests are counted by method, route and status; refused ones too."""

from __future__ import annotations

from engine.api.middleware.metrics import Meters
from tests.support.asgi import Client


def test_requests_are_counted_and_timed() -> None:
    meters = Meters()
    client = Client(meters=meters)
    client.ask("/v1/levels")
    client.ask("/v1/levels", [(b"host", b"evil.example")])
    client.ask("/v1/changes", [(b"accept", b"text/event-stream")])
    count = meters.registry.get_sample_value
    labels = {"method": "GET", "route": "none"}
    assert count("shoal_http_requests_total", labels | {"status": "200"}) == 2.0
    assert count("shoal_http_requests_total", labels | {"status": "403"}) == 1.0
    assert count("shoal_http_request_seconds_count", {"route": "none"}) == 2.0, "streams are not timed"
