"""A topic on another machine: what is in it outlives any process here. One transaction is one line of a file.

As with Kafka, a transaction holds events and, beside them, the place they lead to; it is there as a whole or
not at all. By its seed the topic is away now and then, for a while, before or after it took a transaction.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from engine.events import BEGIN, EventId
from engine.storage import schema
from engine.storage.schema import PLACE
from engine.storage.store import Store
from engine.streams import SinkAway
from engine.types import Assignment, Event

AWAY = 0.12  # the share of transactions that fail
Published = tuple[EventId, bytes]  # an event's place in the log, and its body


class Topic:
    """See `engine.daemon.publisher.Sink`. `at_middle` is called before a transaction is taken."""

    def __init__(self, path: Path, seed: int, life: int, is_faulty: bool) -> None:
        self._path, self._is_faulty = path, is_faulty
        self.rng = np.random.default_rng([seed, life, 5])
        self._away = 0
        self.at_middle: Callable[[], None] = lambda: None

    def resume(self) -> EventId | None:
        self._fail_if_away()
        events = self.events()
        return events[-1][0] if events else None

    def publish(self, events: Sequence[tuple[EventId, Event]]) -> None:
        """Raises SinkAway; then it was taken, or not."""
        self.at_middle()
        fails = self._is_faulty and self.rng.random() < AWAY
        self._away = int(self.rng.integers(0, 4)) if fails else 0
        if fails and self.rng.random() < 0.5:
            raise SinkAway("before the transaction")
        rows = [[*place, schema.pack_event(event).hex()] for place, event in events]
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(handle, orjson.dumps(rows) + b"\n")
        os.close(handle)
        if fails:
            raise SinkAway("after the transaction")

    def close(self) -> None:
        """Nothing is held."""

    def _fail_if_away(self) -> None:
        if self._away:
            self._away -= 1
            raise SinkAway("still")

    def events(self) -> list[Published]:
        """All that was published, in order."""
        if not self._path.exists():
            return []
        lines: list[list[Any]] = [orjson.loads(line) for line in self._path.read_bytes().splitlines()]
        return [
            ((version, ordinal), bytes.fromhex(body)) for line in lines for version, ordinal, body in line
        ]


def replay(published: Sequence[Published], store: Store) -> dict[bytes, int]:
    """Where each item is by what was published, and by what the log has behind that."""
    last = published[-1][0] if published else BEGIN
    waiting = [(PLACE.unpack(key), body) for key, body in store.rows("events")]
    final: dict[bytes, int] = {}
    for place, body in [*published, *(row for row in waiting if row[0] > last)]:
        event = schema.unpack_event(body)
        if isinstance(event, Assignment):
            before = final.pop(event.key, 0)
            assert before == event.previous != event.cluster, f"{place}: {event}, but it was in {before}"
            if event.cluster:
                final[event.key] = event.cluster
    return final
