"""Follows a store's event log: growth and history of clusters, and a signal for each new version.

Runs in the event loop of the API's process, in slices short enough not to delay a request. At the start it
reads back from the newest version as far as its bounds allow, and reports how far that is.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from engine.config import ApiSettings
from engine.errors import StoreError
from engine.events import EventId
from engine.storage.eventlog import CLUSTERS, ITEMS, Raw
from engine.storage.reader import Head, View
from engine.storage.schema import Commit

POLL_S = 0.1  # between two checks for a new version
SLICE_EVENTS = 250  # about a millisecond
SLICE_VERSIONS = 50


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of the log is kept in memory."""

    window_ms: int  # over which growth is counted
    window_events: int  # at most; the window is shorter then
    history_events: int  # lineage events kept, the newest
    history_versions: int  # searched for them at the start


def bounds_of(settings: ApiSettings) -> Bounds:
    return Bounds(
        window_ms=int(settings.growth_window_s * 1000),
        window_events=settings.growth_events,
        history_events=settings.history_events,
        history_versions=settings.history_versions,
    )


class Follower:
    """Growth and history up to `version`. Call `advance`, or let `run` do so; from one thread only."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self.growth = Growth(bounds.window_ms, bounds.window_events)
        self.history = History(bounds.history_events)
        self.version = 0  # all events up to this version are included
        self.ready = False
        self.news = asyncio.Event()  # set, and replaced, at each new version
        self._place: EventId | None = None  # None: nothing was read yet
        self._begun = 0  # growth knows the versions up to this one

    async def run(self, view: Callable[[], View]) -> None:
        """Follow the log until cancelled. `view` raises StoreError while there is no store."""
        while True:
            try:
                for _ in self.advance(view()):
                    await asyncio.sleep(0)
            except StoreError:
                self.ready = False
            await asyncio.sleep(POLL_S)

    def advance(self, view: View) -> Iterator[None]:
        """Read up to the newest version; yield after each slice. Raises StoreError."""
        head = view.head()
        if head.version == self.version and self.ready:
            return
        self.wake()
        lost = self._place is None or self._place < head.forgot or self._place[0] > head.version
        if lost:  # at the start; or retention deleted events before they were read
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
        """Resume everything that waits for `news`."""
        woken, self.news = self.news, asyncio.Event()
        woken.set()

    def growth_of(self, cluster: int) -> int | None:
        """Return members gained minus members lost; None while the log is still being read."""
        return self.growth.of(cluster) if self.ready else None

    def _begin(self, view: View, head: Head) -> Iterator[None]:
        """Read the lineage of older versions; then continue with the first version of growth's window."""
        bounds, oldest = self._bounds, max(head.oldest, 1)
        self.growth = Growth(bounds.window_ms, bounds.window_events)
        self.history = History(bounds.history_events)
        start = WindowStart(bounds.window_ms, bounds.window_events)
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
        # Behind every event of the version before: ordinals are below 2^31.
        self._begun, self._place = first - 1, (first - 1, 2**31 - 1)

    def _take(self, view: View, version: int, events: list[Raw]) -> None:
        if version > self._begun:
            for commit in view.commits(range(self._begun + 1, version + 1)):
                self.growth.begin(commit)
            self._begun = version
        if events and self.growth.window.last:
            self.growth.add(events)
            self.history.add(event for event in events if event.kind == CLUSTERS)


@dataclass(frozen=True, slots=True)
class Window:
    """The versions over which growth is counted."""

    first: int  # version; 0: none yet
    last: int
    seconds: float  # from the first version's commit to the last one's


@dataclass(frozen=True, slots=True)
class _Version:
    commit: Commit
    net: Counter[int] = field(default_factory=Counter)


class Growth:
    """Members that each final cluster gained minus those it lost, over a sliding window of versions.

    An item's change of final cluster adds 1 to the new one and subtracts 1 from the old one. The window ends
    with the newest commit, not with the clock, so that two readers of one log agree. It is shortened where
    it would hold more than `events_max` events.
    """

    def __init__(self, window_ms: int, events_max: int) -> None:
        self._window_ms, self._events_max = window_ms, events_max
        self._versions: deque[_Version] = deque()
        self._net: Counter[int] = Counter()
        self._events = 0
        self._changes = 0
        self._ranked: tuple[int, list[int]] = -1, []  # the order, and the number of changes it includes

    def begin(self, commit: Commit) -> None:
        """Add a version, whose events follow, and drop those that leave the window."""
        self._versions.append(_Version(commit))
        self._events += commit.events
        oldest_ms = commit.time_ms - self._window_ms
        while len(self._versions) > 1 and (
            self._versions[0].commit.time_ms < oldest_ms or self._events > self._events_max
        ):
            gone = self._versions.popleft()
            self._events -= gone.commit.events
            self._change(Counter({cluster: -change for cluster, change in gone.net.items()}))

    def add(self, events: Iterable[Raw]) -> None:
        """Count events of the version begun last."""
        change = net_change(events)
        self._versions[-1].net.update(change)
        self._change(change)

    def of(self, cluster: int) -> int:
        """Return members gained minus members lost."""
        return self._net.get(cluster, 0)

    @property
    def window(self) -> Window:
        if not self._versions:
            return Window(0, 0, 0.0)
        first, last = self._versions[0].commit, self._versions[-1].commit
        return Window(first.version, last.version, (last.time_ms - first.time_ms) / 1000)

    def ranked(self) -> Sequence[int]:
        """Return the clusters that changed, the fastest growing first.

        Called in reader threads while the event loop counts on: an outdated order is sorted again.
        """
        changes, order = self._ranked
        if changes != self._changes:
            changes, net = self._changes, dict(self._net)
            order = sorted(net, key=lambda cluster: (-net[cluster], cluster))
            self._ranked = changes, order
        return order

    def _change(self, change: Counter[int]) -> None:
        self._net.update(change)
        for cluster in change:
            if not self._net[cluster]:
                del self._net[cluster]
        self._changes += 1  # last: a thread that read a half-made change sorts again


def net_change(events: Iterable[Raw]) -> Counter[int]:
    """Cluster -> members gained minus members lost."""
    net: Counter[int] = Counter()
    for event in events:
        if event.kind == ITEMS:
            _, cluster, previous, _ = event.parts
            net[cluster] += 1
            net[previous] -= 1
    del net[0]  # stands for no cluster: the previous one of new items, the next one of deleted items
    return net


class WindowStart:
    """Finds the first version of growth's window. `take` the commits, newest first, until it is False."""

    def __init__(self, window_ms: int, events_max: int) -> None:
        self.version = 0  # 0: nothing taken
        self._window_ms, self._events_max = window_ms, events_max
        self._newest_ms, self._events = 0, 0

    def take(self, commit: Commit) -> bool:
        self._newest_ms = self._newest_ms or commit.time_ms
        self._events += commit.events
        late = commit.time_ms < self._newest_ms - self._window_ms
        if self.version and (late or self._events > self._events_max):
            return False
        self.version = commit.version
        return True


class History:
    """The places in the log of each cluster's lineage events; at most `events_max`, the newest."""

    def __init__(self, events_max: int) -> None:
        self.since = 0  # complete from this version on
        self._events_max = events_max
        self._events: deque[tuple[EventId, tuple[int, ...]]] = deque()
        self._places: dict[int, list[EventId]] = {}  # short ones: lists take least memory

    def add(self, events: Iterable[Raw]) -> None:
        """Add events in the order of the log."""
        for event in events:
            clusters = mentioned(event)
            self._events.append((event.place, clusters))
            for cluster in clusters:
                self._places.setdefault(cluster, []).append(event.place)
        while len(self._events) > self._events_max:
            self._forget(*self._events.popleft())

    def of(self, cluster: int, limit: int) -> list[EventId]:
        """Return the newest `limit` events that mention a cluster, oldest first."""
        return self._places.get(cluster, [])[-limit:]

    def _forget(self, place: EventId, clusters: Iterable[int]) -> None:
        self.since = max(self.since, place[0] + 1)
        for cluster in clusters:
            places = self._places[cluster]
            places.pop(0)
            if not places:
                del self._places[cluster]


def mentioned(event: Raw) -> tuple[int, ...]:
    """Return the clusters of a lineage event: its own, its sources, and those it went into."""
    _, cluster, _, sources, into = event.parts
    return tuple(dict.fromkeys([cluster, *sources, *into]))
