"""Stable ids against a slow, obvious matching of sets, and what they promise."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.clustering.lineage import NO_NAMES, Lineage, Names, Transfers, distinct, follow, follow_all
from engine.clustering.lineage import Partition as Unnamed
from engine.types import Clusters, Trees

Partition = list[dict[int, int]]  # by level: item -> peak of its tree


def ended_and_id(cluster: Any) -> tuple[int, int]:
    return cluster.ended, cluster.id


class World:
    """A partition under stable names, kept by the slow method and by the one under test."""

    def __init__(self) -> None:
        self.names = NO_NAMES
        self.tree_of: dict[int, int] = {}  # item -> handle
        self.ids: list[dict[int, int]] = [{}]  # by level: item -> id, by the slow method
        self.next_slow = 1
        self.version = 0

    def step(self, partition: Partition, rng: np.random.Generator) -> Lineage:
        """Moves on to a new partition, trees and labels numbered at random."""
        self.version += 1
        numbers = rng.permutation(sorted(set(partition[0].values())))
        number = {int(peak): t for t, peak in enumerate(numbers)}
        count = Counter(
            (self.tree_of.get(item, 0), number[partition[0][item]] if item in partition[0] else -1)
            for item in {*self.tree_of, *partition[0]}
        )
        keys = [list(count)[i] for i in rng.permutation(len(count))]
        columns = np.array([(*key, count[key]) for key in keys], np.int64).reshape(-1, 3).T
        relabel = rng.permutation(10_000) - 5_000
        peaks = np.zeros((len(number), len(partition)), np.int64)
        for item, peak in partition[0].items():
            peaks[number[peak]] = [level[item] for level in partition]
        up = relabel[peaks]
        up[:, 0] = np.arange(len(up))
        unnamed, transfers = Unnamed(up, peaks), Transfers(*columns)
        found = follow_all(self.names, unnamed, transfers, self.version)
        self._check_touched(found, unnamed, transfers)
        overlaps = {t: {b: n for (b, a), n in count.items() if a == t and b} for t in range(len(numbers))}
        named = slow_match(overlaps, numbers)
        assert {t: h for t, h in enumerate(found.handles.tolist()) if h < self.names.next_tree} == named
        self.ids = self.slow_ids(partition)
        for item, peak in partition[0].items():
            path = found.paths[number[peak]].tolist()
            assert path == [level[item] for level in self.ids]
        self.tree_of = {item: int(found.handles[number[peak]]) for item, peak in partition[0].items()}
        self.names = found.names
        assert self.names.next_cluster == self.next_slow
        return found

    def _check_touched(self, found: Lineage, unnamed: Unnamed, transfers: Transfers) -> None:
        """What looks at the touched clusters alone finds the same; equal transfers need not be added up."""
        big = transfers.count > 1
        before, after = (np.concatenate([name, name[big]]) for name in (transfers.before, transfers.after))
        count = np.where(big, transfers.count - 1, transfers.count)
        count = np.concatenate([count, np.ones(big.sum(), np.int64)])
        part = follow(self.names, unnamed, Transfers(before, after, count), self.version)
        assert all(
            np.array_equal(getattr(mine, name), getattr(theirs, name))
            for mine, theirs in (
                (part.names.trees, found.names.trees),
                (part.names.clusters, found.names.clusters),
            )
            for name in type(mine).__slots__
        )
        assert np.array_equal(part.handles, found.handles)
        assert np.array_equal(part.paths, found.paths)
        assert part.changed_trees == found.changed_trees
        wanted = sorted(found.changed_clusters, key=ended_and_id)
        assert sorted(part.changed_clusters, key=ended_and_id) == wanted
        assert part.events == found.events
        assert part.names.next_tree == found.names.next_tree
        assert part.names.next_cluster == found.names.next_cluster

    def slow_ids(self, partition: Partition) -> list[dict[int, int]]:
        """Sets of items, matched one pair at a time."""
        old = [members(level) for level in self.ids]
        taken: set[int] = set()
        levels: list[dict[int, int]] = []
        for depth in reversed(range(len(partition))):
            top = depth == len(partition) - 1
            candidates = old[-1] if top else old[min(depth, len(old) - 1)]
            trees = members(partition[depth])
            names = {}
            for peak, items in trees.items():
                if not top and members(levels[-1]).get(levels[-1][peak]) == items:
                    names[peak] = levels[-1][peak]
            open_trees = {peak for peak in trees if peak not in names}
            open_ids = {i for i in candidates if i not in taken}
            while True:
                pairs = [
                    (-len(candidates[i] & trees[peak]), i, peak)
                    for i in open_ids
                    for peak in open_trees
                    if candidates[i] & trees[peak]
                ]
                if not pairs:
                    break
                _, i, peak = min(pairs)
                names[peak] = i
                taken.add(i)
                open_ids.remove(i)
                open_trees.remove(peak)
            for peak in sorted(open_trees):
                names[peak] = self.next_slow
                self.next_slow += 1
            levels.append({item: names[peak] for item, peak in partition[depth].items()})
        return levels[::-1]


def slow_match(overlaps: dict[int, dict[int, int]], peaks: np.ndarray) -> dict[int, int]:
    """Greedy over all pairs: new tree -> old handle."""
    pairs = sorted((-n, old, peaks[new], new) for new, row in overlaps.items() for old, n in row.items())
    found: dict[int, int] = {}
    for _, old, _, new in pairs:
        if new not in found and old not in found.values():
            found[new] = old
    return found


def members(level: dict[int, int]) -> dict[int, frozenset[int]]:
    sets: dict[int, set[int]] = {}
    for item, name in level.items():
        sets.setdefault(name, set()).add(item)
    return {name: frozenset(items) for name, items in sets.items()}


@st.composite
def partitions(draw: st.DrawFn) -> Partition:
    """A few items in a nested forest of one to three levels, each tree with a peak among its items."""
    items = sorted(draw(st.sets(st.integers(1, 14), max_size=14)))
    parent = {item: item for item in items}
    levels: Partition = []
    for _ in range(draw(st.integers(1, 3))):
        peaks = sorted(set(parent.values()))
        joins = {peak: draw(st.sampled_from([p for p in peaks if p >= peak])) for peak in peaks}
        for peak in reversed(peaks):
            joins[peak] = joins[joins[peak]]
        parent = {item: joins[peak] for item, peak in parent.items()}
        levels.append(dict(parent))
    return levels


def sequences() -> st.SearchStrategy[list[Partition]]:
    return st.lists(partitions(), min_size=1, max_size=5)


@given(sequences(), st.integers(0, 2**32))
def test_ids_are_those_of_the_slow_method_whatever_the_numbering(steps: list[Partition], seed: int) -> None:
    world = World()
    for partition in steps:
        world.step(partition, np.random.default_rng(seed))


@given(sequences(), st.integers(0, 2**32))
def test_an_id_is_one_set_and_a_set_is_one_id(steps: list[Partition], seed: int) -> None:
    world = World()
    for partition in steps:
        world.step(partition, np.random.default_rng(seed))
        named: dict[int, set[frozenset[int]]] = {}
        for level in world.ids:
            for name, items in members(level).items():
                named.setdefault(name, set()).add(items)
        assert all(len(sets) == 1 for sets in named.values())
        assert len(set.union(set(), *named.values())) == len(named)


@given(sequences(), st.integers(0, 2**32))
def test_the_table_describes_the_partition_and_records_replay_it(steps: list[Partition], seed: int) -> None:
    world, replayed, paths = World(), {}, {}
    changed_at: dict[int, tuple[frozenset[int], int]] = {}
    for partition in steps:
        found = world.step(partition, np.random.default_rng(seed))
        for record in found.changed_clusters:
            replayed[record.id] = record
        paths.update(found.changed_trees)
        living = {i: c for i, c in replayed.items() if not c.ended}
        assert sorted(living) == found.names.clusters.ids.tolist()
        for level, items_of in enumerate(world.ids):
            for name, items in members(items_of).items():
                record = living[name]
                last = len(world.ids) - 1 if not record.parent else record.coarsest
                assert record.finest <= level <= last
                assert record.size == len(items)
                assert record.peak == partition[level][min(items)]
                above = {world.ids[last + 1][i] for i in items} if last + 1 < len(world.ids) else {0}
                assert {record.parent} == above
                if changed_at.get(name, (frozenset(), 0))[0] != items:
                    changed_at[name] = (items, world.version)
                assert record.changed == changed_at[name][1]
        kept = {handle: path for handle, path in paths.items() if path}
        packed = distinct(world.names.trees.paths).tolist()
        assert kept == dict(
            zip(
                world.names.trees.handles.tolist(),
                (tuple(i for i in path if i) for path in packed),
                strict=True,
            )
        )


@given(partitions(), sequences(), st.integers(0, 2**32))
def test_nothing_changes_when_nothing_changed(last: Partition, steps: list[Partition], seed: int) -> None:
    world, rng = World(), np.random.default_rng(seed)
    for partition in [*steps, last]:
        world.step(partition, rng)
    before = world.names.clusters
    copied = [*last, last[-1]]  # a level that adds no link changes nothing either
    for partition in (last, copied):
        found = world.step(partition, rng)
        assert (found.changed_trees, found.changed_clusters, found.events) == ({}, [], [])
        assert np.array_equal(found.names.clusters.ids, before.ids)


@given(sequences(), st.integers(0, 2**32))
def test_events_replay_the_final_clusters(steps: list[Partition], seed: int) -> None:
    world, final = World(), set()
    for partition in steps:
        before = members(world.ids[-1])
        found = world.step(partition, np.random.default_rng(seed))
        now = members(world.ids[-1])
        seen = {name: {e.cluster: e for e in found.events if e.event == name} for name in NAMES}
        assert sum(map(len, seen.values())) == len(found.events)
        final = (final - seen["vanish"].keys()) | seen["emerge"].keys()
        assert final == now.keys()
        assert not seen["emerge"].keys() & before.keys()
        assert all(e.size == len(now.get(e.cluster, ())) for e in found.events)
        crossed = {
            i: "grow" if len(now[i]) > len(before[i]) else "shrink"
            for i in now.keys() & before.keys()
            if len(now[i]).bit_length() != len(before[i]).bit_length()
        }
        assert crossed == {i: name for name in ("grow", "shrink") for i in seen[name]}
        assert merges(before, now) == {i: e.sources for i, e in seen["merge"].items()}
        assert merges(now, before) == {i: e.into for i, e in seen["split"].items()}
        for i, event in seen["vanish"].items():
            assert set(event.into) == {j for j in now if now[j] & before[i]}
        for i, event in seen["emerge"].items():
            assert set(event.sources) == {j for j in before if before[j] & now[i]}


NAMES = ("emerge", "split", "merge", "grow", "shrink", "vanish")


def merges(before: dict[int, frozenset[int]], now: dict[int, frozenset[int]]) -> dict[int, tuple[int, ...]]:
    """Which sets lost their largest part into which other; what left altogether is a part too."""
    found: dict[int, list[int]] = {}
    for i, items in sorted(before.items()):
        parts = {j: len(items & now[j]) for j in now if items & now[j]}
        best = min(parts, key=lambda j: (-parts[j], j != i, j), default=i)
        if best != i and parts[best] >= len(items) - sum(parts.values()):
            found.setdefault(best, []).append(i)
    return {j: tuple(lost) for j, lost in found.items()}


@given(sequences(), st.integers(0, 2**32))
def test_the_largest_part_keeps_the_id_unless_a_larger_one_brought_another(
    steps: list[Partition], seed: int
) -> None:
    world = World()
    for partition in steps:
        before = members(world.ids[-1])
        world.step(partition, np.random.default_rng(seed))
        now = members(world.ids[-1])
        for i, items in before.items():
            for j, others in now.items():
                if not items & others or i == j:
                    continue
                of_old = len(items & now.get(i, frozenset()))
                of_new = len(others & before.get(j, frozenset()))
                assert max(of_old, of_new) >= len(items & others)


def test_a_handle_follows_the_largest_part_and_its_path_tells_the_rest() -> None:
    trees = Trees(np.array([3, 8]), np.array([[1, 5], [2, 5]]))
    columns = [[1, 2, 5], [6, 4, 10], [0, 0, 1], [0, 0, 1], [11, 12, 11], [5, 5, 0], [1, 1, 1], [1, 1, 1]]
    clusters = Clusters(*(np.array(column) for column in columns))
    transfers = Transfers(np.array([3, 3, 8, 0]), np.array([0, 1, 1, 2]), np.array([4, 2, 4, 1]))
    up = np.array([[0, 7], [1, 7], [2, 9]])
    peaks = np.array([[11, 11], [12, 11], [30, 30]])
    found = follow_all(Names(trees, clusters, 20, 40), Unnamed(up, peaks), transfers, 2)
    assert found.handles.tolist() == [3, 8, 20]
    assert found.paths.tolist() == [[1, 5], [2, 5], [40, 40]]
    assert found.changed_trees == {20: (40,)}
    assert [(c.id, c.size, c.changed) for c in found.changed_clusters] == [(1, 4, 2), (2, 6, 2), (40, 1, 2)]
    assert [(e.event, e.cluster, e.size) for e in found.events] == [("emerge", 40, 1)]


def test_a_cluster_that_reaches_further_down_gets_a_record() -> None:
    """Two level-0 trees become one: the cluster has the same members, and is now the level-0 tree too."""
    world, rng = World(), np.random.default_rng(0)
    world.step([{1: 1, 2: 2}, {1: 2, 2: 2}], rng)
    found = world.step([{1: 2, 2: 2}, {1: 2, 2: 2}], rng)
    changed = [(c.id, c.finest, c.changed, c.ended, c.into) for c in found.changed_clusters]
    assert changed == [(1, 0, 1, 0, ()), (2, 0, 1, 2, (1,)), (3, 0, 1, 2, (1,))]
    assert found.events == []


def test_what_looks_at_the_touched_alone_finds_the_same_among_twenty_thousand() -> None:
    rng = np.random.default_rng(1)
    n = 20_000
    middle, top = rng.integers(0, 6_000, n), rng.integers(0, 2_000, 6_000)
    up = np.stack([np.arange(n), middle, top[middle]], axis=1)
    peaks = up + np.array([0, 10**6, 2 * 10**6])
    sizes = rng.integers(1, 20, n)
    none = np.zeros(n, np.int64)
    unnamed = Unnamed(up, peaks)
    first = follow_all(NO_NAMES, unnamed, Transfers(none, np.arange(n), sizes), 1)
    moved = rng.integers(0, n, 500)
    before = np.concatenate([first.handles, first.handles[moved], np.zeros(2_000, np.int64)])
    after = np.concatenate([np.arange(n), rng.integers(0, n, 500), rng.integers(0, n, 2_000)])
    transfers = Transfers(before, after, np.concatenate([sizes, np.ones(2_500, np.int64)]))
    names = replace(first.names, clusters=_grown(first, moved))
    whole, part = (each(names, unnamed, transfers, 2) for each in (follow_all, follow))
    assert whole.changed_clusters
    assert np.array_equal(part.handles, whole.handles)
    assert np.array_equal(part.paths, whole.paths)
    assert part.changed_trees == whole.changed_trees
    assert sorted(part.changed_clusters, key=ended_and_id) == sorted(whole.changed_clusters, key=ended_and_id)
    assert part.events == whole.events


def _grown(found: Lineage, moved: np.ndarray) -> Clusters:
    """The table as it were if the moved items had been in their trees."""
    old = found.names.clusters
    size = old.size.copy()
    for path in found.paths[moved].tolist():
        for i in {*path}:
            size[np.searchsorted(old.ids, i)] += 1
    return Clusters(old.ids, size, old.finest, old.coarsest, old.peak, old.parent, old.born, old.changed)
