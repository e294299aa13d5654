"""Events as consumers see them: places in the event log, and an event as JSON."""

from __future__ import annotations

import re

from typing_extensions import TypedDict

from engine.types import Assignment, Erased, Event, LineageEvent

EventId = tuple[int, int]  # (version, ordinal): a place in the log; reading resumes behind the last one read
BEGIN: EventId = (0, -1)


def read_event_id(text: str) -> EventId:
    """Parse `VERSION-ORDINAL`, as events carry it. Raises ValueError, with a sentence."""
    found = re.fullmatch(r"(\d{1,18})-(\d{1,9})", text, re.ASCII)
    if not found:
        raise ValueError(f"{text!r:.80} is no event's id; one looks like 12-0.")
    return int(found[1]), int(found[2])


def format_event_id(place: EventId) -> str:
    """Return a place as events carry it, `VERSION-ORDINAL`."""
    return "{}-{}".format(*place)


EventRow = TypedDict(
    "EventRow",
    {
        "schema": int,  # of this JSON: 1
        "collection": str,
        "version": int,
        "event-id": str,  # VERSION-ORDINAL, never repeated
        "key": str,  # of an assignment
        "cluster": "int | None",  # None: the item was deleted
        "previous": "int | None",  # None: the item is new
        "path": "list[int]",
        "event": str,  # emerge, grow, shrink, merge, split, vanish, erase or reject
        "from": "list[int]",  # of a lineage event
        "into": "list[int]",
        "size": int,
        "origin": str,  # of a rejected record
        "reason": str,
    },
    total=False,
)


def show_event(collection: str, version: int, ordinal: int, event: Event) -> EventRow:
    """Return the JSON of an event on the topics `assignments` (`cluster` null: item gone) and `clusters`.

    A dead letter appears as the event `reject`, without its bytes.
    """
    shown: EventRow = {"schema": 1, "collection": collection}
    if isinstance(event, Assignment):
        shown |= {"key": event.key.decode(), "cluster": event.cluster or None}
        shown |= {"previous": event.previous or None, "path": list(event.path)}
    elif isinstance(event, LineageEvent):
        shown |= {"event": event.event, "cluster": event.cluster, "from": list(event.sources)}
        shown |= {"into": list(event.into), "size": event.size}
    elif isinstance(event, Erased):
        shown |= {"event": "erase"}
    else:
        shown |= {"event": "reject", "origin": event.origin, "reason": event.reason}
    shown |= {"version": version, "event-id": format_event_id((version, ordinal))}
    return shown
