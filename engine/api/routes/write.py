"""Routes under /v1 for many items that the writer answers: assign and, with `[source] http`, writes."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from engine.api import bodies, ndjson, responses
from engine.api.context import Config, Reader, Writes, context_of
from engine.api.problems import Problem
from engine.api.replies import reply
from engine.api.responses import AssignRequest
from engine.api.routes.parameters import WRITES, body_of, forwarded, json_body
from engine.api.routes.strict_route import StrictRoute
from engine.errors import shown

NDJSON_EXAMPLE = '{"key": "a", "embedding": [0.1, 0.9]}\n{"key": "b", "delete": true}\n'

router = APIRouter(prefix="/v1", route_class=StrictRoute)


@router.post(
    "/assign",
    response_model=responses.Assigned,
    responses=forwarded("bad-json", "wrong-type"),
    openapi_extra=json_body(AssignRequest),
    tags=["queries"],
)
async def assign(request: Request) -> Response:
    """Where vectors would go, were they inserted; nothing changes.

    The cluster of the most probable linkage above tau, or "new".
    """
    context = context_of(request)
    bounds = context.settings.api
    given = bodies.parse_object(await bodies.read(request, bounds.body_max_bytes, bounds.patience_s))
    either = "either `embedding`, one vector, or `embeddings`, a list of them"
    if unknown := given.keys() - {"embedding", "embeddings"}:
        raise Problem("invalid", f"{shown(min(unknown))} is no field of this request: give {either}.")
    if len(given) != 1:
        raise Problem("invalid", f"Give {either}.")
    rows = given["embeddings"] if "embeddings" in given else [given["embedding"]]
    view = context.reader.view()
    vectors = bodies.matrix(rows, bounds.assign_max, view.dim)
    answer = await context.writer.call("assign", {}, vectors)
    return reply({"collection": view.collection, **answer})


@router.post(
    "/items",
    response_model=responses.BulkWritten,
    responses=forwarded("wrong-type", "writes-off"),
    openapi_extra=body_of(ndjson.MEDIA_TYPES[0], {"schema": {"type": "string"}, "example": NDJSON_EXAMPLE}),
    dependencies=WRITES,
    tags=["writes"],
)
async def post_items(request: Request, settings: Config, reader: Reader, writes: Writes) -> Response:
    """Upserts and deletes, one JSON object a line; answered once all of them are durable.

    `{"key": "a", "embedding": [...], "payload": {...}, "time": ms}` or `{"key": "a", "delete": true}`.
    Lines that cannot be used are listed in `errors`, the others are written. Where the writer stops in
    between, the problem's `lines` says how many lines are dealt with; to send all of them again is safe.
    """
    return reply(await ndjson.take(request, settings, reader, writes))
