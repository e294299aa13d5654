"""The event log for those who listen: pages of JSON, and server-sent events that go on where they stopped.

A stream keeps nothing but its place in the log and reads on from there whenever there is a new version. Each
event's id is its place, so a client that comes back with Last-Event-ID, to whichever process, misses nothing
and gets nothing twice. A comment now and then shows that the stream lives, and carries the place forward.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import orjson
from fastapi import Response
from fastapi.responses import StreamingResponse

from engine.api.context import Body, Service
from engine.api.problems import Problem
from engine.errors import ShoalError, StoreError
from engine.events import BEGIN, Place
from engine.storage.reader import Head, View

RETRY_MS = 2000  # a client waits so long before it comes back

DOCUMENTED: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'id: 17-0\ndata: {"event":"merge","cluster":42,"from":[51],"version":17}\n\n',
            }
        }
    }
}


def place_of(text: str | None) -> Place | None:
    """`VERSION-ORDINAL`, as events carry it. Raises Problem."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,18})-(\d{1,9})", text, re.ASCII)
    if not found:
        raise Problem("invalid", f"{text!r:.80} is no event's id; one looks like 12-0.")
    return int(found[1]), int(found[2])


def page(view: View, after: Place | None, limit: int, kind: str | None) -> Body:
    """Raises Problem: the log does not reach back to `after`."""
    if after:
        _check_place(view.head(), after)
    answer = view.changes(after, limit, kind)
    if answer.pop("gap"):
        _check_place(view.head(), after or BEGIN)
    if answer["cursor"] is None:  # nothing has ever happened
        answer["cursor"] = "0-0"
    return answer


def respond(service: Service, after: Place | None, kind: str | None) -> Response:
    """A stream of what comes behind `after`; None: of what comes from now on."""
    head = service.view().head()
    if after:
        _check_place(head, after)
    events = _events(service, head.place if after is None else after, kind)
    return StreamingResponse(
        events,
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


async def _events(service: Service, place: Place, kind: str | None) -> AsyncIterator[bytes]:
    yield b"retry: %d\n%b" % (RETRY_MS, _keep(place))
    while not service.stopping:
        news = service.tail.news
        try:
            view = service.view()
            head = view.head()
            _check_place(head, place)
            text, place, more = service.slices.read(view, head.version, place, kind)
        except (Problem, StoreError) as error:
            yield _farewell(error)
            return
        if text:
            yield text
        if more:
            await asyncio.sleep(0)
            continue
        try:
            await asyncio.wait_for(news.wait(), service.bounds.heartbeat_s)
        except asyncio.TimeoutError:
            yield b": still here\n" + _keep(place)


def _check_place(head: Head, place: Place) -> None:
    """Raises Problem: events behind the place were forgotten, or it is not of this log."""
    if place[0] > head.version:
        detail = f"{place[0]}-{place[1]} is ahead of this store, which has version {head.version}"
    elif place < head.forgot:
        detail = (
            f"the log begins with version {head.oldest}: what follows {place[0]}-{place[1]} was forgotten"
        )
    else:
        return
    raise Problem("stale-cursor", detail + ".", cursor=f"{head.place[0]}-{head.place[1]}")


def _keep(place: Place) -> bytes:
    """An id without data: not an event, but a client remembers it."""
    return b"id: %d-%d\n\n" % place


def _farewell(error: Problem | ShoalError) -> bytes:
    detail = error.detail if isinstance(error, Problem) else str(error)
    return b"event: problem\ndata: %b\n\n" % orjson.dumps({"detail": detail})
