"""Scores against their definitions, pair by pair and item by item."""

from __future__ import annotations

import numpy as np
import pytest

from engine.evaluation.scores import ari, bcubed_f, bcubed_f_of, nmi, pairwise_f


def by_definition(labels: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    same_class = labels[:, None] == labels
    same_cluster = clusters[:, None] == clusters
    both = (same_class & same_cluster).sum(axis=1)
    precision, recall = (both / same_cluster.sum(axis=1)).mean(), (both / same_class.sum(axis=1)).mean()
    off = ~np.eye(len(labels), dtype=bool)
    true, found, hit = (
        (pairs & off).sum() for pairs in (same_class, same_cluster, same_class & same_cluster)
    )
    return 2 * hit / (true + found), 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("seed", range(20))
def test_f_scores_are_their_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 120))
    labels, clusters = rng.integers(-3, 6, n), rng.integers(0, 1 << 40, 4)[rng.integers(0, 4, n)]
    pairwise, bcubed = by_definition(labels, clusters)
    assert pairwise_f(labels, clusters) == pytest.approx(pairwise), f"{seed=}"
    assert bcubed_f(labels, clusters) == pytest.approx(bcubed), f"{seed=}"


@pytest.mark.parametrize("seed", range(20))
def test_f_over_some_classes_counts_all_items_of_their_clusters(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(20, 120))
    labels, clusters = rng.integers(0, 6, n), rng.integers(0, 5, n)
    classes = np.unique(labels)[:3]
    items = np.flatnonzero(np.isin(labels, classes))
    both = [((labels == labels[item]) & (clusters == clusters[item])).sum() for item in items]
    precision = np.mean([x / (clusters == clusters[item]).sum() for x, item in zip(both, items, strict=True)])
    recall = np.mean([x / (labels == labels[item]).sum() for x, item in zip(both, items, strict=True)])
    expected = 2 * precision * recall / (precision + recall)
    assert bcubed_f_of(labels, clusters, classes) == pytest.approx(expected), f"{seed=}"
    assert bcubed_f_of(labels, clusters, labels) == pytest.approx(bcubed_f(labels, clusters)), f"{seed=}"


def test_perfect_and_renamed_clusters_score_one() -> None:
    labels = np.repeat(np.arange(9), np.arange(1, 10))
    for score in (pairwise_f, bcubed_f, nmi, ari):
        assert score(labels, 100 - labels) == pytest.approx(1.0)


def test_all_alone_and_all_together() -> None:
    labels = np.repeat([0, 1], 5)
    assert pairwise_f(labels, np.arange(10)) == 0.0
    assert pairwise_f(np.arange(10), np.arange(10)) == 1.0
    assert bcubed_f(labels, np.arange(10)) == pytest.approx(2 * 0.2 / 1.2)
    assert bcubed_f(labels, np.zeros(10, dtype=int)) == pytest.approx(2 * 0.5 / 1.5)
    assert ari(labels, np.zeros(10, dtype=int)) == pytest.approx(0.0)


def test_no_items() -> None:
    assert pairwise_f([], []) == bcubed_f([], []) == 1.0
