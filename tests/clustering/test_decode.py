"""Densities, parents and roots: by hand, and against the plainest code."""

from __future__ import annotations

import numpy as np
import pytest

from engine.clustering import decode
from engine.clustering.decode import ROOT
from engine.clustering.neighborhood import Neighborhood
from engine.index.base import ExactIndex
from engine.index.columns import Nodes
from engine.system.stopwatch import Stopwatch
from engine.types import Int32
from engine.vectors import DOT_SCALE, quantize
from tests.support.sequences import hash_names

pytestmark = pytest.mark.usefixtures("one_thread")


def rows_of(*rows: int) -> Int32:
    return np.array(rows, np.int32)


def test_density_is_the_mean_of_similarity_times_signed_linkage() -> None:
    half = DOT_SCALE // 2
    dots = np.array([[DOT_SCALE, half, 7], [half, -1, -1], [-1, -1, -1]], np.int32)
    linkage = np.array([[1.0, 0.25, 1.0], [0.0, 9.0, 9.0], [9.0, 9.0, 9.0]], np.float32)
    lengths = np.array([3, 1, 0], np.int32)  # of the first list only the k = 2 in use count
    found = decode.densities(rows_of(0, 1, 2), 2, dots, lengths, linkage)
    assert found.dtype == np.float32
    assert found.tolist() == [(1.0 - 0.25) / 2, -0.5, 0.0]
    assert decode.densities(rows_of(1), 2, dots, lengths, linkage).tolist() == [-0.5]


def parents(
    linkage: list[list[float]], density: list[float], hashes: list[int], k: int = 3, tau: float = 0.5
) -> list[int]:
    """Of four nodes that all know each other: node i's neighbours are the others, rising."""
    neighbors = np.array([[j for j in range(4) if j != i] for i in range(4)], np.int32)
    edges = decode.Edges(neighbors, np.full(4, 3, np.int32), np.array(linkage, np.float32))
    order = decode.Order(np.array(density, np.float32), np.array(hashes, np.uint64))
    return decode.parents(rows_of(0, 1, 2, 3), k, np.float32(tau), edges, order).tolist()


HIGH = [[0.9] * 3] * 4


def test_the_most_probable_denser_neighbour_is_the_parent() -> None:
    linkage = [[0.6, 0.8, 0.9], [0.9, 0.6, 0.7], [0.9, 0.9, 0.6], [0.9, 0.9, 0.9]]
    assert parents(linkage, [0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4]) == [3, 3, 3, ROOT]
    assert parents(linkage, [0.1, 0.2, 0.4, 0.3], [1, 2, 3, 4]) == [3, 3, ROOT, 2]


def test_linkage_has_to_exceed_tau() -> None:
    linkage = [[0.5, 0.5, 0.5], [0.4, 0.5, 0.5000001], [0.5] * 3, [0.9] * 3]
    assert parents(linkage, [0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4]) == [ROOT, 3, ROOT, ROOT]


def test_equal_densities_are_ordered_by_hash() -> None:
    """So equal first items do link, and no two link each other."""
    assert parents(HIGH, [0.5] * 4, [7, 1, 9, 2**64 - 1]) == [2, 0, 3, ROOT]
    assert parents(HIGH, [0.5] * 4, [2**64 - 1, 9, 1, 7]) == [ROOT, 0, 3, 1]


def test_equal_linkage_goes_to_the_smaller_hash() -> None:
    assert parents(HIGH, [0.1, 0.2, 0.3, 0.4], [5, 8, 3, 6]) == [2, 2, 3, ROOT]


def test_only_the_k_in_use_are_candidates() -> None:
    assert parents(HIGH, [0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4], k=1) == [1, ROOT, ROOT, ROOT]


class Forest:
    """Nodes who all have each other in their lists, and the links among them."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(count)
        nodes = Nodes(4)
        self.lists = Neighborhood(nodes, ExactIndex(nodes), k=count - 1, width=count - 1)
        keys = [b"%d" % i for i in range(count)]
        rows = nodes.add(quantize(rng.normal(size=(count, 4)))[0], hash_names(keys))
        self.lists.update(rows, rows[:0], Stopwatch())
        self.parent = np.full(nodes.capacity, ROOT, np.int32)
        self.root = np.full(nodes.capacity, -1, np.int32)
        self.count = count

    def hang(self, parent: list[int]) -> tuple[list[int], list[int]]:
        """Set the parents; returns what `roots` says moved, and from where."""
        changed = np.flatnonzero(self.parent[: self.count] != parent).astype(np.int32)
        changed = np.union1d(changed, np.flatnonzero(self.root[: self.count] < 0)).astype(np.int32)
        self.parent[: self.count] = parent
        lists = self.lists
        moved, before = decode.roots(changed, self.parent, self.root, lists.heads, lists.links, lists.marks)
        assert not lists.marks.any()
        return moved.tolist(), before.tolist()

    def tops(self) -> list[int]:
        tops = []
        for row in range(self.count):
            while self.parent[row] != ROOT:
                row = int(self.parent[row])
            tops.append(row)
        return tops


def test_subtrees_follow_their_head() -> None:
    forest = Forest(6)
    moved, before = forest.hang([ROOT, 0, 1, ROOT, 3, 2])
    assert sorted(moved) == [0, 1, 2, 3, 4, 5]
    assert before == [-1] * 6
    assert forest.root[:6].tolist() == [0, 0, 0, 3, 3, 0]
    moved, before = forest.hang([ROOT, 3, 1, ROOT, 3, 2])
    assert sorted(zip(moved, before, strict=True)) == [(1, 0), (2, 0), (5, 0)]
    assert forest.root[:6].tolist() == [0, 3, 3, 3, 3, 3]
    assert forest.hang([ROOT, 3, 1, ROOT, 3, 1]) == ([], [])  # another parent, the same root
    moved, before = forest.hang([ROOT, 3, 1, 0, ROOT, 1])
    assert sorted(zip(moved, before, strict=True)) == [(1, 3), (2, 3), (3, 3), (4, 3), (5, 3)]
    assert forest.root[:6].tolist() == [0, 0, 0, 0, 4, 0]


@pytest.mark.parametrize("seed", range(10))
def test_roots_after_any_change_of_links(seed: int) -> None:
    rng = np.random.default_rng(seed)
    forest = Forest(60)
    parent = np.full(60, ROOT)
    for _ in range(30):
        order = rng.permutation(60)  # links lead to whoever stands before
        for at in range(60):
            if rng.random() < 0.3 or (parent[order[at]] >= 0 and parent[order[at]] not in order[:at]):
                parent[order[at]] = order[rng.integers(0, at)] if at and rng.random() < 0.8 else ROOT
        was = forest.root[:60].copy()
        moved, before = forest.hang(parent.tolist())
        assert forest.root[:60].tolist() == forest.tops(), f"{seed=}"
        differs = np.flatnonzero(was != forest.root[:60])
        assert sorted(moved) == differs.tolist(), f"{seed=}"
        assert before == was[moved].tolist(), f"{seed=}"
