"""What is on the outgoing topics, compared with the event log: all of it, to the byte."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from engine.events import EventId, show_event
from engine.types import Assignment, DeadLetter, Event, LineageEvent
from tests.broker.topics import Topics

Events = Sequence[tuple[EventId, Event]]
OWN = ["event-id", "reason", "origin"]  # headers that dead letters have beside their own


def read(topics: Topics, topic: str) -> dict[EventId, Any]:
    """The records of the three topics by event-id. None is there twice, those of a key are in order."""
    found: dict[EventId, Any] = {}
    for name in "assignments", "clusters", "dlq":
        last: dict[tuple[int, bytes | None], EventId] = {}
        for record in topics.read(f"{topic}.{name}"):
            version, ordinal = dict(record.headers)["event-id"].decode().split("-")
            place = int(version), int(ordinal)
            assert place not in found, f"event {place} was published twice"
            assert last.get((record.partition, record.key), (0, 0)) < place, f"event {place} is out of order"
            found[place], last[record.partition, record.key] = record, place
    return found


def assert_published(topics: Topics, topic: str, collection: str, events: Events) -> None:
    """These events and no other."""
    found = read(topics, topic)
    assert sorted(found) == [place for place, _ in events]
    for place, event in events:
        record = found[place]
        shown = show_event(collection, *place, event)
        del shown["event-id"]
        if isinstance(event, Assignment):
            assert (record.topic, record.key) == (f"{topic}.assignments", event.key)
            assert (record.value and orjson.loads(record.value)) == (shown if event.cluster else None)
        elif isinstance(event, LineageEvent):
            assert record.topic == f"{topic}.clusters"
            assert orjson.loads(record.value) == shown
        else:
            assert_dead_letter(record, event)


def assert_dead_letter(record: Any, letter: DeadLetter) -> None:
    assert record.topic.endswith(".dlq")
    assert (record.key or None, record.value) == (letter.key or None, letter.value)
    told = dict(record.headers)
    assert (told["reason"].decode(), told["origin"].decode()) == (letter.reason, letter.origin)
    assert (record.headers[:-3], [name for name, _ in record.headers[-3:]]) == (list(letter.headers), OWN)


def last_assignments(topics: Topics, topic: str) -> Mapping[bytes, int]:
    """Key -> cluster, as a consumer of the topic knows it."""
    clusters: dict[bytes, int] = {}
    for place, record in sorted(read(topics, topic).items()):
        if record.topic.endswith(".assignments"):
            clusters.pop(record.key, None)
            if record.value is not None:
                told = orjson.loads(record.value)
                assert (told["key"].encode(), told["version"]) == (record.key, place[0])
                clusters[record.key] = told["cluster"]
    return clusters
