"""The metric that a lander begins with: what training reads is what the engine computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.errors import InputError
from engine.evaluation.bulk import hierarchy
from engine.model.lander import LanderCard
from engine.training.datasets import UNKNOWN
from engine.training.discriminant import discriminant, through
from engine.training.lander.graphs import levels
from engine.training.lander.metric import Geometry, MetricTrainer, directions
from engine.training.lander.plan import LanderPlan
from engine.types import Epoch
from tests.training.test_train import clusters

pytestmark = pytest.mark.usefixtures("one_thread")
PLAN = LanderPlan(steps=40, hidden=64, most_items=200)


@pytest.mark.parametrize("variant", ["mean", "gat"])
def test_what_the_last_layers_read_is_what_the_engine_computes(variant: str) -> None:
    data = clusters(1, 300, 12)
    trainer = MetricTrainer([data], replace(PLAN, variant=variant))
    for at in range(40):
        trainer.step(at / 40)
    model, reader = trainer.model(), trainer.optimization.ema_net
    built = hierarchy(data.emb, model, 0.5, 3, Epoch(0.0, 1.0, 0), base_tau=0.5)
    graphs = levels(data.emb, data.labels, model, (0.5, 0.5), 3)
    for level, graph in zip(built.levels, graphs, strict=False):
        with torch.no_grad():
            sums = torch.from_numpy(trainer.geometry.read(graph, trainer.projection))
            p = torch.sigmoid(reader(sums)).numpy()
        ranks = np.arange(len(p)) - np.searchsorted(graph.heads, graph.heads)
        assert np.abs(level.linkage[graph.heads, ranks] - p).max() < 1e-4


@pytest.mark.parametrize("mapped", [False, True], ids=["as they come", "behind an adapter"])
def test_each_class_is_seen_through_a_map_that_others_have_taught(mapped: bool) -> None:
    data = clusters(2, 200, 9)
    trainer = MetricTrainer([data], replace(PLAN, adapter=mapped))
    classes = [set(fold.classes) for fold in trainer.folds]
    assert len(classes) == 3
    assert sorted(each for fold in classes for each in fold) == list(range(9))
    source = trainer.sources[0]
    for fold in trainer.folds:
        others = np.setdiff1d(np.arange(9), fold.classes)
        rows = np.isin(source.labels, others)
        taught = discriminant(source.emb[rows], source.labels[rows], {})
        emb = through(taught if mapped else None, source.emb)
        assert np.array_equal(fold.sources[0].emb, emb)
        weights = np.eye(16) if mapped else taught.weights["direct"]
        assert np.array_equal(fold.projection, directions(emb[rows], weights, trainer.geometry.directions))
        assert (fold.seen(source.labels)[np.isin(source.labels, others)] == UNKNOWN).all()


def test_an_item_without_a_label_tells_nothing_of_its_list() -> None:
    data = clusters(3, 200, 6)
    labels = np.random.default_rng(3).integers(UNKNOWN, 3, 200)
    trainer = MetricTrainer([data], PLAN)
    [graph] = levels(data.emb, labels, trainer.model(), (0.99, 0.99), 1)[:1]
    unknown = labels[graph.heads] == UNKNOWN
    assert (unknown & (labels[graph.tails] != UNKNOWN)).any()
    assert np.array_equal(graph.known, (~unknown).astype(np.float32))
    assert (graph.target == ((labels[graph.heads] == labels[graph.tails]) & ~unknown)).all()


def test_a_map_that_classes_of_one_item_have_taught_is_none_too_large() -> None:
    """The others of a fold may all be such classes."""
    data = clusters(4, 40)
    labels = np.arange(40)
    labels[1] = 0
    trainer = MetricTrainer([replace(data, labels=labels)], PLAN)
    assert all(np.isfinite(fold.projection).all() for fold in trainer.folds)


def test_a_lander_that_is_too_narrow_is_refused() -> None:
    with pytest.raises(InputError, match="14 hidden units has no room for a distance: name --hidden 16"):
        Geometry(LanderCard(16, hidden=14))
    assert Geometry(LanderCard(16, hidden=16)).directions == 1
