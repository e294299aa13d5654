"""ASGI middleware, one concern a module; `wrap` puts them around the application.

Each module may import `engine.api.problems` and the contracts. Begin with `wrap`.
"""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from engine.api.middleware.authentication import Authentication, Keys
from engine.api.middleware.compression import Compression
from engine.api.middleware.head import Head
from engine.api.middleware.host_check import HostCheck
from engine.api.middleware.item_paths import ItemPaths
from engine.api.middleware.limits import Limits
from engine.api.middleware.metrics import Meters, RequestMetrics
from engine.api.middleware.prefix import Prefix
from engine.api.middleware.security_headers import SecurityHeaders
from engine.config import ApiSettings

CORS_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
CORS_REQUEST_HEADERS = (
    "Authorization", "X-API-Key", "Content-Encoding", "If-None-Match", "Last-Event-ID",
)  # fmt: skip
CORS_RESPONSE_HEADERS = ("ETag", "Retry-After", "Shoal-Version", "Shoal-Collection")


def wrap(app: ASGIApp, settings: ApiSettings, keys: Keys, meters: Meters) -> ASGIApp:
    """Return the application behind all middleware; a request passes them from the last line up."""
    app = Limits(app, settings, meters)
    app = Authentication(app, keys) if keys else HostCheck(app, settings.host)
    if settings.cors_origins:  # before the keys: a browser's preflight request has none
        app = CORSMiddleware(
            app,
            allow_origins=settings.cors_origins,
            allow_methods=CORS_METHODS,
            allow_headers=CORS_REQUEST_HEADERS,
            expose_headers=CORS_RESPONSE_HEADERS,
        )
    app = Compression(app)
    app = Head(app)
    app = RequestMetrics(app, meters)
    app = SecurityHeaders(app)
    app = ItemPaths(app)
    return Prefix(app, settings)
