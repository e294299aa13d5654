"""What every request passes: who asks, under which name, how many at once; and it is counted.

A key of an item may hold any character, slashes too. So the paths under `/v1/items/` are routed as they
came, still percent-encoded, and decoded by what answers them.
"""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.api import problems
from engine.api.problems import Problem
from engine.config import ApiSettings
from engine.errors import ConfigError

KEY_MIN_CHARS = 16
UNBOUNDED = ("/livez", "/readyz")  # asked by what supervises, under load too
LOCKED = (
    "/v1/",
    "/metrics",
)  # the rest tells nothing of the collection, and the page asks for the key itself
ITEMS = b"/v1/items/"
POLICY = (
    "default-src 'self'; img-src * data: blob:; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
SECURITY = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", POLICY.encode()),
]


class Meters:
    """What the API counts of itself."""

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
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        self.working = Gauge("shoal_http_requests_now", "Requests at work.", registry=self.registry)
        self.streams = Gauge("shoal_http_streams", "Streams of changes held open.", registry=self.registry)


class Gate:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, settings: ApiSettings, keys: Keys, meters: Meters) -> None:
        self._app, self._settings, self._keys, self._meters = app, settings, keys, meters
        self._working = self._streams = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0
        headers = dict(reversed(scope["headers"]))  # the first of a name counts, as behind the gate
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        if raw.startswith(ITEMS):
            scope["path"] = raw.decode("latin-1")
        stream = scope["path"] == "/v1/changes" and b"text/event-stream" in headers.get(b"accept", b"")

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *SECURITY]
            await send(message)

        refusal = self._refuse(scope["path"], headers, stream)
        self._count(stream, 1)
        try:
            if refusal:
                await problems.respond(refusal)(scope, receive, answer)
            else:
                await self._app(scope, receive, answer)
        finally:
            self._count(stream, -1)
            route = getattr(scope.get("route"), "path", "none")
            self._meters.requests.labels(scope["method"], route, str(status)).inc()
            if not stream:
                self._meters.seconds.labels(route).observe(time.perf_counter() - start)

    def _refuse(self, path: str, headers: Mapping[bytes, bytes], stream: bool) -> Problem | None:
        if path in UNBOUNDED:
            return None
        if stream and self._streams >= self._settings.streams_max:
            return Problem("busy", f"{self._streams} streams are open already ([api] streams_max).")
        if not stream and self._working >= self._settings.requests_max:
            return Problem("busy", f"{self._working} requests are at work already ([api] requests_max).")
        if self._keys:
            if not path.startswith(LOCKED):
                return None
            return self._keys.refuse(headers.get(b"authorization"), headers.get(b"x-api-key"))
        return _refuse_host(headers.get(b"host", b"localhost").decode("latin-1"), self._settings.host)

    def _count(self, stream: bool, change: int) -> None:
        if stream:
            self._streams += change
            self._meters.streams.inc(change)
        else:
            self._working += change
            self._meters.working.inc(change)


class Keys:
    """The keys that open the API; none: it is open to this machine."""

    def __init__(self, keys: list[bytes]) -> None:
        self._digests = [sha256(key).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def refuse(self, authorization: bytes | None, key: bytes | None) -> Problem | None:
        """A key comes as `Authorization: Bearer KEY` or as `X-API-Key: KEY`."""
        shown = key if authorization is None else _bearer(authorization)
        if shown is None:
            return Problem("no-key", "This daemon answers only to those who show its API key.")
        digest = sha256(shown).digest()
        fits = [hmac.compare_digest(digest, known) for known in self._digests]  # all, whichever fits
        if not any(fits):
            return Problem("no-key", "This API key is not one of this daemon's.")
        return None


def read_keys(settings: ApiSettings) -> Keys:
    """Raises ConfigError: no key where one is needed, or none that can be used."""
    path = settings.key_file
    if path is None:
        if not is_loopback(settings.host):
            raise ConfigError(
                f"[api] host = {settings.host!r} can be reached from elsewhere: name a file with the "
                "API key in [api] key_file, or set the host to 127.0.0.1."
            )
        return Keys([])
    keys = _lines(path)
    if not keys or min(map(len, keys)) < KEY_MIN_CHARS:
        raise ConfigError(
            f"{path} must hold an API key of {KEY_MIN_CHARS} characters or more, one a line: "
            f"`openssl rand -hex 32 > {path}` makes one."
        )
    return Keys(keys)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _lines(path: Path) -> list[bytes]:
    try:
        lines = [line.strip() for line in path.read_bytes().splitlines()]
    except OSError as error:
        raise ConfigError(f"The API key in {path} cannot be read: {error.strerror}.") from None
    return [line for line in lines if line and not line.startswith(b"#")]


def _bearer(header: bytes) -> bytes | None:
    scheme, _, value = header.strip().partition(b" ")
    return value.strip() if scheme.lower() == b"bearer" else None


def _refuse_host(host: str, own: str) -> Problem | None:
    """A page elsewhere may make a browser ask this machine under a name of its own; names are refused."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name in ("localhost", own) or name.endswith(".localhost"):
        return None
    with suppress(ValueError):
        ipaddress.ip_address(name)
        return None
    return Problem("wrong-host", f"Without an API key this daemon does not answer to the name {name!r}.")
