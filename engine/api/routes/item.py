"""Routes of one item: /v1/items/{key}. They are asked most, so the application tries them first."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from engine.api import bodies, responses, theme_responses
from engine.api.context import Config, Reader, Writer, Writes, context_of
from engine.api.problems import Problem
from engine.api.replies import Conditional, Known, reply
from engine.api.responses import PutRequest
from engine.api.routes.parameters import (
    WRITES,
    AnyLevel,
    ItemKey,
    Key,
    Level,
    forwarded,
    json_body,
    missing,
    of_store,
)
from engine.api.routes.strict_route import StrictRoute
from engine.api.store_reader import StoreReader
from engine.api.write_queue import WriteQueue
from engine.config import Settings
from engine.levels import step_of, within
from engine.records import Parser, Record

router = APIRouter(prefix="/v1", route_class=StrictRoute)


@router.get(
    "/items/{key:path}/explain",
    response_model=responses.Explanation,
    responses=forwarded("bad-key", "no-such-item"),
    tags=["queries"],
)
async def explain(reader: Reader, writer: Writer, key: Key, level: Level = None) -> Response:
    """Why an item is where it is: neighbours, linkage, densities, the chain of links, level by level."""
    with missing("no-such-item"):
        answer = await writer.call("explain", {"key": key, "level": level})
    return reply({"collection": reader.view().collection, **answer})


@router.put(
    "/items/{key:path}",
    response_model=responses.Written,
    responses=forwarded("bad-key", "bad-json", "wrong-type", "writes-off"),
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
    responses=forwarded("bad-key", "writes-off"),
    dependencies=WRITES,
    tags=["writes"],
)
async def delete(settings: Config, reader: Reader, writes: Writes, key: Key) -> Response:
    """Remove an item; answered once that is durable. `written` is 0 where there was none."""
    return reply(await _write_one(settings, reader, writes, Record(key.encode(), None)))


@router.get(
    "/items/{key:path}",
    response_model=responses.Item | theme_responses.ThemeItem,
    tags=["queries"],
    responses=of_store("bad-key", "no-such-item", "writer-busy", "writer-away"),
)
async def item(request: Request, key: ItemKey, level: AnyLevel = None, known: Known = None) -> Response:
    """The cluster that an item is in now."""
    context, if_changed = context_of(request), Conditional(request, known)
    key = bodies.item_key(key, context.settings.limits.key_max_bytes)
    with missing("no-such-item"):
        if step := step_of(level):
            grouping = await context.themes.at(step)
            return await if_changed.answer(lambda view: view.theme_item(grouping, step, key))
        return await if_changed.answer(lambda view: view.item(key, within(level)), inline=True)


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
