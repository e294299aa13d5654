"""The API's application: routes, documents and static files, behind the middleware.

It reads the store while the writer works, without torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse
from starlette.routing import Match
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from engine import __version__
from engine.api import guide, middleware, problems
from engine.api.context import Context
from engine.api.middleware.authentication import Keys
from engine.api.problems import ProblemDocument
from engine.api.replies import reply
from engine.api.routes import health, item, read, write

HERE = Path(__file__).resolve().parent
PAGE, SWAGGER = HERE / "static" / "page", HERE / "static" / "swagger"
REVALIDATE = {"cache-control": "no-cache"}
DESCRIPTION = """Which cluster is an item in now, and why?

Every answer carries the `version` of the state it is of, and the `collection`. Answers that can be asked for
again have an `ETag`; send it as `If-None-Match`. Pages continue with `cursor`. Errors are RFC 9457 problem
documents: `detail` says what is wrong, `do` what to do about it."""

documents = APIRouter(include_in_schema=False)


def make_app(context: Context, keys: Keys) -> ASGIApp:
    """Return the application behind its middleware."""
    return middleware.wrap(make_routes(context), context.settings.api, keys, context.meters)


def make_routes(context: Context) -> FastAPI:
    """Return the application with all routes."""
    app = FastAPI(
        title="Shoal",
        version=__version__,
        summary="Live clustering of embedding streams.",
        description=DESCRIPTION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=context.running,
    )
    app.state.context = context
    problems.install(app)
    for router in (item.router, write.router, read.router, health.router, documents):
        app.router.routes.extend(router.routes)  # `include_router` would match each request twice
    guide.install(app)
    app.mount("/docs", Files(directory=SWAGGER, check_dir=False))
    app.mount("/", Page(directory=PAGE, html=True, check_dir=False))
    return app


@documents.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """The OpenAPI document, made by the first request."""
    app: FastAPI = request.app
    app.openapi_schema = app.openapi_schema or describe(app)
    prefix = getattr(request.state, "prefix", "")
    return reply({**app.openapi_schema, **({"servers": [{"url": prefix}]} if prefix else {})})


@documents.get("/docs")
async def docs() -> Response:
    """The page that shows the OpenAPI document."""
    return FileResponse(SWAGGER / "index.html", headers=REVALIDATE)


class Files(StaticFiles):
    """Static files that a browser revalidates each time: after an upgrade never a mix of old and new ones."""

    def file_response(self, *arguments: Any, **named: Any) -> Response:
        response = super().file_response(*arguments, **named)
        response.headers.update(REVALIDATE)
        return response


class Page(Files):
    """The page's files: what no route has taken. A path that a route takes with another method is no file."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        partial = [each for each in scope["app"].routes if each.matches(scope)[0] == Match.PARTIAL]
        if partial:
            methods = {method for route in partial for method in route.methods}
            methods |= {"HEAD"} if "GET" in methods else set()
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(methods))})
        await super().__call__(scope, receive, send)


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
    )
    schemas = document["components"]["schemas"]
    schemas["ProblemDocument"] = ProblemDocument.model_json_schema()
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    document["security"] = [{}, {"bearer": []}, {"header": []}]
    return document
