"""Routes under /v1 that the writer answers: assign, explain and, with `[source] http`, writes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from engine.api import bodies, ndjson, responses
from engine.api.context import Config, Reader, Writer, Writes
from engine.api.problems import Problem, documented
from engine.api.replies import reply
from engine.api.responses import AssignRequest, PutRequest
from engine.api.routes.parameters import Key, Level, body_of, json_body, missing
from engine.api.store_reader import StoreReader
from engine.api.write_queue import WriteQueue
from engine.config import Settings
from engine.records import Parser, Record

NDJSON_EXAMPLE = '{"key": "a", "embedding": [0.1, 0.9]}\n{"key": "b", "delete": true}\n'

router = APIRouter(prefix="/v1")


def _forwarded(*kinds: str) -> dict[int | str, dict[str, Any]]:
    return documented("not-ready", "damaged", "writer-busy", "writer-away", *kinds)


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
    openapi_extra=json_body(AssignRequest),
    tags=["queries"],
)
async def assign(request: Request, settings: Config, reader: Reader, writer: Writer) -> Response:
    """Where vectors would go, were they inserted; nothing changes.

    The cluster of the most probable linkage above tau, or "new".
    """
    bounds = settings.api
    given = bodies.parse_object(await bodies.read(request, bounds.body_max_bytes, bounds.patience_s))
    if given.keys() not in ({"embedding"}, {"embeddings"}):
        raise Problem("invalid", "Give either `embedding`, one vector, or `embeddings`, a list of them.")
    rows = given["embeddings"] if "embeddings" in given else [given["embedding"]]
    vectors = bodies.matrix(rows, bounds.assign_max, reader.view().dim)
    answer = await writer.call("assign", {}, vectors)
    return reply({"collection": reader.view().collection, **answer})


@router.put(
    "/items/{key:path}",
    response_model=responses.Written,
    responses=_forwarded("bad-key", "bad-json", "wrong-type", "writes-off"),
    openapi_extra=json_body(PutRequest),
    dependencies=WRITES,
    tags=["writes"],
)
async def put(request: Request, settings: Config, reader: Reader, writes: Writes, key: Key) -> Response:
    """Insert an item, or give it another vector; answered once it is durable."""
    bounds, parser = settings.api, Parser(settings.limits)
    limit = min(bounds.body_max_bytes, settings.limits.record_max_bytes)
    raw = await bodies.read(request, limit, bounds.patience_s)
    try:
        record = bodies.parse_record(parser, raw, key)
    except Problem:
        writes.rejected += 1
        raise
    written = await _write_one(settings, reader, writes, record)
    return reply({**written, "ignored": list(parser.ignored)})


@router.delete(
    "/items/{key:path}",
    response_model=responses.Written,
    responses=_forwarded("bad-key", "writes-off"),
    dependencies=WRITES,
    tags=["writes"],
)
async def delete(settings: Config, reader: Reader, writes: Writes, key: Key) -> Response:
    """Remove an item; answered once that is durable. `written` is 0 where there was none."""
    return reply(await _write_one(settings, reader, writes, Record(key.encode(), None)))


@router.post(
    "/items",
    response_model=responses.BulkWritten,
    responses=_forwarded("wrong-type", "writes-off"),
    openapi_extra=body_of(ndjson.MEDIA_TYPES[0], {"schema": {"type": "string"}, "example": NDJSON_EXAMPLE}),
    dependencies=WRITES,
    tags=["writes"],
)
async def post_items(request: Request, settings: Config, reader: Reader, writes: Writes) -> Response:
    """Upserts and deletes, one JSON object a line; answered once all of them are durable.

    `{"key": "a", "embedding": [...], "payload": {...}, "time": ms}` or `{"key": "a", "delete": true}`.
    Lines that cannot be used are named in `errors`, and the rest goes on. Where the writer stops in
    between, the problem's `lines` says how many lines are dealt with; to send all of them again is safe.
    """
    return reply(await ndjson.take(request, settings, reader, writes))


async def _write_one(
    settings: Settings, reader: StoreReader, writes: WriteQueue, record: Record
) -> responses.Written:
    outcome = await writes.submit([record], settings.api.bulk_timeout_s)
    for reason in outcome.rejected.values():
        raise Problem("invalid", f"{reason}.")
    return {
        "collection": reader.view().collection,
        "version": outcome.version,
        "written": outcome.written(1),
        "doubts": list(outcome.doubts.values()),
        "ignored": [],
    }
