"""ASGI middleware: route the paths of items as they came, still percent-encoded.

An item's key may hold any character, slashes too; handlers decode it (`bodies.item_key`).
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

ITEMS = b"/v1/items/"


class ItemPaths:
    """Replace the decoded path by the raw one under `/v1/items/`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            raw: bytes = scope.get("raw_path") or scope["path"].encode()
            if raw.startswith(ITEMS):
                scope["path"] = raw.decode("latin-1")
        await self._app(scope, receive, send)
