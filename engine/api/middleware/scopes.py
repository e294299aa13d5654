"""What several middlewares read of a request's ASGI scope."""

from __future__ import annotations

from starlette.types import Scope

PROBES = ("/livez", "/readyz")  # a supervisor must get an answer, under load and under any name


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return the first header of a name, as handlers read it."""
    return next((value for known, value in scope["headers"] if known == name), None)


def is_event_stream(scope: Scope) -> bool:
    """Return whether the request asks for server-sent events, which stay open."""
    return scope["path"] == "/v1/changes" and b"text/event-stream" in (header(scope, b"accept") or b"")
