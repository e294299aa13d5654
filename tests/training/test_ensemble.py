"""The ensemble: one network whose logits are the mean of several's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.clustering.hierarchy import Shape
from engine.clustering.pipeline import step
from engine.clustering.state import State
from engine.index.base import ExactIndex
from engine.model.linkage import LinkageModel, random_model
from engine.system.stopwatch import Stopwatch
from engine.training.ensemble import average
from engine.types import Batch, Float64
from engine.vectors import quantize


def logits(model: LinkageModel) -> Float64:
    """Of all level-0 edges of a small collection."""
    grid, _ = quantize(np.random.default_rng(4).normal(size=(60, 8)))
    state = State.empty(Shape(8, model.k, 0.5, 1), model, model.default_epoch, ExactIndex)
    keys = [b"%d" % row for row in range(60)]
    step(state, Batch(keys, grid, np.zeros(60, np.int64), [b""] * 60), 0, Stopwatch())
    p = state.hierarchy.base.linkage[:60].astype(np.float64)
    p[(p < 1e-3) | (p > 1 - 1e-3)] = np.nan  # too near the ends for a float32 to tell the logit
    return np.log(p / (1 - p))


def tame(seed: int) -> LinkageModel:
    """A random model with small logits, and the clip ranges of all others."""
    model, ranges = random_model(seed), random_model(1)
    for value in model.net.head_out.parameters():
        value.data *= 0.05
    nodes = replace(model.nodes, low=ranges.nodes.low, high=ranges.nodes.high)
    edges = replace(model.edges, low=ranges.edges.low, high=ranges.edges.high)
    return LinkageModel(model.net, nodes, edges, model.card)


def test_logits_are_the_mean() -> None:
    models = [tame(seed) for seed in (1, 2, 3)]
    each = [logits(model) for model in models]
    differs = np.abs(logits(average(models)) - np.mean(each, axis=0))
    assert np.isfinite(differs).sum() > 50
    assert np.nanmax(differs) < 1e-3
    assert np.nanmax(np.abs(each[0] - each[1])) > 0.1
