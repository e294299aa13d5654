"""ASGI middleware, one concern a module; `wrap` puts them around the application.

Each module may import `engine.api.problems` and the contracts. Begin with `wrap`.
"""

from __future__ import annotations

from starlette.types import ASGIApp

from engine.api.middleware.authentication import Authentication, Keys
from engine.api.middleware.host_check import HostCheck
from engine.api.middleware.item_paths import ItemPaths
from engine.api.middleware.limits import Limits
from engine.api.middleware.metrics import Meters, RequestMetrics
from engine.api.middleware.security_headers import SecurityHeaders
from engine.config import ApiSettings


def wrap(app: ASGIApp, settings: ApiSettings, keys: Keys, meters: Meters) -> ASGIApp:
    """The application behind all middleware; a request passes them from the last line up."""
    app = Limits(app, settings, meters)
    app = Authentication(app, keys) if keys else HostCheck(app, settings.host)
    app = RequestMetrics(app, meters)
    app = SecurityHeaders(app)
    return ItemPaths(app)
