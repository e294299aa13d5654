"""Queries on the event log: reads forward from a place, the (version, ordinal) of the last event known.

Within a version, lineage events come first, then assignments, then dead letters, so that a reader of clusters
alone can skip the rest of a version. Versions have no gaps; the log forgets the oldest ones and reports that
to its readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson

from engine.events import BEGIN, EventId, EventRow, show_event
from engine.storage import schema
from engine.storage.schema import PLACE
from engine.storage.tables import Tables
from engine.types import Erased, Event

SCAN_MAX = 1_000  # rows looked at for one page
ITEMS, CLUSTERS, REJECTS = "items", "clusters", "rejects"
KINDS = (ITEMS, CLUSTERS, REJECTS)


@dataclass(frozen=True, slots=True)
class Raw:
    """A stored event, decoded only as far as its kind needs."""

    place: EventId
    body: bytes
    parts: list[Any]  # empty for a dead letter and an erased event

    @property
    def kind(self) -> str | None:
        """The kind of event; None for an erased one, which readers skip."""
        if not self.parts:
            return REJECTS if self.body.startswith(b"{") else None
        return ITEMS if len(self.parts) == 4 else CLUSTERS

    def show(self, collection: str) -> EventRow:
        """Return it as people and programs read it."""
        return show_event(collection, *self.place, schema.unpack_event(self.body))


@dataclass(frozen=True, slots=True)
class Slice:
    """Events after a place, the place to continue from, and whether there are more."""

    events: list[Raw]
    place: EventId
    more: bool


def read(tables: Tables, after: EventId, limit: int, kind: str | None = None) -> Slice:
    """Return at most `limit` events of a kind (None: of all), looking at SCAN_MAX rows at most."""
    events: list[Raw] = []
    place, looked = after, 0
    seek: EventId | None = (after[0], after[1] + 1)
    while seek:
        rows, seek = _rows(tables, seek), None
        for event in rows:
            if len(events) == limit or looked == SCAN_MAX:
                return Slice(events, place, more=True)
            looked, place = looked + 1, event.place
            if event.kind and kind in (None, event.kind):
                events.append(event)
            elif kind == CLUSTERS:
                seek = (event.place[0] + 1, 0)
                break
    return Slice(events, place, more=False)


@dataclass(frozen=True, slots=True)
class Unpublished:
    """Events to publish after a place, dead letters included, and the place of the last one."""

    events: list[tuple[EventId, Event]]
    place: EventId
    version: int  # the last committed one; published up to it if there are no events
    forgot: EventId  # the last forgotten event


def unpublished(tables: Tables, after: EventId, max_events: int, max_bytes: int) -> Unpublished:
    """Return events of at most `max_bytes` in all, or one that is larger."""
    events: list[tuple[EventId, Event]] = []
    place, size = after, 0
    for at, body in tables.events.stored((after[0], after[1] + 1)):
        size += len(body)
        if len(events) == max_events or (events and size > max_bytes):
            break
        place = at
        event = schema.unpack_event(body)
        if not isinstance(event, Erased):
            events.append((place, event))
    return Unpublished(events, place, tables.meta.state.version, forgot(tables))


def behind(tables: Tables, place: EventId) -> int:
    """Count the events behind a place, in SCAN_MAX versions at most."""
    count = 0
    for version, record in islice(tables.commits.rows(place[0]), SCAN_MAX):
        count += record.events - (place[1] + 1) * (version == place[0])
    return count


def lineage(tables: Tables, version: int) -> list[Raw]:
    """Return the lineage events of a version."""
    events = []
    for event in _rows(tables, (version, 0)):
        if event.place[0] != version or event.kind != CLUSTERS:
            break
        events.append(event)
    return events


def at(tables: Tables, places: Iterable[EventId]) -> list[Raw]:
    """Return the events at these places that are not forgotten."""
    rows = [(place, tables.events.raw.get(PLACE.pack(place))) for place in places]
    return [_raw(place, body) for place, body in rows if body is not None]


def oldest(tables: Tables) -> int:
    """Return the first version in the log; 0 if there is none yet."""
    row = next(tables.commits.rows(), None)
    return row[0] if row else 0


def forgot(tables: Tables) -> EventId:
    """Return the place of the last forgotten event; BEGIN if there is none."""
    return tables.meta.log.forgot or BEGIN


def _rows(tables: Tables, start: EventId) -> Iterator[Raw]:
    for place, body in tables.events.stored(start):
        yield _raw(place, body)


def _raw(place: EventId, body: bytes) -> Raw:
    """Decode the values of an event; a dead letter has none, see `schema`."""
    return Raw(place, body, [] if body.startswith(b"{") else orjson.loads(body))
