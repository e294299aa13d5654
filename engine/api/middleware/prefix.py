"""ASGI middleware: serve below a prefix of the path, behind a proxy that strips it or leaves it.

The prefix is `[api] root_path` or, with `[api] forwarded_prefix`, what the proxy's X-Forwarded-Prefix says.
Pages link relatively and need neither; the OpenAPI document names the prefix as its server.
"""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from engine.api.middleware.scopes import header
from engine.config import ApiSettings
from engine.config_values import PREFIX


class Prefix:
    """Strip the prefix from the path; handlers find it as `request.state.prefix`."""

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self._app, self._prefix, self._forwarded = app, settings.root_path, settings.forwarded_prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (prefix := self._prefix_of(scope)):
            scope["state"] = {**scope.get("state", {}), "prefix": prefix}
            if scope["path"].startswith(f"{prefix}/"):
                scope["path"] = scope["path"].removeprefix(prefix)
                scope["raw_path"] = (scope.get("raw_path") or b"").removeprefix(prefix.encode())
        await self._app(scope, receive, send)

    def _prefix_of(self, scope: Scope) -> str:
        told = header(scope, b"x-forwarded-prefix") if self._forwarded else None
        if told is not None:
            prefix = told.decode("latin-1").partition(",")[0].strip().rstrip("/")
            if re.fullmatch(PREFIX, prefix):
                return prefix
        return self._prefix
