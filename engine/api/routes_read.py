"""The questions that the store answers: items, clusters, levels, changes, the map."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request, Response

from engine.api import bodies, event_stream, responses
from engine.api.context import Body, Service, reply
from engine.api.problems import Problem, documented, of_error
from engine.errors import NotFound
from engine.storage.reader import View

HISTORY_EVENTS = 100
MAX_ID = 2**63 - 1
PLACE = r"^\d{1,18}-\d{1,9}$"

Key = Annotated[
    str,
    Path(
        description="Percent-encoded; a slash in it as %2F.",
        openapi_examples={"plain": {"value": "articles:7"}, "slash": {"value": "shop%2Fshoes%2F7"}},
    ),
]
Id = Annotated[int, Path(ge=1, le=MAX_ID, openapi_examples={"one": {"value": 42}})]
Level = Annotated[
    int | None,
    Query(ge=0, le=64, description="0 is the finest; none, or beyond the top: final clusters."),
]
Cursor = Annotated[str | None, Query(max_length=64, description="Of the page before.")]
Limit = Annotated[int, Query(ge=1, le=10_000, description="Entries on a page; [api] page_max caps it.")]
Known = Annotated[str | None, Header(alias="If-None-Match", description="An ETag; 304 if it still holds.")]


def router(service: Service) -> APIRouter:
    """The routes under /v1 that only read."""
    routes = APIRouter(prefix="/v1", tags=["queries"])
    most = service.bounds.page_max

    @routes.get("/summary", response_model=responses.Summary, responses=_read())
    async def summary() -> Response:
        """What there is, of which version, and where the event log stands."""
        return reply(await service.read(lambda view: _summary(service, view)))

    @routes.get("/levels", response_model=responses.Levels, responses=_read())
    async def levels(request: Request, known: Known = None) -> Response:
        """How many clusters each level has."""
        return await service.answer(request, lambda view: view.levels())

    @routes.get("/clusters", response_model=responses.ClusterPage, responses=_read("not-ready"))
    async def clusters(
        request: Request,
        order: Annotated[Literal["size", "growth", "newest"], Query()] = "size",
        level: Level = None,
        cursor: Cursor = None,
        limit: Limit = 100,
        known: Known = None,
    ) -> Response:
        """Clusters: the largest, the fastest growing or the newest first.

        By growth there are those whose members changed in `window`, of the final ones alone.
        """
        if order != "growth":
            return await service.answer(
                request,
                lambda view: _with_growth(service, view.clusters(level, order, cursor, min(limit, most))),
            )
        if level is not None:
            raise Problem("invalid", "Growth is counted of final clusters: leave `level` out.")
        if not service.tail.ready:
            raise Problem("not-ready", "Growth is still being counted.")
        place = _growth_place(cursor)
        return await service.answer(request, lambda view: _growing(service, view, place, min(limit, most)))

    @routes.get("/clusters/{cluster}", response_model=responses.Cluster, responses=_read("no-such-cluster"))
    async def cluster(request: Request, cluster: Id, known: Known = None) -> Response:
        """A cluster and its past; of one that has ended, also where its members went."""
        with missing("no-such-cluster"):
            return await service.answer(request, lambda view: _cluster(service, view, cluster))

    @routes.get(
        "/clusters/{cluster}/items", response_model=responses.MemberPage, responses=_read("no-such-cluster")
    )
    async def members(
        request: Request,
        cluster: Id,
        cursor: Cursor = None,
        limit: Limit = 100,
        known: Known = None,
    ) -> Response:
        """The items of a cluster, with their payloads."""
        payloads = service.bounds.page_payload_bytes
        with missing("no-such-cluster"):
            return await service.answer(
                request, lambda view: view.members(cluster, cursor, min(limit, most), payloads)
            )

    @routes.get("/map", response_model=responses.Map, responses=_read())
    async def atlas(request: Request) -> Response:
        """The largest clusters in two dimensions, alike ones near each other."""
        return reply(await service.read(service.atlas.answer), {"cache-control": "no-cache"})

    @routes.get(
        "/changes",
        response_model=responses.Changes,
        responses=_read("stale-cursor") | event_stream.DOCUMENTED,
    )
    async def changes(
        request: Request,
        after: Annotated[
            str | None,
            Query(pattern=PLACE, description="An event's id, or the cursor of the page before."),
        ] = None,
        kind: Annotated[
            Literal["items", "clusters", "rejects"] | None, Query(description="None: all.")
        ] = None,
        limit: Limit = 100,
        last: Annotated[
            str | None, Header(alias="Last-Event-ID", description="As `after`, of a stream that goes on.")
        ] = None,
    ) -> Response:
        """The event log: a page of JSON, or, with `Accept: text/event-stream`, server-sent events.

        A page begins with the oldest event there is, a stream with the next one to come, unless `after` or
        Last-Event-ID says otherwise. Each event's id, given as `after`, leads to the one behind it, so that
        nothing is missed or repeated, whichever process restarts.
        """
        if "text/event-stream" in request.headers.get("accept", ""):
            return event_stream.respond(service, event_stream.place_of(last or after), kind)
        place = event_stream.place_of(after)
        page = await service.read(lambda view: event_stream.page(view, place, min(limit, most), kind))
        return reply(page, {"cache-control": "no-cache"})

    # After the others: a key is all that follows.
    @routes.get(
        "/items/{key:path}", response_model=responses.Item, responses=_read("bad-key", "no-such-item")
    )
    async def item(request: Request, key: Key, level: Level = None, known: Known = None) -> Response:
        """The cluster that an item is in now."""
        name = bodies.item_key(key, service.settings.bounds.key_max_bytes)
        with missing("no-such-item"):
            return await service.answer(request, lambda view: view.item(name, level), inline=True)

    return routes


@contextmanager
def missing(kind: str) -> Iterator[None]:
    """What is not found is a problem of this kind."""
    try:
        yield
    except NotFound as error:
        raise of_error(error, kind) from None


def _read(*kinds: str) -> dict[int | str, dict[str, Any]]:
    unchanged: dict[int | str, dict[str, Any]] = {304: {"description": "As the ETag given"}}
    return unchanged | documented("not-ready", "damaged", *kinds)


def _summary(service: Service, view: View) -> Body:
    head, told = view.head(), view.summary()
    return {
        **told,
        "dim": view.dim,
        "cursor": f"{head.place[0]}-{head.place[1]}",
        "window": service.window(),
        "writes": service.settings.source.http,
        "writer": service.status.told,
    }


def _with_growth(service: Service, page: Body) -> Body:
    for row in page["clusters"]:
        row["growth"] = service.growth(row["cluster"]) if row["parent"] is None else None
    return {**page, "window": service.window()}


def _growing(service: Service, view: View, place: tuple[int, int] | None, limit: int) -> Body:
    growth = service.tail.growth
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
    return _with_growth(service, page)


def _growth_place(cursor: str | None) -> tuple[int, int] | None:
    if cursor is None:
        return None
    found = re.fullmatch(r"(-?\d{1,18}):(\d{1,18})", cursor)
    if not found:
        raise Problem(
            "invalid", f"{cursor!r} is not the cursor of a page by growth: begin again without one."
        )
    return int(found[1]), int(found[2])


def _cluster(service: Service, view: View, cluster: int) -> Body:
    found = view.cluster(cluster)
    history = service.tail.history
    return {
        **found,
        "growth": service.growth(cluster) if found["parent"] is None else None,
        "history": view.events(history.of(cluster, HISTORY_EVENTS)),
        "history_from": history.since if service.tail.ready else None,
    }
