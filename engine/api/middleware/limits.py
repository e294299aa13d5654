"""ASGI middleware: bound the requests and the event streams that are open at once."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from engine.api import problems
from engine.api.middleware.metrics import Meters
from engine.api.middleware.scopes import PROBES, is_event_stream
from engine.api.problems import Problem
from engine.config import ApiSettings


class Limits:
    """Refuse with 503 what exceeds `[api] requests_max` or `streams_max`, which are counted separately."""

    def __init__(self, app: ASGIApp, settings: ApiSettings, meters: Meters) -> None:
        self._app, self._settings, self._meters = app, settings, meters
        self._requests = self._streams = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        stream = is_event_stream(scope)
        if refusal := None if scope["path"] in PROBES else self._refuse(stream):
            await problems.respond(refusal)(scope, receive, send)
            return
        self._count(stream, 1)
        try:
            await self._app(scope, receive, send)
        finally:
            self._count(stream, -1)

    def _refuse(self, stream: bool) -> Problem | None:
        if stream and self._streams >= self._settings.streams_max:
            return Problem("busy", f"{self._streams} streams are already open ([api] streams_max).")
        if not stream and self._requests >= self._settings.requests_max:
            return Problem("busy", f"{self._requests} requests are already in progress ([api] requests_max).")
        return None

    def _count(self, stream: bool, change: int) -> None:
        if stream:
            self._streams += change
            self._meters.streams.inc(change)
        else:
            self._requests += change
            self._meters.working.inc(change)
