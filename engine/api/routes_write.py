"""Routes under /v1 that the writer answers: assign, explain and, with `[source] http`, writes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from engine.api import bodies, ndjson, responses
from engine.api.context import Config, Reader, Writer
from engine.api.parameters import Key, Level, missing
from engine.api.problems import Problem, documented
from engine.api.replies import reply
from engine.api.responses import AssignRequest, PutRequest
from engine.api.store_reader import StoreReader
from engine.api.writer_client import WriterClient
from engine.streams import Body
from engine.types import Float32

NDJSON_EXAMPLE = '{"key": "a", "embedding": [0.1, 0.9]}\n{"key": "b", "delete": true}\n'

router = APIRouter(prefix="/v1")


def _forwarded(*kinds: str) -> dict[int | str, dict[str, Any]]:
    return documented("not-ready", "damaged", "writer-busy", "writer-away", *kinds)


def _body(kind: str, content: dict[str, Any]) -> dict[str, Any]:
    """Documents a body that the handler reads itself, within bounds."""
    return {"requestBody": {"required": True, "content": {kind: content}}}


def _json_body(model: type[BaseModel]) -> dict[str, Any]:
    return _body("application/json", {"schema": model.model_json_schema()})


async def _check_writes_on(settings: Config) -> None:
    if not settings.source.http:
        raise Problem("writes-off", "This collection is not fed over HTTP ([source] http).")


WRITES = [Depends(_check_writes_on)]


@router.get(
    "/items/{key:path}/explain",
    response_model=responses.Explanation,
    responses=_forwarded("bad-key", "no-such-item"),
    tags=["queries"],
)
async def explain(reader: Reader, writer: Writer, key: Key, level: Level = None) -> Response:
    """Why an item is where it is: neighbours, linkage, densities, the chain of links, level by level."""
    with missing("no-such-item"):
        answer = await writer.call("explain", {"key": key, "level": level})
    return reply({"collection": reader.view().collection, **answer})


@router.post(
    "/assign",
    response_model=responses.Assigned,
    responses=_forwarded("bad-json", "wrong-type"),
    openapi_extra=_json_body(AssignRequest),
    tags=["queries"],
)
async def assign(request: Request, settings: Config, reader: Reader, writer: Writer) -> Response:
    """Where vectors would go, were they inserted; nothing changes.

    The cluster of the most probable linkage above tau, or "new".
    """
    bounds = settings.api
    found = await bodies.document(request, bounds.body_max_bytes, bounds.patience_s)
    given = bodies.fields(AssignRequest, found)
    if len(given) != 1:
        raise Problem("invalid", "Give either `embedding`, one vector, or `embeddings`, a list of them.")
    rows = [given["embedding"]] if "embedding" in given else given["embeddings"]
    vectors = bodies.matrix(rows, bounds.assign_max, reader.view().dim)
    answer = await writer.call("assign", {}, vectors)
    return reply({"collection": reader.view().collection, **answer})


@router.put(
    "/items/{key:path}",
    response_model=responses.Written,
    responses=_forwarded("bad-key", "bad-json", "wrong-type", "writes-off"),
    openapi_extra=_json_body(PutRequest),
    dependencies=WRITES,
    tags=["writes"],
)
async def put(request: Request, settings: Config, reader: Reader, writer: Writer, key: Key) -> Response:
    """Insert an item, or give it another vector; answered once it is durable."""
    found = await bodies.document(request, settings.api.body_max_bytes, settings.api.patience_s)
    given = bodies.fields(PutRequest, found)
    vectors = bodies.matrix([given["embedding"]], 1, None)
    body = {"keys": [key], "rows": [0], "payloads": [given.get("payload")], "times": [given.get("time")]}
    return reply(await _submit_one(reader, writer, body, vectors))


@router.delete(
    "/items/{key:path}",
    response_model=responses.Written,
    responses=_forwarded("bad-key", "writes-off"),
    dependencies=WRITES,
    tags=["writes"],
)
async def delete(reader: Reader, writer: Writer, key: Key) -> Response:
    """Remove an item, if it is there; answered once that is durable."""
    return reply(await _submit_one(reader, writer, {"keys": [key], "rows": [-1]}, None))


@router.post(
    "/items",
    response_model=responses.BulkWritten,
    responses=_forwarded("wrong-type", "writes-off"),
    openapi_extra=_body(ndjson.MEDIA_TYPES[0], {"schema": {"type": "string"}, "example": NDJSON_EXAMPLE}),
    dependencies=WRITES,
    tags=["writes"],
)
async def post_items(request: Request, settings: Config, reader: Reader, writer: Writer) -> Response:
    """Upserts and deletes, one JSON object a line; answered once all of them are durable.

    `{"key": "a", "embedding": [...], "payload": {...}, "time": ms}` or `{"key": "a", "delete": true}`.
    Lines that cannot be used are named in `errors`, and the rest goes on. Where the writer stops in
    between, the problem's `lines` says how many lines are dealt with; to send all of them again is safe.
    """
    return reply(await ndjson.take(request, settings, reader, writer))


async def _submit_one(reader: StoreReader, writer: WriterClient, body: Body, vectors: Float32 | None) -> Body:
    answer = await writer.call("submit", body, vectors)
    for refused in answer["rejected"]:
        raise Problem("invalid", f"{refused['reason']}.")
    return {"collection": reader.view().collection, "version": answer["version"], "written": 1}
