"""Growth and history, rolled on event by event, against the same counted anew from the whole log."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from engine.api.follower import Bounds, Follower, Growth, History, WindowStart, mentioned
from engine.events import BEGIN
from engine.storage import schema
from engine.storage.eventlog import CLUSTERS, ITEMS, Raw
from engine.storage.reader import View
from engine.storage.schema import Commit
from engine.storage.store import Store
from engine.types import Assignment, Erased, LineageEvent
from tests.support.fake_collection import CONFIG, Toy


def event(version: int, ordinal: int, what: Assignment | LineageEvent) -> Raw:
    body = schema.pack_event(what)
    return Raw((version, ordinal), body, orjson.loads(body))


def random_log(seed: int, versions: int) -> list[tuple[Commit, list[Raw]]]:
    """Items that come, move between seven clusters, and go."""
    rng = np.random.default_rng(seed)
    place: dict[int, int] = {}
    log, time_ms = [], 1_000_000
    for version in range(1, versions + 1):
        time_ms += 1000 * int(rng.integers(0, 4))  # so that some lie just on the window's edge
        events = []
        for item in rng.choice(40, size=int(rng.integers(0, 9)), replace=False).tolist():
            before, after = place.get(item, 0), int(rng.integers(0, 8))
            if before != after:
                change = Assignment(b"%d" % item, after, before, (after,) if after else ())
                events.append(event(version, len(events), change))
                place[item] = after
        log.append((Commit(version, time_ms, len(events), 0), events))
    return log


def counted(log: list[tuple[Commit, list[Raw]]], window_ms: int, most: int) -> tuple[int, Counter[int]]:
    """The first version of the window and the net changes, from the definition."""
    newest = log[-1][0].time_ms
    first, events = log[-1][0].version, 0
    net: Counter[int] = Counter()
    for commit, changes in reversed(log):
        events += commit.events
        is_last = commit.version == log[-1][0].version
        if not is_last and (commit.time_ms < newest - window_ms or events > most):
            break
        first = commit.version
        for change in changes:
            _, cluster, previous, _ = change.parts
            net[cluster] += 1
            net[previous] -= 1
    del net[0]
    return first, Counter({cluster: change for cluster, change in net.items() if change})


@pytest.mark.parametrize("seed", range(20))
def test_growth_rolled_on_is_growth_counted_anew(seed: int) -> None:
    window_ms, most = [(10_000, 10_000), (40_000, 25), (0, 10_000), (10**9, 10**9)][seed % 4]
    log = random_log(seed, 60)
    growth = Growth(window_ms, most)
    for at, (commit, events) in enumerate(log):
        growth.begin(commit)
        half = len(events) // 2
        growth.add(events[:half])
        growth.add(events[half:])
        first, net = counted(log[: at + 1], window_ms, most)
        assert growth.window.first == first, f"{seed=}"
        assert {cluster: growth.of(cluster) for cluster in range(1, 8)} == {
            cluster: net[cluster] for cluster in range(1, 8)
        }, f"{seed=}"
        assert growth.ranked() == sorted(net, key=lambda c: (-net[c], c)), f"{seed=}"
        start = WindowStart(window_ms, most)
        for earlier, _ in reversed(log[: at + 1]):
            if not start.take(earlier):
                break
        assert start.version == first, f"{seed=}"


def test_history_finds_the_newest_events_of_a_cluster() -> None:
    history = History(3)
    events = [
        event(1, 0, LineageEvent("emerge", 5, 2)),
        event(2, 0, LineageEvent("merge", 5, 4, sources=(6, 7))),
        event(3, 0, LineageEvent("split", 5, 2, into=(5, 8))),
        event(4, 0, LineageEvent("vanish", 8, 0, into=(5,))),
    ]
    assert mentioned(events[2]) == (5, 8)
    history.add(events[:3])
    assert history.of(5, 10) == [(1, 0), (2, 0), (3, 0)]
    assert history.since == 0
    history.add(events[3:])
    assert history.of(5, 10) == [(2, 0), (3, 0), (4, 0)]
    assert history.of(5, 1) == [(4, 0)]
    assert history.of(6, 10) == [(2, 0)]
    assert history.since == 2
    history.add(events)
    assert history.of(6, 10) == [(2, 0)]


def bounds(window_events: int = 10**6, history_versions: int = 10**6) -> Bounds:
    return Bounds(10**9, window_events, 10**6, history_versions)


def test_it_knows_what_is_in_the_log_wherever_it_begins(tmp_path: Path) -> None:
    toy = Toy(3)
    with Store.open(tmp_path, CONFIG) as store:
        view = View.beside(store)
        early = Follower(bounds())
        for _ in range(12):
            store.commit(toy.step())
            for _ in early.advance(view):
                pass
        late, blind = Follower(bounds()), Follower(bounds(window_events=1, history_versions=4))
        for follower in (late, blind):
            for _ in follower.advance(view):
                pass
        log = []
        after = BEGIN
        while (part := view.follow(after, 7)).events:
            log += part.events
            after = part.place
        assert len(log) > 50
        lineage: dict[int, list[tuple[int, int]]] = {}
        for one in log:
            for cluster in mentioned(one) if one.kind == CLUSTERS else ():
                lineage.setdefault(cluster, []).append(one.place)
        for follower in (early, late):
            assert follower.ready
            assert follower.version == toy.version
            assert follower.growth.window.first == 1
            for cluster, places in lineage.items():
                assert follower.history.of(cluster, 10**6) == places
            assert follower.history.since == 1
        assert early.growth.ranked() == late.growth.ranked()
        assert blind.growth.window.first == toy.version
        assert blind.history.since == toy.version - 4
        for cluster, places in lineage.items():
            assert blind.history.of(cluster, 10**6) == [p for p in places if p[0] >= toy.version - 4]


def test_a_follower_that_retention_has_overtaken_begins_again(tmp_path: Path) -> None:
    toy = Toy(4)
    with Store.open(tmp_path, CONFIG, events_max_bytes=1) as store:
        view = View.beside(store)
        follower = Follower(bounds())
        for _ in range(4):
            store.commit(toy.step())
            store.commit(toy.step())
            for _ in follower.advance(view):
                pass
            assert follower.growth.window.first == toy.version
            assert follower.history.since == toy.version


def test_pages_of_one_kind_have_all_of_it_and_nothing_else(tmp_path: Path) -> None:
    toy = Toy(5)
    with Store.open(tmp_path, CONFIG) as store:
        view = View.beside(store)
        for _ in range(10):
            store.commit(toy.step())
        everything = view.changes(limit=10_000)["changes"]
        for kind, has in (ITEMS, "key"), (CLUSTERS, "event"):
            wanted = [one for one in everything if has in one]
            assert wanted
            for limit in (1, 3, 10_000):
                found, after = [], None
                while True:
                    page = view.changes(after, limit, kind)
                    found += page["changes"]
                    version, ordinal = page["cursor"].split("-")
                    after = int(version), int(ordinal)
                    if not page["more"]:
                        break
                assert found == wanted, f"{kind=} {limit=}"


def test_versions_without_events_leave_no_gap(tmp_path: Path) -> None:
    """A cursor behind the last event is good for as long as nothing further happens."""
    toy = Toy(6)
    with Store.open(tmp_path, CONFIG, events_max_bytes=1) as store:
        view = View.beside(store)
        store.commit(toy.step())
        last = view.head().place
        follower = Follower(bounds())
        for _ in follower.advance(view):
            pass
        growth = follower.growth
        for _ in range(4):
            change = toy.step()
            store.commit(replace(change, events=[]))
            for _ in follower.advance(view):
                pass
        assert view.head().oldest > 1
        assert not view.changes(last)["gap"]
        assert view.changes((last[0], last[1] - 1))["gap"]
        assert follower.growth is growth, "nothing was lost: it goes on"
        assert follower.version == toy.version


def test_nobody_is_told_of_erased_events(tmp_path: Path) -> None:
    toy = Toy(7)
    change = toy.step()
    with Store.open(tmp_path, CONFIG) as store:
        view = View.beside(store)
        store.commit(
            replace(change, events=[Erased() if isinstance(e, Assignment) else e for e in change.events])
        )
        for kind in (None, ITEMS, CLUSTERS):
            page = view.changes(kind=kind)
            assert all("event" in one for one in page["changes"])
            assert page["cursor"].startswith("1-")
        follower = Follower(bounds())
        for _ in follower.advance(view):
            pass
        assert follower.growth.ranked() == []


def test_an_order_found_while_something_changes_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next to ask sees the change, even if it came in the middle of sorting."""
    commit = Commit(1, 0, 0, 0)
    growth = Growth(1000, 10)
    growth.begin(commit)
    growth._change(Counter({1: 1, 2: 2}))

    def sorting(*arguments: Any, **options: Any) -> list[int]:
        monkeypatch.undo()
        found = sorted(*arguments, **options)
        growth._change(Counter({3: 3}))
        return found

    monkeypatch.setattr("engine.api.follower.sorted", sorting, raising=False)
    growth.ranked()
    assert growth.ranked() == [3, 2, 1]
