"""The clusterers that the benchmark of quality writes itself, against their definitions."""

from __future__ import annotations

from itertools import pairwise

import networkx
import numpy as np
import pytest

from benchmarks import clusterers
from engine.evaluation import scores
from engine.types import Float32, Int64


def blobs(seed: int, classes: int = 12, each: int = 15, noise: float = 0.25) -> tuple[Float32, Int64]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    emb = rng.normal(size=(classes, 16))[labels] + noise * rng.normal(size=(len(labels), 16))
    return (emb / np.linalg.norm(emb, axis=1, keepdims=True)).astype(np.float32), labels


def same(one: Int64, other: Int64) -> bool:
    return scores.ari(one, other) == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_finch_joins_first_neighbors_and_those_that_share_one(seed: int) -> None:
    emb, labels = blobs(seed, noise=0.6)
    dots = emb @ emb.T
    np.fill_diagonal(dots, -np.inf)
    first = dots.argmax(axis=1)
    graph = networkx.Graph()
    graph.add_nodes_from(range(len(emb)))
    for i, j in np.argwhere((first[:, None] == first) | (first == np.arange(len(emb))[:, None])).tolist():
        graph.add_edge(i, j)
    expected = np.empty(len(emb), np.int64)
    for at, part in enumerate(networkx.connected_components(graph)):
        expected[list(part)] = at
    partitions = list(clusterers.finch(emb))
    assert same(partitions[0], expected)
    counts = [len(np.unique(each)) for each in partitions]
    assert counts == sorted(counts, reverse=True)
    for finer, coarser in pairwise(partitions):  # nested
        assert len(np.unique(np.stack([finer, coarser]), axis=1).T) == len(np.unique(finer))
    assert max(scores.bcubed_f(labels, each) for each in partitions) > 0.8


@pytest.mark.parametrize("seed", range(3))
def test_similar_pairs_are_all_pairs_of_a_small_set(seed: int) -> None:
    emb, _ = blobs(seed)
    pairs = clusterers.similar_pairs(emb)
    kept = pairs.similarity >= 0.6
    one, other = np.nonzero(np.triu(emb @ emb.T >= 0.6, 1))
    assert set(zip(pairs.first[kept], pairs.second[kept], strict=True)) == set(zip(one, other, strict=True))
    graph = networkx.Graph(zip(one.tolist(), other.tolist(), strict=True))
    alone = len(emb) - graph.number_of_nodes()
    found = clusterers.components(pairs, 0.6)
    assert len(np.unique(found)) == networkx.number_connected_components(graph) + alone


def test_every_clusterer_finds_what_is_plain() -> None:
    emb, labels = blobs(0, noise=0.1)
    pairs = clusterers.similar_pairs(emb)
    links = clusterers.Links(cluster=0.8, sub=0.9)
    for vector in emb[np.random.default_rng(0).permutation(len(emb))]:
        links.learn(vector)
    order = np.random.default_rng(0).permutation(len(emb))
    assert same(links.labels(), labels[order])
    assert same(clusterers.chinese_whispers(pairs, 0.8), labels)
    assert same(clusterers.cut(clusterers.average_linkage(emb), 0.3), labels)


def test_links_asks_less_of_few_items_and_the_square_of_its_similarity_of_one() -> None:
    links = clusterers.Links(cluster=0.7, sub=0.9)
    assert links.least(1, 1) == pytest.approx(0.49)
    assert links.least(1, 1) < links.least(1, 9) < links.least(9, 9) < links.least(10**9, 10**9)
    assert links.least(10**9, 10**9) == pytest.approx(1.0, abs=1e-6)
