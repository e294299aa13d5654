"""Follows the event log of a store: what grew, what happened to each cluster, that there is something new.

Runs in the event loop of the process that answers queries, in slices short enough that no answer waits for
them. It begins with the newest versions, as many as its bounds allow, and says how far back it knows.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from engine.api.growth import Growth, Start
from engine.api.history import History
from engine.errors import StoreError
from engine.events import Place
from engine.storage.eventlog import CLUSTERS, Raw
from engine.storage.reader import Head, View

SLICE_EVENTS = 250  # about a millisecond
SLICE_VERSIONS = 50


@dataclass(frozen=True, slots=True)
class TailBounds:
    window_ms: int  # over which growth is counted
    window_events: int  # at most; the window is shorter then
    history_events: int  # lineage events remembered, the newest
    history_versions: int  # looked through for them at the start
    poll_s: float  # between two looks for a new version


class Tail:
    """`advance` reads on; `run` does so for ever. Not for more than one thread."""

    def __init__(self, bounds: TailBounds) -> None:
        self._bounds = bounds
        self.growth = Growth(bounds.window_ms, bounds.window_events)
        self.history = History(bounds.history_events)
        self.version = 0  # all events up to this one are in
        self.ready = False
        self.news = asyncio.Event()  # set, and replaced, when there is a new version
        self._place: Place | None = None  # None: nothing was read yet
        self._begun = 0  # growth knows the versions up to this one

    async def run(self, view: Callable[[], View]) -> None:
        """`view` raises StoreError as long as there is no store."""
        while True:
            try:
                for _ in self.advance(view()):
                    await asyncio.sleep(0)
            except StoreError:
                self.ready = False
            await asyncio.sleep(self._bounds.poll_s)

    def advance(self, view: View) -> Iterator[None]:
        """Reads up to the newest version, and pauses after each slice. Raises StoreError."""
        head = view.head()
        if head.version == self.version and self.ready:
            return
        self.wake()
        lost = self._place is None or self._place < head.forgot or self._place[0] > head.version
        if lost:  # at the start; or the log forgot faster than this read
            yield from self._begin(view, head)
        assert self._place is not None
        more = True
        while more:
            found = view.follow(self._place, SLICE_EVENTS)
            for version, events in itertools.groupby(found.events, key=lambda event: event.place[0]):
                self._take(view, version, list(events))
            self._place, more = found.place, found.more
            yield
        self._take(view, head.version, [])  # versions without events
        self.version = max(head.version, self._place[0])
        self.ready = True

    def wake(self) -> None:
        woken, self.news = self.news, asyncio.Event()
        woken.set()

    def _begin(self, view: View, head: Head) -> Iterator[None]:
        """Lineage of older versions; then all events from the first version of growth's window on."""
        bounds, oldest = self._bounds, max(head.oldest, 1)
        self.growth = Growth(bounds.window_ms, bounds.window_events)
        self.history = History(bounds.history_events)
        start = Start(bounds.window_ms, bounds.window_events)
        for newest in range(head.version, oldest - 1, -SLICE_VERSIONS):
            commits = view.commits(range(newest, max(newest - SLICE_VERSIONS, oldest - 1), -1))
            if not all(start.take(commit) for commit in commits):
                break
            yield
        first = start.version or oldest
        known = max(oldest, first - bounds.history_versions)
        for version in range(known, first, SLICE_VERSIONS):
            self.history.add(view.lineages(range(version, min(version + SLICE_VERSIONS, first))))
            yield
        self.history.since = max(self.history.since, known)
        self._begun, self._place = first - 1, (first - 1, 2**31 - 1)

    def _take(self, view: View, version: int, events: list[Raw]) -> None:
        if version > self._begun:
            for commit in view.commits(range(self._begun + 1, version + 1)):
                self.growth.begin(commit)
            self._begun = version
        if events and self.growth.window.last:
            self.growth.add(events)
            self.history.add(event for event in events if event.kind == CLUSTERS)
