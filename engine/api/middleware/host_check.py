"""ASGI middleware: without API keys, answer under this machine's own names only (DNS rebinding).

A web page from elsewhere can make a browser request this machine under a name that the page's owner
controls. The Host header then has that name.
"""

from __future__ import annotations

import ipaddress
from contextlib import suppress

from starlette.types import ASGIApp, Receive, Scope, Send

from engine.api import problems
from engine.api.middleware.scopes import PROBES, header
from engine.api.problems import Problem


class HostCheck:
    """Refuse with 403 a Host that is neither an IP address, `localhost` nor `own`."""

    def __init__(self, app: ASGIApp, own: str) -> None:
        self._app, self._own = app, own.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PROBES:
            host = header(scope, b"host")
            if host is not None and (refusal := refuse(host.decode("latin-1"), self._own)):
                await problems.respond(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def refuse(host: str, own: str) -> Problem | None:
    """Return the problem of a disallowed Host header, else None."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    name = name.lower().removesuffix(".")  # as names are compared
    if name in ("localhost", own) or name.endswith(".localhost"):
        return None
    with suppress(ValueError):
        ipaddress.ip_address(name)
        return None
    return Problem("wrong-host", f"Without an API key this daemon rejects the host name {name!r}.")
