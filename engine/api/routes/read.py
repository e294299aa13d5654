"""GET routes under /v1 that the store answers: items, clusters, levels, changes, the map."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response

from engine.api import bodies, event_stream, responses, theme_responses
from engine.api.context import Config, Exporting, Log, Map, Reader, Streams, Themed, Writer
from engine.api.exports import ExportResponse
from engine.api.follower import Follower
from engine.api.problems import Problem, documented
from engine.api.replies import IfChanged, reply
from engine.api.routes.parameters import (
    AnyLevel,
    Cursor,
    Id,
    Level,
    PageSize,
    Place,
    ThemeLevel,
    json_body,
    missing,
    of_store,
)
from engine.api.routes.strict_route import StrictRoute
from engine.events import format_event_id
from engine.levels import step_of, within
from engine.storage import answers
from engine.storage.reader import View

HISTORY_EVENTS = 100
NDJSON, PARQUET = "application/x-ndjson", "application/vnd.apache.parquet"

router = APIRouter(prefix="/v1", route_class=StrictRoute, tags=["queries"])


@router.get("/summary", response_model=responses.Summary, responses=of_store())
async def summary(reader: Reader, writer: Writer, log: Log, settings: Config) -> Response:
    """Counts, the version, the place in the event log, and the writer's status."""

    def query(view: View) -> responses.Summary:
        head = view.head()
        return {
            **view.summary(),
            "dim": view.dim,
            "cursor": format_event_id(head.place),
            "window": _window(log),
            "writes": settings.source.http,
            "writer": writer.status.told,
        }

    return reply(await reader.read(query))


@router.get("/levels", response_model=responses.Levels, responses=of_store())
async def levels(settings: Config, if_changed: IfChanged) -> Response:
    """How many clusters each level has; and the levels of themes above."""
    coarser = [{"level": f"+{at + 1}", "tau": tau} for at, tau in enumerate(settings.model.coarser)]
    return await if_changed.answer(lambda view: {**view.levels(), "coarser": coarser})


@router.get(
    "/clusters",
    response_model=responses.ClusterPage | theme_responses.ThemePage,
    responses=of_store("writer-busy", "writer-away"),
)
async def clusters(
    log: Log,
    limit: PageSize,
    if_changed: IfChanged,
    themes: Themed,
    order: Annotated[Literal["size", "growth", "newest"], Query()] = "size",
    level: AnyLevel = None,
    cursor: Cursor = None,
) -> Response:
    """Clusters: the largest, the fastest growing or the newest first.

    By growth: the final clusters whose members changed in `window`. Above the final clusters: themes.
    """

    def query(view: View) -> responses.ClusterPage:
        page = view.clusters(within(level), order, cursor, limit)
        return {
            "collection": page["collection"],
            "version": page["version"],
            "clusters": _with_growth(log, page["clusters"]),
            "cursor": page["cursor"],
            "window": _window(log),
        }

    if order != "growth":
        if step := step_of(level):
            grouping = await themes.at(step)
            return await if_changed.answer(lambda view: view.themes(grouping, step, order, cursor, limit))
        return await if_changed.answer(query)
    if level is not None:
        raise Problem("invalid", "Growth is counted of final clusters: leave `level` out.")
    if not log.ready:
        raise Problem("not-ready", "Growth is still being counted.")
    place = _growth_place(cursor)
    return await if_changed.answer(lambda view: _by_growth(log, view, place, limit))


@router.get(
    "/clusters/{cluster}",
    response_model=responses.Cluster | theme_responses.Theme,
    responses=of_store("no-such-cluster", "writer-busy", "writer-away"),
)
async def cluster(
    log: Log, if_changed: IfChanged, themes: Themed, cluster: Id, level: ThemeLevel = None
) -> Response:
    """A cluster and its history; of an ended one, also where its members went.

    With a level above the final clusters: the theme that this final cluster is in.
    """

    def query(view: View) -> responses.Cluster:
        found = view.cluster(cluster)
        return {
            **found,
            "growth": log.growth_of(cluster) if found["parent"] is None else None,
            "history": view.events(log.history.of(cluster, HISTORY_EVENTS)),
            "history_from": log.history.since if log.ready else None,
        }

    with missing("no-such-cluster"):
        if step := step_of(level):
            grouping = await themes.at(step)
            return await if_changed.answer(lambda view: view.theme(grouping, step, cluster))
        return await if_changed.answer(query)


@router.get(
    "/clusters/{cluster}/items", response_model=responses.MemberPage, responses=of_store("no-such-cluster")
)
async def members(
    settings: Config, limit: PageSize, if_changed: IfChanged, cluster: Id, cursor: Cursor = None
) -> Response:
    """The items of a cluster, with their payloads."""
    payload_bytes = settings.api.page_payload_bytes
    with missing("no-such-cluster"):
        return await if_changed.answer(lambda view: view.members(cluster, cursor, limit, payload_bytes))


@router.get("/map", response_model=responses.Map, responses=of_store())
async def cluster_map(reader: Reader, atlas: Map) -> Response:
    """The largest clusters in two dimensions, similar ones near each other."""
    return reply(await reader.read(atlas.answer), {"cache-control": "no-cache"})


@router.get(
    "/changes", response_model=responses.Changes, responses=of_store("stale-cursor") | event_stream.DOCUMENTED
)
async def changes(
    request: Request,
    reader: Reader,
    streams: Streams,
    limit: PageSize,
    after: Place = None,
    kind: Annotated[Literal["items", "clusters", "rejects"] | None, Query(description="None: all.")] = None,
    last: Annotated[
        str | None, Header(alias="Last-Event-ID", description="As `after`, and counts before it.")
    ] = None,
) -> Response:
    """The event log: a page of JSON, or, with `Accept: text/event-stream`, server-sent events.

    A page begins with the oldest event there is, a stream with the next one to come, unless `after` or
    Last-Event-ID says otherwise. Each event's id, given as `after`, leads to the event that follows it, so
    that nothing is missed or repeated, whichever process restarts.
    """
    place = event_stream.place_of(last or after)
    if "text/event-stream" in request.headers.get("accept", ""):
        return streams.respond(place, kind)
    page = await reader.read(lambda view: event_stream.page(view, place, limit, kind))
    return reply(page, {"cache-control": "no-cache"})


@router.post(
    "/items:lookup",
    response_model=responses.Lookup | theme_responses.ThemeLookup,
    responses=documented("not-ready", "damaged", "bad-json", "wrong-type", "writer-busy", "writer-away"),
    openapi_extra=json_body(responses.LookupRequest),
)
async def lookup(request: Request, reader: Reader, settings: Config, themes: Themed) -> Response:
    """Many items of one version, in the order of `keys`; those without an item are named in `missing`."""
    bounds = settings.api
    given = bodies.parse(
        responses.LookupRequest, await bodies.read(request, bounds.body_max_bytes, bounds.patience_s)
    )
    if len(given.keys) > bounds.lookup_max:
        raise Problem(
            "too-large",
            f"{len(given.keys)} keys in one request, at most {bounds.lookup_max} are allowed "
            "([api] lookup_max).",
        )
    try:
        keys = [str(key).encode() for key in given.keys]
    except UnicodeEncodeError:
        raise Problem("invalid", "keys: one of them is not valid Unicode.") from None
    payload_bytes = bounds.lookup_payload_bytes
    if step := step_of(given.level):
        grouping = await themes.at(step)
        return reply(await reader.read(lambda view: view.theme_lookup(grouping, step, keys, payload_bytes)))
    return reply(await reader.read(lambda view: view.lookup(keys, within(given.level), payload_bytes)))


EXPORTED: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            NDJSON: {
                "schema": {"type": "string"},
                "example": '{"key":"articles:7","cluster":42,"path":[42,9],"version":17}\n',
            },
            PARQUET: {"schema": {"type": "string", "format": "binary"}},
        },
        "headers": {
            "Shoal-Version": {"schema": {"type": "integer"}},
            "Shoal-Collection": {"schema": {"type": "string"}, "description": "Percent-encoded."},
        },
    }
}


@router.get("/assignments", response_class=Response, responses=documented("not-ready", "damaged") | EXPORTED)
async def assignments(
    exports: Exporting,
    reader: Reader,
    form: Annotated[Literal["ndjson", "parquet"], Query(alias="format")] = "ndjson",
    level: Level = None,
) -> Response:
    """The cluster of every item, of one version, as NDJSON or Parquet, by rising key.

    An export that fails in the middle ends the connection without the end of the body.
    """
    reader.view()  # where there is none yet, no process is needed to say so
    running = AsyncExitStack()
    export = await running.enter_async_context(exports.run(form, level))
    return ExportResponse(export, running, PARQUET if form == "parquet" else NDJSON)


def _window(log: Follower) -> responses.Window:
    window = log.growth.window
    return {"from_version": window.first, "to_version": window.last, "seconds": window.seconds}


def _with_growth(log: Follower, rows: Iterable[answers.ClusterRow]) -> list[responses.ClusterRow]:
    """Growth is counted of final clusters."""
    return [
        {**row, "growth": log.growth_of(row["cluster"]) if row["parent"] is None else None} for row in rows
    ]


def _by_growth(log: Follower, view: View, place: tuple[int, int] | None, limit: int) -> responses.ClusterPage:
    growth = log.growth
    ranked = [
        cluster
        for cluster in growth.ranked()
        if place is None or (-growth.of(cluster), cluster) >= (-place[0], place[1])
    ]
    version, rows = view.final(ranked, limit + 1)
    following = rows[limit]["cluster"] if len(rows) > limit else None
    return {
        "collection": view.collection,
        "version": version,
        "clusters": _with_growth(log, rows[:limit]),
        "cursor": None if following is None else f"{growth.of(following)}:{following}",
        "window": _window(log),
    }


def _growth_place(cursor: str | None) -> tuple[int, int] | None:
    if cursor is None:
        return None
    found = re.fullmatch(r"(-?\d{1,18}):(\d{1,18})", cursor)
    if not found:
        raise Problem(
            "invalid", f"{cursor!r} is not the cursor of a page by growth: begin again without one."
        )
    return int(found[1]), int(found[2])
