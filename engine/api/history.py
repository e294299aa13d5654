"""Where in the event log each cluster is mentioned: the newest lineage events, found by cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from engine.events import Place
from engine.storage.eventlog import Raw


class History:
    """At most `events_max` events, added in the order of the log; the oldest are forgotten."""

    def __init__(self, events_max: int) -> None:
        self.since = 0  # all that happened from this version on is known
        self._events_max = events_max
        self._events: deque[tuple[Place, tuple[int, ...]]] = deque()
        self._places: dict[int, list[Place]] = {}  # short ones: lists take least

    def add(self, events: Iterable[Raw]) -> None:
        for event in events:
            clusters = mentioned(event)
            self._events.append((event.place, clusters))
            for cluster in clusters:
                self._places.setdefault(cluster, []).append(event.place)
        while len(self._events) > self._events_max:
            self._forget(*self._events.popleft())

    def of(self, cluster: int, limit: int) -> list[Place]:
        """The newest events in which it took part, oldest first."""
        return self._places.get(cluster, [])[-limit:]

    def _forget(self, place: Place, clusters: Iterable[int]) -> None:
        self.since = max(self.since, place[0] + 1)
        for cluster in clusters:
            places = self._places[cluster]
            places.pop(0)
            if not places:
                del self._places[cluster]


def mentioned(event: Raw) -> tuple[int, ...]:
    """The clusters of a lineage event: the one it is of, those it came from, those it went into."""
    _, cluster, _, sources, into = event.parts
    return tuple(dict.fromkeys([cluster, *sources, *into]))
