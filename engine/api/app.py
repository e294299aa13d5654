"""The API: what may be asked over HTTP, put together. It reads the store beside its writer, without torch.

server   the process: socket, connections, signals
gate     key, host name, load, counting
queries  what LMDB answers            stream   server-sent events
writes   what the writer answers      bulk     NDJSON
service  what they share              tail     growth and history, rolled from the event log
answers  the shapes of answers        problems the shapes of errors
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from engine import __version__
from engine.api import guide, problems, responses, routes_read, routes_write
from engine.api.context import Service, reply
from engine.api.middleware import Gate, Keys
from engine.api.problems import ProblemDocument, documented
from engine.errors import ShoalError, StoreError

HERE = Path(__file__).resolve().parent
PAGE, DOCS = HERE / "static" / "page", HERE / "static" / "swagger"
ASK_ANEW = {"cache-control": "no-cache"}
DESCRIPTION = """Which cluster is an item in now, and why?

Every answer carries the `version` of the state it is of, and the `collection`. Answers that can be asked for
again have an `ETag`; send it as `If-None-Match`. Pages go on with `cursor`. Errors are RFC 9457 problem
documents: `detail` says what is wrong, `do` what to do about it."""


def make_app(service: Service, keys: Keys) -> ASGIApp:
    """The application behind its gate."""
    return Gate(make_routes(service), service.bounds, keys, service.meters)


def make_routes(service: Service) -> FastAPI:
    """All that can be asked."""
    app = FastAPI(
        title="Shoal",
        version=__version__,
        summary="Live clustering of embedding streams.",
        description=DESCRIPTION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(service),
    )
    problems.install(app)
    app.include_router(routes_write.router(service))
    app.include_router(routes_read.router(service))
    _add_health(app, service)
    _add_documents(app)
    return app


def _lifespan(service: Service) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(service.run())
        running.add_done_callback(lambda task: _fail(service, task))
        yield
        service.stop()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        service.close()

    return lifespan


def _fail(service: Service, task: asyncio.Task[None]) -> None:
    """Without what keeps the service up to date its answers would be old: the process ends."""
    if not task.cancelled() and (error := task.exception()):
        service.failure = error
        signal.raise_signal(signal.SIGTERM)


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get(
        "/livez",
        response_model=responses.Live,
        responses={503: {"model": responses.Live, "description": "The writer makes no progress"}},
        tags=["operation"],
    )
    async def livez() -> Response:
        """This process answers, and a writer that runs makes progress. (Whether all is well: /readyz.)"""
        told = service.status.told
        live = told is None or told["stalled_s"] < service.settings.bounds.progress_timeout_s
        return reply({"live": live}, status=200 if live else 503)

    @app.get(
        "/readyz",
        response_model=responses.Ready,
        responses={503: {"model": responses.Ready, "description": "Not ready, and why"}},
        tags=["operation"],
    )
    async def readyz() -> Response:
        """The store can be read, the writer runs and has loaded, and its lag is within bounds."""
        reasons = _reasons(service)
        return reply({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get(
        "/metrics",
        response_class=Response,
        responses=text | documented(),
        tags=["operation"],
    )
    async def metrics() -> Response:
        """For Prometheus: this process's figures, and the writer's where it runs."""
        own = generate_latest(service.meters.registry)
        try:
            told = (await service.call("metrics", timeout_s=5.0))["text"]
        except ShoalError:
            told = ""
        return Response(own + told.encode(), media_type=CONTENT_TYPE_LATEST)


def _reasons(service: Service) -> list[str]:
    """Why the daemon is not ready."""
    try:
        service.view()
    except StoreError as error:
        return [str(error)]
    told = service.status.told
    if told is None:
        return [service.status.reason]
    bounds, found = service.settings.bounds, []
    if told["state"] != "running":
        found.append(
            f"the writer is {told['state']}: {told['reason'] or 'it comes back, or the daemon ends'}"
        )
    if told["stalled_s"] > bounds.progress_timeout_s:
        found.append(f"the writer has been at one batch for {told['stalled_s']:.0f} s")
    if told["oldest_unread_s"] > service.bounds.lag_max_s:
        found.append(f"the oldest record that waits is {told['oldest_unread_s']:.0f} s old")
    return found


def _add_documents(app: FastAPI) -> None:
    """The OpenAPI document, the page that shows it, and the page itself."""
    document: dict[str, Any] = {}

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        if not document:
            document.update(describe(app))
        return reply(document)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return FileResponse(DOCS / "index.html", headers=ASK_ANEW)

    guide.install(app)
    app.mount("/docs", Files(directory=DOCS, check_dir=False))
    app.mount("/", Files(directory=PAGE, html=True, check_dir=False))


class Files(StaticFiles):
    """A browser asks each time whether it has the right ones: after an upgrade never some old, some new."""

    def file_response(self, *arguments: Any, **named: Any) -> Response:
        response = super().file_response(*arguments, **named)
        response.headers.update(ASK_ANEW)
        return response


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document."""
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
