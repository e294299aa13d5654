"""Events as consumers see them: places in the event log, and an event as JSON."""

from __future__ import annotations

from typing import Any

from engine.types import Assignment, Erased, Event, LineageEvent

Place = tuple[int, int]  # (version, ordinal) of the last event read; reading resumes behind it
BEGIN: Place = (0, -1)


def show_event(collection: str, version: int, ordinal: int, event: Event) -> dict[str, Any]:
    """Return the JSON of an event on the topics `assignments` (`cluster` null: item gone) and `clusters`.

    A dead letter appears as the event `reject`, without its bytes.
    """
    shown: dict[str, Any] = {"schema": 1, "collection": collection}
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
    return shown | {"version": version, "event-id": f"{version}-{ordinal}"}
