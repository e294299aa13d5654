"""ASGI middleware: API keys, as `Authorization: Bearer KEY` or `X-API-Key: KEY`."""

from __future__ import annotations

import hmac
from hashlib import sha256

from starlette.types import ASGIApp, Receive, Scope, Send

from engine.api import problems
from engine.api.middleware.scopes import header
from engine.api.problems import Problem
from engine.config import ApiSettings
from engine.daemon import key_file

# Nothing else holds data of the collection, and the page asks for the key itself.
PROTECTED = ("/v1/", "/metrics")


class Keys:
    """The accepted API keys, as digests. Empty: the API needs no key."""

    def __init__(self, keys: list[bytes]) -> None:
        self._digests = [sha256(key).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def refuse(self, authorization: bytes | None, key: bytes | None) -> Problem | None:
        """Return the problem of a request with these headers; None: it has a valid key."""
        shown = key if authorization is None else _bearer(authorization)
        if shown is None:
            return Problem("no-key", "This request needs the daemon's API key.")
        digest = sha256(shown).digest()
        fits = [hmac.compare_digest(digest, known) for known in self._digests]  # all: constant time
        if not any(fits):
            return Problem("no-key", "This API key is not one of this daemon's.")
        return None


class Authentication:
    """Refuse with 401 a request for a protected path without a valid key."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(PROTECTED):
            refusal = self._keys.refuse(header(scope, b"authorization"), header(scope, b"x-api-key"))
            if refusal:
                await problems.respond(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def read_keys(settings: ApiSettings) -> Keys:
    """Read `[api] key_file`. Raises ConfigError: a key is needed and missing, or unusable."""
    return Keys(key_file.read(settings))


def _bearer(header: bytes) -> bytes | None:
    scheme, _, value = header.strip().partition(b" ")
    return value.strip() if scheme.lower() == b"bearer" else None
