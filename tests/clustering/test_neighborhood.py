"""Neighbour lists after any changes, against comparing all pairs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from engine.clustering.list_arrays import holders, holding
from engine.clustering.neighborhood import Neighborhood
from engine.index.base import ExactIndex
from engine.index.columns import Nodes
from engine.index.hnsw import HnswIndex
from engine.system.stopwatch import Stopwatch
from engine.types import Int16, Int32
from engine.vectors import quantize
from tests.support import reference
from tests.support.checks import check_lists
from tests.support.sequences import hash_names

pytestmark = pytest.mark.usefixtures("one_thread")
Held = dict[int, list[tuple[int, int]]]  # hash -> (neighbour's hash, dot)


class Pond:
    """Nodes that come and go, and their lists."""

    def __init__(self, seed: int, index: str, k: int = 5, width: int = 9, dim: int = 6) -> None:
        self.rng = np.random.default_rng(seed)
        self.seed, self.born = seed, 0
        self.nodes = Nodes(dim)
        made = ExactIndex(self.nodes) if index == "exact" else HnswIndex(self.nodes, threads=1)
        self.lists = Neighborhood(self.nodes, made, k=k, width=width)

    def step(self, arrivals: Int16, departures: int) -> tuple[Int32, Int32]:
        """Returns what `update` does, having held it against what really changed."""
        before, before_all = self.held(self.lists.k), self.held(self.lists.width)
        gone = self.rng.choice(self.nodes.all_rows(), departures, replace=False).astype(np.int32)
        self.nodes.remove(gone)
        keys = [b"%d" % (self.born + i) for i in range(len(arrivals))]
        new = self.nodes.add(arrivals, hash_names(keys))
        self.born += len(arrivals)
        changed, rewritten = self.lists.update(new, gone, Stopwatch())
        self.nodes.release(gone)
        check_lists(self.lists, self.nodes.all_rows(), np.setdiff1d(np.arange(self.nodes.rows), self.live))
        hashes = self.nodes.hashes
        assert set(hashes[changed].tolist()) == self.differing(before, self.held(self.lists.k))
        assert set(hashes[rewritten].tolist()) >= self.differing(before_all, self.held(self.lists.width))
        assert set(changed.tolist()) <= set(rewritten.tolist())
        return changed, rewritten

    @property
    def live(self) -> Int32:
        return self.nodes.all_rows()

    def held(self, width: int) -> Held:
        lists, hashes = self.lists, self.nodes.hashes
        held = {}
        for row in self.live.tolist():
            own = lists.neighbors[row, : min(width, lists.lengths[row])]
            held[int(hashes[row])] = list(zip(hashes[own].tolist(), lists.dots[row].tolist(), strict=False))
        return held

    @staticmethod
    def differing(before: Held, after: Held) -> set[int]:
        return {name for name in after if after[name] != before.get(name)}

    def wanted(self, width: int) -> Held:
        """All lists by brute force, as `held`."""
        rows, hashes = self.live, self.nodes.hashes
        near, dots = reference.nearest(self.nodes.vectors[rows], hashes[rows], width)
        return {
            int(hashes[row]): [(int(hashes[rows[j]]), dot) for j, dot in zip(js, own, strict=True) if j >= 0]
            for row, js, own in zip(rows, near.tolist(), dots.tolist(), strict=True)
        }

    def tides(self, kind: str, steps: int = 30) -> Iterator[tuple[Int16, int]]:
        """Arrivals and departures, down to nothing in the middle."""
        rng, dim = self.rng, self.nodes.vectors.shape[1]
        centres = rng.normal(size=(6, dim))
        for at in range(steps):
            count = int(rng.integers(0, 30)) if kind != "few" else int(rng.integers(0, 3))
            if kind == "lattice":
                grid = quantize(rng.integers(-1, 2, (count, dim)) + 0.01)[0]
            else:
                noise = rng.normal(size=(count, dim))
                grid = quantize(centres[rng.integers(0, 6, count)] + 0.4 * noise)[0]
            live = self.nodes.live
            share = rng.choice([0.0, 0.05, 0.3])
            yield grid, live if at == steps // 2 else int(np.ceil(share * live))


@pytest.mark.parametrize("kind", ["mixed", "lattice", "few"])
@pytest.mark.parametrize("seed", range(6))
def test_exact_lists_equal_brute_force(seed: int, kind: str) -> None:
    """The first k are N(i); beyond, what is known is certain."""
    k, width = [(5, 9), (5, 5), (1, 1), (10, 16), (3, 40), (10, 11)][seed]
    pond = Pond(seed, "exact", k, width)
    for at, (arrivals, departures) in enumerate(pond.tides(kind)):
        pond.step(arrivals, departures)
        where = f"{seed=} {at=}"
        assert pond.held(k) == pond.wanted(k), where
        held = pond.held(width)
        for name, all_of_them in pond.wanted(width).items():
            known = held[name]
            assert known == all_of_them[: len(known)], where


@pytest.mark.parametrize("kind", ["mixed", "lattice", "few"])
@pytest.mark.parametrize("seed", range(4))
def test_small_collections_have_exact_lists_with_hnsw_too(seed: int, kind: str) -> None:
    """As long as a search names everybody."""
    pond = Pond(seed, "hnsw")
    for at, (arrivals, departures) in enumerate(pond.tides(kind)):
        if pond.nodes.live + len(arrivals) - departures > pond.lists.search_width:
            departures = pond.nodes.live
        pond.step(arrivals, departures)
        assert pond.held(5) == pond.wanted(5), f"{seed=} {at=}"


def test_hnsw_lists_are_nearly_the_exact_ones() -> None:
    pond = Pond(20, "hnsw", k=10, width=16, dim=16)
    centres = pond.rng.normal(size=(40, 16))
    for at in range(14):
        noise = pond.rng.normal(size=(200, 16))
        arrivals = quantize(centres[pond.rng.integers(0, 40, 200)] + 0.5 * noise)[0]
        pond.step(arrivals, 0 if at % 3 else pond.nodes.live // 10)
    found, wanted = pond.held(10), pond.wanted(10)
    hits = sum(len(set(found[name]) & set(wanted[name])) for name in wanted)
    assert hits / sum(map(len, wanted.values())) > 0.99


def test_a_delete_within_the_slack_costs_no_search() -> None:
    pond = Pond(21, "exact", k=5, width=9)
    pond.step(quantize(pond.rng.normal(size=(100, 6)))[0], 0)
    searched: list[int] = []
    search = pond.lists.index.search

    def counted(rows: Int32, width: int) -> tuple[Int32, Int32]:
        searched.append(len(rows))
        return search(rows, width)

    pond.lists.index.search = counted  # type: ignore[method-assign]
    nothing = np.empty((0, 6), np.int16)
    for _ in range(4):
        pond.step(nothing, 1)
    assert sum(searched) == 0  # four of nine may go
    for _ in range(30):
        pond.step(nothing, 1)
    assert sum(searched) > 0
    assert pond.held(5) == pond.wanted(5)


@pytest.mark.parametrize("seed", range(5))
def test_affected_nodes_and_edges(seed: int) -> None:
    """Nodes: the changed and whoever has one of them in N(i). Edges: those with a changed end."""
    pond = Pond(seed, "exact")
    for arrivals, departures in pond.tides("mixed", steps=9):
        pond.step(arrivals, departures)
        rows, lists = pond.live, pond.lists
        changed = pond.rng.choice(rows, len(rows) // 8, replace=False).astype(np.int32)
        near = {row: lists.neighbors[row, : lists.degrees[row]].tolist() for row in rows.tolist()}
        marked = set(changed.tolist())
        nodes = [row for row in rows.tolist() if row in marked or marked & set(near[row])]
        edges = [(u, w) for u in near for w, v in enumerate(near[u]) if u in marked or v in marked]
        held = lists.affected_nodes(changed)
        assert held.tolist() == nodes
        sources, ranks = lists.affected_edges(held, changed)
        assert list(zip(sources.tolist(), ranks.tolist(), strict=True)) == edges
        backwards, _ = lists.affected_edges(held[::-1], changed)
        assert backwards.tolist() == sorted(sources.tolist(), reverse=True)
        assert not lists.marks.any()


def test_restored_lists_go_on_as_the_old_ones() -> None:
    pond, other = Pond(30, "exact"), Pond(30, "exact")
    for arrivals, departures in pond.tides("mixed", steps=10):
        pond.step(arrivals, departures)
    lists = pond.lists
    rows = pond.live
    number = np.full(pond.nodes.rows + 1, -1, np.int32)  # the last for -1
    number[rows] = np.arange(len(rows))
    copies = other.nodes.add(pond.nodes.vectors[rows], pond.nodes.hashes[rows])
    other.lists.restore(copies, number[lists.neighbors[rows]], lists.dots[rows])
    other.lists.index.insert(copies)
    other.born = pond.born
    check_lists(other.lists, copies, copies[:0])
    assert other.held(9) == pond.held(9)
    arrivals = quantize(pond.rng.normal(size=(20, 6)))[0]
    changed, rewritten = pond.step(arrivals, 0)
    again, rewritten_again = other.step(arrivals, 0)
    assert other.held(9) == pond.held(9)
    assert set(pond.nodes.hashes[changed].tolist()) == set(other.nodes.hashes[again].tolist())
    assert set(pond.nodes.hashes[rewritten].tolist()) == set(other.nodes.hashes[rewritten_again].tolist())


@pytest.mark.parametrize("seed", range(4))
def test_few_holders_and_many_are_found_alike(seed: int) -> None:
    """Along their chains, or by reading all lists: the same rows, also where gaps are left."""
    rng = np.random.default_rng(seed)
    nodes = Nodes(6)
    lists = Neighborhood(nodes, ExactIndex(nodes), k=4, width=7)
    rows = nodes.add(quantize(rng.normal(size=(300, 6)))[0], hash_names([b"%d" % i for i in range(300)]))
    lists.update(rows, rows[:0], Stopwatch())
    gone = rng.choice(rows, 60, replace=False).astype(np.int32)
    nodes.remove(gone)
    lists.update(rows[:0], gone, Stopwatch())
    for count in (0, 1, 5, 200):
        changed = rng.choice(nodes.all_rows(), count, replace=False).astype(np.int32)
        chains = holders(changed, lists.k, lists.arrays, lists.marks)
        reading = holding(changed, nodes.rows, lists.k, lists.arrays, lists.marks)
        held = np.isin(lists.neighbors[:, : lists.k], changed).any(axis=1)
        held[changed] = True
        assert np.array_equal(chains, np.flatnonzero(held))
        assert np.array_equal(reading, np.flatnonzero(held))
        assert not lists.marks.any()
