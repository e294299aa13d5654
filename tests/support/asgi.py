"""One request to the middleware without a socket, around an application that always answers 200."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import unquote

from engine.api import middleware
from engine.api.middleware.authentication import Keys
from engine.api.middleware.metrics import Meters
from engine.config import load

Headers = list[tuple[bytes, bytes]]


class Asked:
    """The client's side of a request: what was sent to it."""

    def __init__(self, body: bytes = b"") -> None:
        self.status, self.headers, self.body = 0, dict[bytes, bytes](), b""
        self.path = ""
        self._body = body

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            self.body += message.get("body", b"")


def scope_of(raw: str, headers: Headers, method: str = "GET") -> dict[str, Any]:
    """The ASGI scope of a request for a raw path."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": unquote(raw),
        "raw_path": raw.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
    }


def ask(
    raw: str,
    headers: Headers | None = None,
    keys: Keys | None = None,
    meters: Meters | None = None,
    **settings: Any,
) -> Asked:
    """A GET through all middleware; `cors_origins=...` sets `[api] cors_origins`."""
    asked = Asked()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.path = scope["path"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answered"})

    chosen = load(None, {f"api.{name}": value for name, value in settings.items()}).api
    wrapped = middleware.wrap(app, chosen, keys or Keys([]), meters or Meters())
    asyncio.run(wrapped(scope_of(raw, headers or []), asked.receive, asked.send))
    return asked
