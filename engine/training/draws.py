"""Draws the collections that the universal model is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from connectors.files.labelled import read_labelled
from engine.training import topics
from engine.training.datasets import (
    Collection,
    augmented,
    collection_of,
    distinct,
    generated,
    large_part,
    other_embeddings,
    subset,
)
from engine.training.plan import Plan
from engine.types import Epoch


def embeddings_of(path: Path, seed: int) -> list[Collection]:
    """Read a labelled file; return its collection, and the same items in other embedding spaces."""
    file = read_labelled(path)
    own = collection_of(path.stem, file)
    return [own, *other_embeddings(own, file, seed)]


def collection(sources: Sequence[Sequence[Collection]], rng: np.random.Generator, plan: Plan) -> Collection:
    """Draw a part of a source, augmented, or a generated mixture: two or more distinct, non-zero vectors.

    `sources`: the embeddings of each file, its own first.
    """
    while True:
        drawn = _drawn(sources, rng, plan)
        usable = np.linalg.norm(drawn.emb, axis=1) > 1e-6
        drawn = distinct(replace(drawn, emb=drawn.emb[usable], labels=drawn.labels[usable]))
        if len(drawn.emb) > 1:
            return drawn


def _drawn(sources: Sequence[Sequence[Collection]], rng: np.random.Generator, plan: Plan) -> Collection:
    if rng.random() < plan.generated_share:
        drawn = generated(rng, int(np.exp(rng.uniform(np.log(100), np.log(plan.most_items)))))
        drawn = subset(drawn, rng, plan.most_items) if rng.random() < 0.3 else drawn
    else:
        spaces = sources[int(rng.integers(len(sources)))]
        own = rng.random() < 0.6
        drawn = spaces[0] if own else spaces[int(rng.integers(len(spaces)))]
        large = rng.random() < plan.large_share
        drawn = large_part(drawn, rng) if large else augmented(subset(drawn, rng, plan.most_items), rng)
    if rng.random() < 0.1:
        drawn = topics.in_cone(rng, drawn)
    return topics.with_near_copies(rng, drawn) if rng.random() < 0.02 else drawn


def few_topics(rng: np.random.Generator, plan: Plan) -> Collection:
    """Draw a generated collection of `engine.training.topics`."""
    least = 16 if rng.random() < 0.7 else plan.most_items // 3
    return distinct(topics.drawn(rng, int(np.exp(rng.uniform(np.log(least), np.log(plan.most_items))))))


def lagging(epoch: Epoch, rng: np.random.Generator) -> Epoch:
    """Return a calibration that differs a little from a collection's own, as the engine's lags behind."""
    drift = 0.07 * rng.normal(size=2)
    mean, deviation = epoch.mean + drift[0] * epoch.deviation, epoch.deviation * float(np.exp(drift[1]))
    return Epoch(mean, deviation, epoch.items)
