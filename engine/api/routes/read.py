"""GET routes under /v1 that the store answers: items, clusters, levels, changes, the map."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response

from engine.api import event_stream, responses
from engine.api.context import Config, Log, Map, Reader, Streams, Writer
from engine.api.follower import Follower
from engine.api.problems import Problem, documented
from engine.api.replies import IfChanged, reply
from engine.api.routes.parameters import Cursor, Id, Key, Level, PageSize, missing
from engine.storage.reader import View
from engine.streams import Body

HISTORY_EVENTS = 100
PLACE = r"^\d{1,18}-\d{1,9}$"

router = APIRouter(prefix="/v1", tags=["queries"])


def _read(*kinds: str) -> dict[int | str, dict[str, Any]]:
    unchanged: dict[int | str, dict[str, Any]] = {304: {"description": "As the ETag given"}}
    return unchanged | documented("not-ready", "damaged", *kinds)


@router.get("/summary", response_model=responses.Summary, responses=_read())
async def summary(reader: Reader, writer: Writer, log: Log, settings: Config) -> Response:
    """Counts, the version, the place in the event log, and the writer's status."""

    def query(view: View) -> Body:
        head = view.head()
        return {
            **view.summary(),
            "dim": view.dim,
            "cursor": f"{head.place[0]}-{head.place[1]}",
            "window": _window(log),
            "writes": settings.source.http,
            "writer": writer.status.told,
        }

    return reply(await reader.read(query))


@router.get("/levels", response_model=responses.Levels, responses=_read())
async def levels(if_changed: IfChanged) -> Response:
    """How many clusters each level has."""
    return await if_changed.answer(lambda view: view.levels())


@router.get("/clusters", response_model=responses.ClusterPage, responses=_read("not-ready"))
async def clusters(
    log: Log,
    limit: PageSize,
    if_changed: IfChanged,
    order: Annotated[Literal["size", "growth", "newest"], Query()] = "size",
    level: Level = None,
    cursor: Cursor = None,
) -> Response:
    """Clusters: the largest, the fastest growing or the newest first.

    By growth: the final clusters whose members changed in `window`.
    """
    if order != "growth":
        return await if_changed.answer(
            lambda view: _with_growth(log, {**view.clusters(level, order, cursor, limit)})
        )
    if level is not None:
        raise Problem("invalid", "Growth is counted of final clusters: leave `level` out.")
    if not log.ready:
        raise Problem("not-ready", "Growth is still being counted.")
    place = _growth_place(cursor)
    return await if_changed.answer(lambda view: _growing(log, view, place, limit))


@router.get("/clusters/{cluster}", response_model=responses.Cluster, responses=_read("no-such-cluster"))
async def cluster(log: Log, if_changed: IfChanged, cluster: Id) -> Response:
    """A cluster and its history; of an ended one, also where its members went."""

    def query(view: View) -> Body:
        found = view.cluster(cluster)
        return {
            **found,
            "growth": log.growth_of(cluster) if found["parent"] is None else None,
            "history": view.events(log.history.of(cluster, HISTORY_EVENTS)),
            "history_from": log.history.since if log.ready else None,
        }

    with missing("no-such-cluster"):
        return await if_changed.answer(query)


@router.get(
    "/clusters/{cluster}/items", response_model=responses.MemberPage, responses=_read("no-such-cluster")
)
async def members(
    settings: Config, limit: PageSize, if_changed: IfChanged, cluster: Id, cursor: Cursor = None
) -> Response:
    """The items of a cluster, with their payloads."""
    payload_bytes = settings.api.page_payload_bytes
    with missing("no-such-cluster"):
        return await if_changed.answer(lambda view: view.members(cluster, cursor, limit, payload_bytes))


@router.get("/map", response_model=responses.Map, responses=_read())
async def cluster_map(reader: Reader, atlas: Map) -> Response:
    """The largest clusters in two dimensions, similar ones near each other."""
    return reply(await reader.read(atlas.answer), {"cache-control": "no-cache"})


@router.get(
    "/changes", response_model=responses.Changes, responses=_read("stale-cursor") | event_stream.DOCUMENTED
)
async def changes(
    request: Request,
    reader: Reader,
    streams: Streams,
    limit: PageSize,
    after: Annotated[
        str | None, Query(pattern=PLACE, description="An event's id, or the cursor of the page before.")
    ] = None,
    kind: Annotated[Literal["items", "clusters", "rejects"] | None, Query(description="None: all.")] = None,
    last: Annotated[
        str | None, Header(alias="Last-Event-ID", description="As `after`, of a stream that goes on.")
    ] = None,
) -> Response:
    """The event log: a page of JSON, or, with `Accept: text/event-stream`, server-sent events.

    A page begins with the oldest event there is, a stream with the next one to come, unless `after` or
    Last-Event-ID says otherwise. Each event's id, given as `after`, leads to the event that follows it, so
    that nothing is missed or repeated, whichever process restarts.
    """
    if "text/event-stream" in request.headers.get("accept", ""):
        return streams.respond(event_stream.place_of(last or after), kind)
    place = event_stream.place_of(after)
    page = await reader.read(lambda view: event_stream.page(view, place, limit, kind))
    return reply(page, {"cache-control": "no-cache"})


# Last of its prefix: a key may hold slashes.
@router.get("/items/{key:path}", response_model=responses.Item, responses=_read("bad-key", "no-such-item"))
async def item(if_changed: IfChanged, key: Key, level: Level = None) -> Response:
    """The cluster that an item is in now."""
    with missing("no-such-item"):
        return await if_changed.answer(lambda view: view.item(key, level), inline=True)


def _window(log: Follower) -> Body:
    window = log.growth.window
    return {"from_version": window.first, "to_version": window.last, "seconds": window.seconds}


def _with_growth(log: Follower, page: Body) -> Body:
    for row in page["clusters"]:
        row["growth"] = log.growth_of(row["cluster"]) if row["parent"] is None else None
    return {**page, "window": _window(log)}


def _growing(log: Follower, view: View, place: tuple[int, int] | None, limit: int) -> Body:
    growth = log.growth
    ranked = [
        cluster
        for cluster in growth.ranked()
        if place is None or (-growth.of(cluster), cluster) >= (-place[0], place[1])
    ]
    version, rows = view.final(ranked, limit + 1)
    following = rows[limit]["cluster"] if len(rows) > limit else None
    page = {
        "collection": view.collection,
        "version": version,
        "clusters": rows[:limit],
        "cursor": None if following is None else f"{growth.of(following)}:{following}",
    }
    return _with_growth(log, page)


def _growth_place(cursor: str | None) -> tuple[int, int] | None:
    if cursor is None:
        return None
    found = re.fullmatch(r"(-?\d{1,18}):(\d{1,18})", cursor)
    if not found:
        raise Problem(
            "invalid", f"{cursor!r} is not the cursor of a page by growth: begin again without one."
        )
    return int(found[1]), int(found[2])
