"""The bodies of the table `events`: JSON without what key and configuration imply."""

from __future__ import annotations

import orjson

from engine.types import Assignment, DeadLetter, Erased, Event, LineageEvent


def pack(event: Event) -> bytes:
    """Encode an event: an assignment as four values, a lineage event as five, an erased one as none.

    A dead letter is an object with raw bytes behind it.
    """
    if isinstance(event, Assignment):
        return orjson.dumps([event.key.decode(), event.cluster, event.previous, event.path])
    if isinstance(event, LineageEvent):
        return orjson.dumps([event.event, event.cluster, event.size, event.sources, event.into])
    if isinstance(event, Erased):
        return b"[]"
    head = {
        "reason": event.reason,
        "origin": event.origin,
        "key": None if event.key is None else len(event.key),
        "value": None if event.value is None else len(event.value),
        "headers": [[name, value.hex()] for name, value in event.headers],
    }
    return orjson.dumps(head) + b"\n" + (event.key or b"") + (event.value or b"")


def unpack(body: bytes) -> Event:
    """Decode what `pack` encoded."""
    if body.startswith(b"{"):
        return _unpack_dead_letter(body)
    parts = orjson.loads(body)
    if not parts:
        return Erased()
    if len(parts) == 4:
        name, cluster, previous, path = parts
        return Assignment(name.encode(), cluster, previous, tuple(path))
    kind, cluster, size, sources, into = parts
    return LineageEvent(kind, cluster, size, tuple(sources), tuple(into))


def _unpack_dead_letter(body: bytes) -> DeadLetter:
    end = body.index(b"\n")
    head = orjson.loads(body[:end])
    middle = end + 1 + (head["key"] or 0)
    return DeadLetter(
        head["reason"],
        head["origin"],
        None if head["key"] is None else body[end + 1 : middle],
        None if head["value"] is None else body[middle:],
        [(name, bytes.fromhex(value)) for name, value in head["headers"]],
    )
