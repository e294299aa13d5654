"""Precision and recall of partitions, class by class, and changes that are taken back."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from engine.config import load
from engine.evaluation import scores
from engine.evaluation.evaluate import Churn, Labelled, run_in_bulk
from engine.model.adapter import Adapter


@pytest.mark.parametrize("seed", range(5))
def test_precision_and_recall_by_counting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, clusters = rng.integers(0, 4, 40), rng.integers(0, 6, 40)
    pairs = list(itertools.combinations(range(40), 2))
    same = [labels[a] == labels[b] for a, b in pairs]
    found = [clusters[a] == clusters[b] for a, b in pairs]
    both = sum(a and b for a, b in zip(same, found, strict=True))
    told = scores.pairwise(labels, clusters)
    assert (told.precision, told.recall) == pytest.approx((both / sum(found), both / sum(same)))
    shared = [(labels[i] == labels) & (clusters[i] == clusters) for i in range(40)]
    precision = [own.sum() / (clusters == clusters[i]).sum() for i, own in enumerate(shared)]
    recall = [own.sum() / (labels == labels[i]).sum() for i, own in enumerate(shared)]
    items = scores.bcubed(labels, clusters)
    assert (items.precision, items.recall) == pytest.approx((np.mean(precision), np.mean(recall)))
    classes = scores.by_class(labels, clusters)
    assert [score.items * (1 - score.f) for score in classes] == sorted(
        [score.items * (1 - score.f) for score in classes], reverse=True
    )
    for score in classes:
        own = labels == score.label
        assert score.items == own.sum() == sum(count for _, count in score.pieces)
        assert score.precision == pytest.approx(np.mean(np.array(precision)[own]))
        assert score.recall == pytest.approx(np.mean(np.array(recall)[own]))
        assert all((own & (clusters == cluster)).sum() == count for cluster, count in score.pieces)


class Stream:
    """What `Churn` asks of an engine."""

    def __init__(self) -> None:
        self.clusters: list[int] = []

    def __len__(self) -> int:
        return len(self.clusters)

    def labels(self) -> tuple[list[str], np.ndarray]:
        return [str(at) for at in range(len(self))], np.array(self.clusters)


def test_changes_that_are_taken_back_within_five_looks() -> None:
    stream, churn = Stream(), Churn(256 * 16)
    for look in range(16):
        stream.clusters += [1] * 256
        if look == 9:
            stream.clusters[:10] = [2] * 10  # back at the third look after: flapping
            stream.clusters[10:14] = [2] * 4  # stays
        if look == 12:
            stream.clusters[:10] = [1] * 10
        churn.observe(stream)  # type: ignore[arg-type]
    assert churn.flapping == pytest.approx(10 / 24)
    assert churn.rate == pytest.approx(24 / (256 * 8))
    assert churn.curve[8] == (256 * 10, 14 / 256)
    slow, late = Stream(), Churn(256 * 16)
    for look in range(16):
        slow.clusters += [1] * 256
        if look in (8, 14):
            slow.clusters[:10] = [1 if look == 14 else 2] * 10
        late.observe(slow)  # type: ignore[arg-type]
    assert late.flapping == 0.0


@pytest.mark.usefixtures("one_thread")
def test_several_taus_beside_an_adapter_of_fewer_components(tmp_path: Path) -> None:
    """The first run ingests, the others cluster its store again: all in the adapted space."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 8, 120)
    emb = (rng.normal(size=(8, 12))[labels] + 0.3 * rng.normal(size=(120, 12))).astype(np.float32)
    adapter = Adapter.of({"direct": rng.normal(size=(12, 5)), "bias": np.zeros(5)}, {})
    adapter.save(tmp_path / "adapter.safetensors")
    options = {"model.adapter": str(tmp_path / "adapter.safetensors"), "index.kind": "exact"}
    keys = [str(row) for row in range(120)]
    labelled = Labelled(keys, emb, labels, np.zeros(120), False)
    both = run_in_bulk(load(None, options), labelled, [0.3, 0.7])
    for tau, run in zip((0.3, 0.7), both, strict=True):
        [alone] = run_in_bulk(load(None, options), labelled, [tau])
        assert scores.ari(run.clusters, alone.clusters) == 1.0
