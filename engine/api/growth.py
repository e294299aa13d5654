"""How many members each final cluster gained or lost in the last while: a function of the event log alone.

An item's change of final cluster is +1 for where it is now and -1 for where it was. The window ends with the
newest commit, not with the clock, so that two readers of one log agree; it is as long as asked for, unless
more than `events_max` events lie in it: then it is shorter, and says so.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from engine.storage.eventlog import ITEMS, Commit, Raw


@dataclass(frozen=True, slots=True)
class Window:
    """The versions that growth is counted over."""

    first: int  # version; 0: nothing yet
    last: int
    seconds: float  # from the first's commit to the last's, at most what was asked for


@dataclass(frozen=True, slots=True)
class _Version:
    commit: Commit
    net: Counter[int] = field(default_factory=Counter)


class Growth:
    """Rolled on event by event, version by version; old versions fall out."""

    def __init__(self, window_ms: int, events_max: int) -> None:
        self._window_ms, self._events_max = window_ms, events_max
        self._versions: deque[_Version] = deque()
        self._net: Counter[int] = Counter()
        self._events = 0
        self._changes = 0
        self._ranked: tuple[int, list[int]] = -1, []  # the order, and after how many changes

    def begin(self, commit: Commit) -> None:
        """The events that follow are of this version."""
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
        """Some events of the version begun last."""
        change = net_change(events)
        self._versions[-1].net.update(change)
        self._change(change)

    def of(self, cluster: int) -> int:
        """Members gained less members lost."""
        return self._net.get(cluster, 0)

    @property
    def window(self) -> Window:
        if not self._versions:
            return Window(0, 0, 0.0)
        first, last = self._versions[0].commit, self._versions[-1].commit
        return Window(first.version, last.version, (last.time_ms - first.time_ms) / 1000)

    def ranked(self) -> Sequence[int]:
        """The clusters that changed, the fastest growing first.

        Asked for in threads while another one counts on: an order that is out of date is sorted anew.
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
        self._changes += 1  # last: who read what was half done sorts again


def net_change(events: Iterable[Raw]) -> Counter[int]:
    """Cluster -> members gained less members lost."""
    net: Counter[int] = Counter()
    for event in events:
        if event.kind == ITEMS:
            _, cluster, previous, _ = event.parts
            net[cluster] += 1
            net[previous] -= 1
    del net[0]  # new items come from there, deleted ones go there
    return net


class Start:
    """Finds the first version of the window: `take` the commits from the newest back until it says False."""

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
