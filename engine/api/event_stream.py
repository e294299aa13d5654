"""The event log over HTTP: pages of JSON, and server-sent events.

A stream keeps nothing but its place in the log, and reads on from there at each new version. An event's id is
its place: a client that reconnects with Last-Event-ID, to whichever process, misses nothing and gets nothing
twice. A comment now and then shows that the stream is alive and moves the place forward.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
from fastapi import Response
from fastapi.responses import StreamingResponse

from engine.api.follower import Follower
from engine.api.problems import Problem
from engine.api.responses import Changes
from engine.api.store_reader import StoreReader
from engine.errors import ShoalError, StoreError
from engine.events import BEGIN, EventId, EventRow, format_event_id, read_event_id
from engine.storage.reader import Head, View

RETRY_MS = 2000  # a client's wait before it reconnects
SLICE_EVENTS = 200  # read and sent at once: about a millisecond
SLICES_KEPT = 16

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


class Slices:
    """The last slices of the log, encoded: streams that are up to date all read the same ones."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, EventId, str | None], tuple[bytes, EventId, bool]] = {}

    def read(self, view: View, version: int, place: EventId, kind: str | None) -> tuple[bytes, EventId, bool]:
        """Return the events after a place, the place after them, and whether there are more."""
        key = version, place, kind
        found = self._kept.get(key)
        if found is None:
            part = view.follow(place, SLICE_EVENTS, kind)
            text = b"".join(_encode(raw.show(view.collection)) for raw in part.events)
            found = self._kept[key] = text, part.place, part.more
            if len(self._kept) > SLICES_KEPT:
                del self._kept[next(iter(self._kept))]
        return found


class EventStreams:
    """Serves streams until stopped."""

    def __init__(self, reader: StoreReader, follower: Follower, heartbeat_s: float) -> None:
        self._reader, self._follower, self._heartbeat_s = reader, follower, heartbeat_s
        self._slices, self._stopping = Slices(), False

    def respond(self, after: EventId | None, kind: str | None) -> Response:
        """Return a stream of the events after `after`; None: of future ones. Raises Problem."""
        head = self._reader.view().head()
        if after:
            _check_place(head, after)
        return StreamingResponse(
            self._events(head.place if after is None else after, kind),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    def stop(self) -> None:
        """End all streams."""
        self._stopping = True
        self._follower.wake()

    async def _events(self, place: EventId, kind: str | None) -> AsyncIterator[bytes]:
        yield b"retry: %d\n%b" % (RETRY_MS, _id(place))
        while not self._stopping:
            news = self._follower.news
            try:
                view = self._reader.view()
                head = view.head()
                _check_place(head, place)
                text, place, more = self._slices.read(view, head.version, place, kind)
            except (Problem, StoreError) as error:
                yield _last_event(error)
                return
            if text:
                yield text
            if more:
                await asyncio.sleep(0)
                continue
            try:
                await asyncio.wait_for(news.wait(), self._heartbeat_s)
            except asyncio.TimeoutError:
                yield b": still here\n" + _id(place)


def place_of(text: str | None) -> EventId | None:
    """Parse `VERSION-ORDINAL`, an event's id. Raises Problem."""
    try:
        return None if text is None else read_event_id(text)
    except ValueError as problem:
        raise Problem("invalid", str(problem)) from None


def page(view: View, after: EventId | None, limit: int, kind: str | None) -> Changes:
    """Return a page of the log. Raises Problem: the log does not reach back to `after`."""
    if after:
        _check_place(view.head(), after)
    found = view.changes(after, limit, kind)
    if found["gap"]:
        _check_place(view.head(), after or BEGIN)
    return {
        "collection": found["collection"],
        "version": found["version"],
        "changes": found["changes"],
        "cursor": found["cursor"] or "0-0",  # no event yet
        "more": found["more"],
    }


def _check_place(head: Head, place: EventId) -> None:
    """Raise Problem if events after the place were deleted by retention, or it is not of this log."""
    if place[0] > head.version:
        detail = f"{format_event_id(place)} is ahead of this store, which has version {head.version}"
    elif place < head.forgot:
        detail = (
            f"the log begins with version {head.oldest}: what follows {format_event_id(place)} was forgotten"
        )
    else:
        return
    raise Problem("stale-cursor", detail + ".", cursor=format_event_id(head.place))


def _encode(event: EventRow) -> bytes:
    return b"id: %b\ndata: %b\n\n" % (event["event-id"].encode(), orjson.dumps(event))


def _id(place: EventId) -> bytes:
    """Return an id without data: no event, but clients remember it as their place."""
    return b"id: %d-%d\n\n" % place


def _last_event(error: Problem | ShoalError) -> bytes:
    detail = error.detail if isinstance(error, Problem) else str(error)
    return b"event: problem\ndata: %b\n\n" % orjson.dumps({"detail": detail})
