"""Slices of the event log as server-sent events: what one stream has read the others need not."""

from __future__ import annotations

import orjson

from engine.events import Place
from engine.storage import schema
from engine.storage.reader import View

SLICE = 200  # events read and sent at once: about a millisecond
KEPT = 16


class Slices:
    """The last few, encoded. Streams that are up to date are all at the same place."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, Place, str | None], tuple[bytes, Place, bool]] = {}

    def read(self, view: View, version: int, place: Place, kind: str | None) -> tuple[bytes, Place, bool]:
        """The events behind a place, the place they lead to, and whether there are more."""
        key = version, place, kind
        found = self._kept.get(key)
        if found is None:
            part = view.follow(place, SLICE, kind)
            text = b"".join(_encode(view.collection, raw.key, raw.body) for raw in part.events)
            found = self._kept[key] = text, part.place, part.more
            if len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
        return found


def _encode(collection: str, key: bytes, body: bytes) -> bytes:
    event = schema.read_event(collection, key, body)
    return b"id: %b\ndata: %b\n\n" % (event["event-id"].encode(), orjson.dumps(event))
