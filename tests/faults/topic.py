"""A topic on another machine: what is in it outlives any process here. One transaction is one line of a file.

As Kafka's does, a transaction holds records and, beside them, where the next one goes on; it is there as a
whole or not at all. By its seed the topic refuses transactions, before or after it took them, and is slow.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from engine import schema
from engine.store import Store
from engine.types import Assignment, LineageEvent


class Refused(Exception):
    """The transaction failed, or was taken and the answer lost: nobody here can tell which."""


class Topic:
    def __init__(self, path: Path, seed: int, life: int, is_faulty: bool) -> None:
        self.path, self.is_faulty = path, is_faulty
        self.rng = np.random.default_rng([seed, life, 5])
        self.place = (0, -1)

    def open(self, store: Store) -> None:
        """Reads the progress back, as a publisher has to after a start or a lost answer."""
        self.place = max([tuple(line["place"]) for line in self.transactions()], default=(0, -1))
        self._hold(store)

    def _hold(self, store: Store) -> None:
        store.keep_from = max(self.place[0], 1)

    def transactions(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [orjson.loads(line) for line in self.path.read_bytes().splitlines()]

    def events(self) -> list[schema.Row]:
        """All that was published, as the log had it."""
        rows = [row for line in self.transactions() for row in line["events"]]
        return [(bytes.fromhex(key), bytes.fromhex(body)) for key, body in rows]

    def publish(self, store: Store, at_middle: Callable[[], None]) -> bool:
        events = []
        rows = store.rows("events")
        for key, body in rows:
            place = schema.read_event_key(key)
            if place > self.place:
                events.append((place, key, body))
        events = events[: int(self.rng.integers(1, 40))]
        if not events:
            return False
        at_middle()
        if self.is_faulty and self.rng.random() < 0.1:
            raise Refused
        line = {"place": events[-1][0], "events": [[key.hex(), body.hex()] for _, key, body in events]}
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(handle, orjson.dumps(line) + b"\n")
        os.close(handle)
        if self.is_faulty and self.rng.random() < 0.1:
            self.open(store)
            raise Refused
        self.place = events[-1][0]
        self._hold(store)
        return True

    def replay(self, store: Store) -> dict[bytes, int]:
        """Where each item is by what was published, and by what the log still has to publish."""
        rows = self.events()
        place = schema.read_event_key(rows[-1][0]) if rows else (0, -1)
        rows += [row for row in store.rows("events") if schema.read_event_key(row[0]) > place]
        final: dict[bytes, int] = {}
        for _, body in rows:
            event = schema.parse_event(body)
            if isinstance(event, Assignment):
                assert final.pop(event.key, 0) == event.previous != event.cluster, event
                if event.cluster:
                    final[event.key] = event.cluster
            else:
                assert isinstance(event, LineageEvent) or event.reason
        return final
