"""The event log of a store, read forward from a place: (version, ordinal) of the last event known.

Within a version the lineage of clusters stands first, then the items, then the dead letters: whoever wants
clusters alone can skip the rest of a version. Versions have no gaps; the oldest are forgotten, and a reader
is told so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson

from engine.events import BEGIN, Place
from engine.storage import schema
from engine.storage.tables import Tables
from engine.types import Erased, Event

SCAN_MAX = 1_000  # rows looked at for one page
ITEMS, CLUSTERS, REJECTS = "items", "clusters", "rejects"
KINDS = (ITEMS, CLUSTERS, REJECTS)


@dataclass(frozen=True, slots=True)
class Raw:
    """An event as it is stored."""

    place: Place
    key: bytes
    body: bytes
    parts: list[Any]  # of a dead letter and of an erased event: none

    @property
    def kind(self) -> str | None:
        """None: it was erased; nobody is told of it."""
        if not self.parts:
            return REJECTS if self.body.startswith(b"{") else None
        return ITEMS if len(self.parts) == 4 else CLUSTERS


@dataclass(frozen=True, slots=True)
class Slice:
    """Events behind a place, the place they lead to, and whether there are more of them now."""

    events: list[Raw]
    place: Place
    more: bool


@dataclass(frozen=True, slots=True)
class Commit:
    """What the log knows of a version."""

    version: int
    time_ms: int
    events: int

    @property
    def last(self) -> Place:
        """Behind it is the next version."""
        return self.version, max(self.events - 1, 0)


def read(tables: Tables, after: Place, limit: int, kind: str | None = None) -> Slice:
    """At most `limit` events of a kind, of all for None. After SCAN_MAX rows `place` is where to go on."""
    found: list[Raw] = []
    place, looked = after, 0
    seek: Place | None = (after[0], after[1] + 1)
    while seek:
        rows, seek = _rows(tables, seek), None
        for event in rows:
            if len(found) == limit or looked == SCAN_MAX:
                return Slice(found, place, more=True)
            looked, place = looked + 1, event.place
            if event.kind and kind in (None, event.kind):
                found.append(event)
            elif kind == CLUSTERS:
                seek = (event.place[0] + 1, 0)
                break
    return Slice(found, place, more=False)


@dataclass(frozen=True, slots=True)
class Unpublished:
    """Events to publish behind a place, dead letters included, and the place they lead to."""

    events: list[tuple[Place, Event]]
    place: Place
    version: int  # of the store; without events all up to it is published
    forgot: Place  # the last event that is forgotten


def unpublished(tables: Tables, after: Place, max_events: int, max_bytes: int) -> Unpublished:
    """Return events of at most `max_bytes` in all, or one that is larger."""
    found: list[tuple[Place, Event]] = []
    place, size = after, 0
    for at, body in tables.events.stored((after[0], after[1] + 1)):
        size += len(body)
        if len(found) == max_events or (found and size > max_bytes):
            break
        place = at
        event = schema.parse_event(body)
        if not isinstance(event, Erased):
            found.append((place, event))
    return Unpublished(found, place, tables.meta.state.version, forgot(tables))


def behind(tables: Tables, place: Place) -> int:
    """How many events stand behind a place; of SCAN_MAX versions, at most."""
    count = 0
    for version, record in islice(tables.commits.rows(place[0]), SCAN_MAX):
        count += record.events - (place[1] + 1) * (version == place[0])
    return count


def lineage(tables: Tables, version: int) -> list[Raw]:
    """What happened to clusters in a version."""
    found = []
    for event in _rows(tables, (version, 0)):
        if event.place[0] != version or event.kind != CLUSTERS:
            break
        found.append(event)
    return found


def at(tables: Tables, places: Iterable[Place]) -> list[Raw]:
    """The events at these places that are still there."""
    keys = [schema.event_key(*place) for place in places]
    rows = [(key, tables.events.raw.get(key)) for key in keys]
    return [_raw(key, body) for key, body in rows if body is not None]


def commit(tables: Tables, version: int) -> Commit | None:
    """None: forgotten, or not there yet."""
    record = tables.commits.get(version)
    return None if record is None else Commit(version, record.time_ms, record.events)


def oldest(tables: Tables) -> int:
    """The first version that is not forgotten; 0: there is none yet."""
    row = next(tables.commits.rows(), None)
    return row[0] if row else 0


def forgot(tables: Tables) -> Place:
    """The place of the last event that is forgotten; BEGIN: none is."""
    return tables.meta.log.forgot or BEGIN


def _rows(tables: Tables, start: Place) -> Iterator[Raw]:
    for key, body in tables.events.raw.rows(schema.event_key(*start)):
        yield _raw(key, body)


def _raw(key: bytes, body: bytes) -> Raw:
    return Raw(schema.read_event_key(key), key, body, _parts(body))


def _parts(body: bytes) -> list[Any]:
    """None of a dead letter: see `schema.event_body`."""
    parts: list[Any] = [] if body.startswith(b"{") else orjson.loads(body)
    return parts
