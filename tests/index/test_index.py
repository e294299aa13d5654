"""Both indexes against comparing all pairs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.index.base import ALWAYS, ExactIndex
from engine.index.columns import Nodes
from engine.index.hnsw import Graph, HnswIndex
from engine.types import Int16, Int32
from engine.vectors import quantize
from tests.support import reference
from tests.support.sequences import hash_names

pytestmark = pytest.mark.usefixtures("one_thread")
NONE = np.empty(0, np.int32)
NEVER = np.iinfo(np.int32).max


def draw(rng: np.random.Generator, kind: str, count: int, dim: int = 16) -> Int16:
    if kind == "lattice":  # ties everywhere
        return quantize(rng.integers(-1, 2, (count, dim)) + 0.01)[0]
    if kind == "copies":
        return quantize(rng.normal(size=(7, dim)))[0][rng.integers(0, 7, count)]
    if kind == "nudges":  # dots that float32 cannot tell apart
        grid = np.repeat(quantize(rng.normal(size=(1, dim)))[0], count, axis=0)
        grid[np.arange(count), rng.integers(0, dim, count)] -= rng.integers(0, 3, count).astype(np.int16)
        return grid
    centres = rng.normal(size=(max(1, count // 20), dim))
    return quantize(centres[rng.integers(0, len(centres), count)] + 0.3 * rng.normal(size=(count, dim)))[0]


def fill(nodes: Nodes, grid: Int16) -> Int32:
    first = nodes.rows
    return nodes.add(grid, hash_names([b"%d" % (first + i) for i in range(len(grid))]))


def brute_force(nodes: Nodes, rows: Int32, width: int) -> tuple[Int32, Int32]:
    """Of these live rows, the nearest live others and the dots."""
    alive = nodes.all_rows()
    found, dots = reference.nearest(nodes.vectors[alive], nodes.hashes[alive], width)
    found = np.where(found >= 0, alive[found], -1) if len(alive) else found
    at = np.searchsorted(alive, rows)
    return found[at], dots[at]


KINDS = ("mixed", "lattice", "copies", "nudges")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [2, 40, 1024])
def test_exact_search_equals_brute_force(kind: str, dim: int) -> None:
    rng = np.random.default_rng(dim)
    nodes = Nodes(dim)
    index = ExactIndex(nodes)
    index.insert(fill(nodes, draw(rng, kind, 150, dim)))
    index.insert(fill(nodes, draw(rng, kind, 50, dim)))
    gone = rng.choice(200, 60, replace=False).astype(np.int32)
    nodes.remove(gone)
    index.remove(gone)
    nodes.release(gone)
    index.insert(fill(nodes, draw(rng, kind, 30, dim)))  # into rows that were freed
    rows = rng.permutation(nodes.all_rows())
    for width in (1, 10, 32, 250):  # 250: more than there are
        found, dots = index.search(rows, width)
        wanted, wanted_dots = brute_force(nodes, rows, width)
        assert np.array_equal(found, wanted)
        assert np.array_equal(dots, wanted_dots)
        assert found.dtype == dots.dtype == np.int32


def test_exact_search_across_blocks() -> None:
    """More rows than one block of similarities holds."""
    rng = np.random.default_rng(1)
    nodes = Nodes(2)
    index = ExactIndex(nodes)
    rows = fill(nodes, draw(rng, "mixed", 4500, 2))
    index.insert(rows)
    found, dots = index.search(rows, 4)
    few = np.sort(rng.choice(rows, 300, replace=False))
    order = np.arange(len(rows))
    for row in few.tolist():
        exact = nodes.vectors.astype(np.int64)[: len(rows)] @ nodes.vectors[row].astype(np.int64)
        best = [other for other in np.lexsort((nodes.hashes[order], -exact)) if other != row][:4]
        assert found[row].tolist() == best
        assert dots[row].tolist() == exact[best].tolist()
    again, _ = index.search(few, 4)
    assert np.array_equal(again, found[few])


@pytest.mark.parametrize("kind", KINDS)
def test_entrants_are_all_pairs_that_reach_the_bound(kind: str) -> None:
    rng = np.random.default_rng(2)
    nodes = Nodes(40)
    index = ExactIndex(nodes)
    index.insert(fill(nodes, draw(rng, kind, 180, 40)))
    new = fill(nodes, draw(rng, kind, 50, 40))
    index.insert(new)
    wide = nodes.vectors[: nodes.rows].astype(np.int64)
    dots = wide @ wide.T
    bounds = dots[rng.integers(0, 230, 230), np.arange(230)].astype(np.int32)  # reached, by some exactly
    bounds[:20], bounds[20:40] = ALWAYS, NEVER
    wanted = {(i, u) for i in new.tolist() for u in range(230) if i != u and dots[i, u] >= bounds[u]}
    assert any(dots[i, u] == bounds[u] for i, u in wanted)
    some = np.array([3, 7], np.int32)
    for searched in (NONE, np.concatenate([new, some]), some, new[::-1]):  # before: not, with others, others
        index.search(searched, 4)
        items, lists, exact = index.entrants(new, bounds)
        found = list(zip(items.tolist(), lists.tolist(), strict=True))
        assert len(found) == len(set(found))
        assert set(found) == wanted
        assert exact.tolist() == dots[items, lists].tolist()


def test_no_newcomers_enter_nothing() -> None:
    nodes = Nodes(3)
    index = ExactIndex(nodes)
    index.insert(fill(nodes, draw(np.random.default_rng(3), "mixed", 5, 3)))
    assert [len(column) for column in index.entrants(NONE, np.full(5, ALWAYS, np.int32))] == [0, 0, 0]
    found, dots = index.search(NONE, 4)
    assert found.shape == dots.shape == (0, 4)


def hnsw(grid: Int16, threads: int = 1, **chosen: int) -> tuple[Nodes, HnswIndex, Int32]:
    nodes = Nodes(grid.shape[1])
    index = HnswIndex(nodes, threads=threads, **chosen)
    rows = fill(nodes, grid)
    index.insert(rows)
    return nodes, index, rows


def remove(nodes: Nodes, index: HnswIndex, rows: Int32) -> None:
    nodes.remove(rows)
    index.remove(rows)


def recall(nodes: Nodes, index: HnswIndex, width: int = 10) -> float:
    """The share of true neighbours found; what is found is scored exactly and in order."""
    rows = nodes.all_rows()
    found, dots = index.search(rows, width)
    wanted, _ = brute_force(nodes, rows, width)
    wide = nodes.vectors.astype(np.int64)
    hits = 0
    for row, own, own_dots, best in zip(rows, found, dots, wanted, strict=True):
        own = own[own >= 0]
        assert row not in own
        assert nodes.alive[own].all()
        assert len(set(own.tolist())) == len(own)
        assert own_dots[: len(own)].tolist() == (wide[own] @ wide[row]).tolist()
        assert own.tolist() == own[np.lexsort((nodes.hashes[own], -own_dots[: len(own)]))].tolist()
        hits += len(set(own.tolist()) & set(best.tolist()))
    return hits / (wanted >= 0).sum()


def test_hnsw_finds_nearly_all() -> None:
    nodes, index, _ = hnsw(draw(np.random.default_rng(4), "mixed", 2000, 32))
    assert recall(nodes, index) > 0.995


@pytest.mark.parametrize("threads", [1, 2])
def test_hnsw_grows_in_batches_by_several_threads(threads: int) -> None:
    rng = np.random.default_rng(5)
    nodes, index, _ = hnsw(draw(rng, "mixed", 900), threads=threads)
    for _ in range(5):  # past the capacity of 1,024 it starts with
        index.insert(fill(nodes, draw(rng, "mixed", 300)))
    assert recall(nodes, index) > 0.995


def test_hnsw_never_inserts_and_searches_at_once() -> None:
    """hnswlib would crash or answer nonsense; both may be called from any thread."""
    rng = np.random.default_rng(6)
    grid = draw(rng, "mixed", 3000)
    nodes, index, rows = hnsw(grid[:1000], threads=2)
    later = [fill(nodes, grid[start : start + 200]) for start in range(1000, 3000, 200)]
    problems: list[BaseException] = []

    def search() -> None:
        try:
            for _ in range(40):
                found, _ = index.search(rows[:50], 10)
                assert (found >= 0).all()
        except BaseException as problem:
            problems.append(problem)

    searching = threading.Thread(target=search)
    searching.start()
    for part in later:
        index.insert(part)
    searching.join()
    assert not problems
    assert recall(nodes, index) > 0.995


def test_hnsw_never_names_the_deleted() -> None:
    rng = np.random.default_rng(7)
    nodes, index, rows = hnsw(draw(rng, "mixed", 1500))
    gone = rng.choice(rows, 700, replace=False).astype(np.int32)
    nodes.remove(gone)
    index.remove(gone)
    assert index.tombstones == 700
    assert recall(nodes, index) > 0.99  # `recall` asserts that all are alive
    nodes.release(gone)
    index.insert(fill(nodes, draw(rng, "mixed", 400)))  # other vectors in the freed rows
    assert recall(nodes, index) > 0.99


def test_hnsw_is_built_anew_beside_when_tombstones_prevail() -> None:
    rng = np.random.default_rng(8)
    nodes, index, rows = hnsw(draw(rng, "mixed", 3000))
    remove(nodes, index, rows[:1024])
    assert index._next is None  # not more than the least worth it
    remove(nodes, index, rows[1024:1030])
    assert index._next is not None
    assert index.tombstones == 1030
    remove(nodes, index, rows[1100:1400])
    nodes.release(rows[1100:1300])
    index.insert(fill(nodes, draw(rng, "mixed", 500)))  # some in rows that the next graph still awaited
    assert index._next is not None
    assert recall(nodes, index) > 0.995  # the old one answers
    remove(nodes, index, rows[1400:1600])
    assert index._next is None
    assert index.tombstones < 500
    assert recall(nodes, index) > 0.995


def test_hnsw_of_which_most_is_deleted_at_once_is_renewed_at_once() -> None:
    rng = np.random.default_rng(19)
    nodes, index, rows = hnsw(draw(rng, "mixed", 3000))
    remove(nodes, index, rows[:2700])
    assert (index.tombstones, index._next) == (0, None)
    assert recall(nodes, index) > 0.995


def test_hnsw_under_churn_has_few_tombstones_and_no_long_step(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(18)
    nodes, index, _ = hnsw(draw(rng, "mixed", 4000), ef_construction=60)
    most, renewals, added = 0, 0, 0
    add = Graph.add

    def counted(graph: Graph, rows: Int32, *rest: Any) -> None:
        nonlocal added
        added += len(rows)
        add(graph, rows, *rest)

    monkeypatch.setattr(Graph, "add", counted)
    for _ in range(60):
        added = 0
        growing = index._next is not None
        gone = rng.choice(nodes.all_rows(), 200, replace=False).astype(np.int32)
        remove(nodes, index, gone)
        nodes.release(gone)
        index.insert(fill(nodes, draw(rng, "mixed", 200)))
        assert added <= 200 * 6  # both graphs get the new ones, the next one two for each change
        renewals += growing and index._next is None
        most = max(most, index.tombstones)
    assert renewals >= 2
    assert most < 0.4 * (4000 + most)
    assert recall(nodes, index) > 0.99


@pytest.mark.parametrize("live", [0, 1, 2, 5, 40])
def test_hnsw_asked_for_more_than_there_are(live: int) -> None:
    rng = np.random.default_rng(9)
    nodes, index, rows = hnsw(draw(rng, "mixed", 60))
    nodes.remove(rows[live:])
    index.remove(rows[live:])
    found, dots = index.search(rows[:live], 100)
    wanted, wanted_dots = brute_force(nodes, rows[:live], 100)
    assert np.array_equal(found, wanted)
    assert np.array_equal(dots, wanted_dots)
    near = index.query(draw(rng, "mixed", 2), 100)
    assert [sorted(row.tolist()) for row in near] == [rows[:live].tolist()] * 2


def test_hnsw_torn_apart_by_deletes_answers_all_the_same() -> None:
    """With few links and all of a region gone, parts of the graph are out of reach."""
    rng = np.random.default_rng(10)
    nodes, index, rows = hnsw(draw(rng, "copies", 1000), M=2, ef_construction=10, ef=10)
    gone = rng.permutation(rows)[:900].astype(np.int32)
    nodes.remove(gone)
    index.remove(gone)
    left = nodes.all_rows()
    found, dots = index.search(left, 99)
    wanted, wanted_dots = brute_force(nodes, left, 99)
    assert np.array_equal(found, wanted)
    assert np.array_equal(dots, wanted_dots)
    assert sorted(index.query(draw(rng, "copies", 1), 100)[0].tolist()) == left.tolist()


def test_hnsw_of_exact_copies() -> None:
    """Dozens of items at one point are each other's nearest; none is its own neighbour."""
    nodes, index, rows = hnsw(draw(np.random.default_rng(11), "copies", 300))
    found, dots = index.search(rows, 10)
    own = nodes.vectors[rows].astype(np.int64)
    assert (dots == (own * own).sum(axis=1)[:, None]).all()
    assert (found != rows[:, None]).all()


def test_hnsw_saved_and_loaded_answers_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(12)
    grid = draw(rng, "mixed", 1500)
    nodes, index, rows = hnsw(grid)
    gone = rows[::5]
    nodes.remove(gone)
    index.remove(gone)
    labels, held, size = index.save(tmp_path / "graph")
    assert size == (tmp_path / "graph").stat().st_size
    assert np.array_equal(np.sort(held), nodes.all_rows())

    place = rng.permutation(len(held)).astype(np.int32)  # the live items, in other rows
    other = Nodes(grid.shape[1])
    other.add(nodes.vectors[held][np.argsort(place)], nodes.hashes[held][np.argsort(place)])
    loaded = HnswIndex(other, threads=1)
    loaded.load(tmp_path / "graph", labels, place)
    assert loaded.tombstones == len(gone)
    found, dots = index.search(held.astype(np.int32), 10)
    again, dots_again = loaded.search(place, 10)
    number = np.full(nodes.rows, -1, np.int32)
    number[held] = place
    assert np.array_equal(again, number[found])
    assert np.array_equal(dots_again, dots)

    more = other.add(draw(rng, "mixed", 300), hash_names([b"more %d" % i for i in range(300)]))
    loaded.insert(more)
    other.remove(more[:50])
    loaded.remove(more[:50])
    assert recall(other, loaded) > 0.99


def test_hnsw_loaded_without_some_of_its_items(tmp_path: Path) -> None:
    """Items that are gone since the save are deleted in the loaded graph."""
    nodes, index, rows = hnsw(draw(np.random.default_rng(13), "mixed", 400))
    labels, held, _ = index.save(tmp_path / "graph")
    loaded = HnswIndex(nodes, threads=1)
    nodes.remove(rows[:100])
    keep = held >= 100
    loaded.load(tmp_path / "graph", labels[keep], held[keep].astype(np.int32))
    assert loaded.tombstones == 100
    assert recall(nodes, loaded) > 0.99
