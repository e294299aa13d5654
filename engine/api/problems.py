"""Errors as RFC 9457 problem documents: what is wrong (`detail`) and what to do about it (`do`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from engine.errors import (
    CorruptStore,
    InputError,
    NotFound,
    ShoalError,
    StoreError,
    WriterAway,
    WriterBusy,
)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
LOG = logging.getLogger(__name__)


NO_SUCH_ITEM = "Check the key; the item may not be ingested yet, or was deleted."


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem; its `type` is `urn:shoal:problem:<name>`."""

    name: str
    status: int
    title: str
    do: str

    @property
    def type(self) -> str:
        return f"urn:shoal:problem:{self.name}"


KINDS = {
    kind.name: kind
    for kind in (
        Kind("bad-request", 400, "Bad request", "Correct what `detail` names and send it again."),
        Kind("bad-key", 400, "Invalid key", "Percent-encode a key of 1 to 511 bytes of UTF-8."),
        Kind(
            "bad-json",
            400,
            "Malformed JSON",
            "Send one JSON document in UTF-8; NaN and Infinity are not JSON.",
        ),
        Kind("no-key", 401, "API key missing or invalid", "Send `Authorization: Bearer KEY`."),
        Kind("wrong-host", 403, "Host not allowed", "Use 127.0.0.1 or localhost in the URL."),
        Kind("writes-off", 403, "Writes disabled", "Set `[source] http = true`, or write to its source."),
        Kind("not-found", 404, "Not found", "See /docs for the available paths."),
        Kind("no-such-item", 404, "Item not found", NO_SUCH_ITEM),
        Kind("no-such-cluster", 404, "Cluster not found", "List current clusters with GET /v1/clusters."),
        Kind("wrong-method", 405, "Method not allowed", "Use a method that the header Allow names."),
        Kind("too-slow", 408, "Request timeout", "Send it again, in one go or in smaller pieces."),
        Kind(
            "stale-cursor",
            410,
            "Cursor expired",
            "Read the clusters or items you need again, then go on with this answer's `cursor` as `after`.",
        ),
        Kind(
            "too-large",
            413,
            "Content too large",
            "Send less at once, or raise the bound that `detail` names.",
        ),
        Kind("wrong-type", 415, "Unsupported media type", "Send the Content-Type `detail` names."),
        Kind("invalid", 422, "Invalid request", "Correct what `detail` names and send it again."),
        Kind("damaged", 500, "Store damaged", "Run `shoal check`; restore a backup."),
        Kind("bug", 500, "Internal error", "See the daemon's log, and report it."),
        Kind("busy", 503, "Server busy", "Retry after Retry-After seconds."),
        Kind("writer-busy", 503, "Writer busy", "Retry after Retry-After seconds."),
        Kind("writer-away", 503, "Writer unavailable", "Retry; if it persists, check the writer's log."),
        Kind("not-ready", 503, "Not ready", "Retry after Retry-After seconds."),
    )
}


_OF_ERRORS: dict[type[ShoalError], str] = {  # the first that fits
    InputError: "invalid",
    WriterAway: "writer-away",
    WriterBusy: "writer-busy",
    CorruptStore: "damaged",
    StoreError: "not-ready",
}


class Problem(Exception):
    """Ends a request with a problem document. `extra`: further members of it."""

    def __init__(self, kind: str, detail: str, do: str | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.do, self.extra = KINDS[kind], detail, do, extra
        self.headers: Mapping[str, str] = {}  # of the response


class ProblemDocument(BaseModel):
    """What went wrong, and what to do about it."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:shoal:problem:no-such-item",
                    "title": "Item not found",
                    "status": 404,
                    "detail": "no item has the key 'a'",
                    "do": NO_SUCH_ITEM,
                }
            ]
        },
    )
    type: str = Field(pattern="^urn:shoal:problem:[a-z-]+$")
    title: str
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="What is wrong here, in one sentence.")
    do: str = Field(description="What to do about it.")


def respond(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    kind = problem.kind
    body = {
        "type": kind.type,
        "title": kind.title,
        "status": kind.status,
        "detail": problem.detail,
        "do": problem.do or kind.do,
        **problem.extra,
    }
    sent = {"cache-control": "no-store", **_headers(kind), **(headers or {})}
    return Response(orjson.dumps(body), kind.status, sent, MEDIA_TYPE)


def of_error(error: ShoalError, missing: str = "not-found") -> Problem:
    """Return the problem of an error. `missing`: the kind for NotFound."""
    if isinstance(error, NotFound):
        return Problem(missing, str(error))
    for kind, name in _OF_ERRORS.items():
        if isinstance(error, kind):
            return Problem(name, str(error))
    return Problem("bug", str(error))


def documented(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route: these kinds and those of any request."""
    always = ("bad-request", "no-key", "wrong-host", "too-slow", "too-large", "invalid", "bug", "busy")
    titles: dict[int, list[str]] = {}
    for name in (*always, *kinds):
        titles.setdefault(KINDS[name].status, []).append(KINDS[name].title)
    schema = {"$ref": "#/components/schemas/ProblemDocument"}
    return {
        status: {"description": "; ".join(words), "content": {MEDIA_TYPE: {"schema": schema}}}
        for status, words in sorted(titles.items())
    }


def install(app: FastAPI) -> None:
    """Install handlers that turn every error of the application into a problem document."""

    def handle(kind: type[Exception], told: Callable[[Any], Problem]) -> None:
        async def handler(request: Request, error: Exception) -> Response:
            problem = told(error)
            if problem.kind.status == 500:
                LOG.error("%s %s: %s", request.method, request.url.path, error)
            return respond(problem, getattr(error, "headers", None))

        app.add_exception_handler(kind, handler)

    handle(Problem, lambda problem: problem)
    handle(ShoalError, of_error)
    handle(RequestValidationError, _of_validation)
    handle(HTTPException, _of_http)
    handle(Exception, lambda error: Problem("bug", "Unexpected error; the daemon's log has details."))


def _headers(kind: Kind) -> dict[str, str]:
    if kind.status == 503:
        return {"retry-after": str(RETRY_AFTER_S)}
    if kind.status == 401:
        return {"www-authenticate": 'Bearer realm="shoal"'}
    if kind.status in (408, 413):
        return {"connection": "close"}  # what is left of the body is not waited for
    return {}


def _of_validation(error: RequestValidationError) -> Problem:
    found = [
        {"at": ".".join(str(part) for part in one["loc"]), "reason": one["msg"]} for one in error.errors()
    ]
    return Problem("invalid", f"{found[0]['at']}: {found[0]['reason']}", errors=found)


def _of_http(error: HTTPException) -> Problem:
    if error.status_code == 404:
        return Problem("not-found", "There is nothing under this path.")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return Problem("wrong-method", f"This path takes {allowed or 'other methods'}.")
    return Problem("bad-request", str(error.detail))
