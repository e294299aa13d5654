"""Requests to the middleware without a socket."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from starlette.types import ASGIApp

from engine.api import middleware
from engine.api.middleware.authentication import Keys
from engine.api.middleware.metrics import Meters
from engine.config import ApiSettings

Headers = list[tuple[bytes, bytes]]


class Asked:
    """The client's side of a request: what was sent to it."""

    def __init__(self, body: bytes = b"") -> None:
        self.status, self.headers, self.body = 0, dict[bytes, bytes](), b""
        self.path, self.state = "", dict[str, Any]()
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


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """An application that always answers 200."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"answered"})


@dataclass(frozen=True)
class Client:
    """Requests through all middleware, around `app`."""

    app: ASGIApp = answer
    keys: Keys = field(default_factory=lambda: Keys([]))
    meters: Meters = field(default_factory=Meters)
    settings: dict[str, Any] = field(default_factory=dict)  # of [api]

    def ask(self, raw: str, headers: Headers | None = None, method: str = "GET") -> Asked:
        asked = Asked()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            asked.path, asked.state = scope["path"], scope.get("state", {})
            await self.app(scope, receive, send)

        document = {"host": "127.0.0.1", **self.settings}
        wrapped = middleware.wrap(app, ApiSettings(**document), self.keys, self.meters)

        async def call() -> None:
            await wrapped(scope_of(raw, headers or [], method), asked.receive, asked.send)

        asyncio.run(call())
        return asked
