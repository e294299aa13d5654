"""ASGI middleware: count and time requests, for Prometheus."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.api.middleware.scopes import is_event_stream

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Meters:
    """The metrics of the API's process."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "shoal_http_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "shoal_http_request_seconds",
            "Time to answer, streams apart.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.working = Gauge("shoal_http_requests_now", "Requests in progress.", registry=self.registry)
        self.streams = Gauge("shoal_http_streams", "Streams of changes held open.", registry=self.registry)


class RequestMetrics:
    """Count each request by method, route and status; observe its duration by route."""

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self._app, self._meters = app, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._meters.requests.labels(scope["method"], route, str(status)).inc()
            if not is_event_stream(scope):
                self._meters.seconds.labels(route).observe(time.perf_counter() - start)
