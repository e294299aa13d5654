"""The collections that the universal model is trained on: drawn anew, again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from connectors.files.labelled import read_labelled
from engine.training import topics
from engine.training.datasets import (
    Collection,
    collection_of,
    distinct,
    embedded_again,
    generated,
    large_part,
    subset,
    view,
)
from engine.training.plan import MOST_ITEMS, Plan


def versions(path: Path, seed: int) -> list[Collection]:
    """Read a labelled file: the collection, and the same items in other spaces."""
    file = read_labelled(path)
    own = collection_of(path.stem, file)
    return [own, *embedded_again(own, file, seed)]


def collection(sources: Sequence[Sequence[Collection]], rng: np.random.Generator, plan: Plan) -> Collection:
    """Draw a random part of a random view of a random collection; two items or more, distinct, not zero."""
    while True:
        drawn = _drawn(sources, rng, plan)
        usable = np.linalg.norm(drawn.emb, axis=1) > 1e-6
        drawn = distinct(replace(drawn, emb=drawn.emb[usable], labels=drawn.labels[usable]))
        if len(drawn.emb) > 1:
            return drawn


def _drawn(sources: Sequence[Sequence[Collection]], rng: np.random.Generator, plan: Plan) -> Collection:
    if rng.random() < plan.generated_share:
        drawn = generated(rng, int(np.exp(rng.uniform(np.log(100), np.log(MOST_ITEMS)))))
        drawn = subset(drawn, rng, MOST_ITEMS) if rng.random() < 0.3 else drawn
    else:
        versions = sources[int(rng.integers(len(sources)))]
        own = rng.random() < 0.6
        drawn = versions[0] if own else versions[int(rng.integers(len(versions)))]
        large = rng.random() < plan.large_share
        drawn = large_part(drawn, rng) if large else view(subset(drawn, rng, MOST_ITEMS), rng)
    if rng.random() < 0.1:
        drawn = topics.in_cone(rng, drawn)
    return topics.planted(rng, drawn) if rng.random() < 0.02 else drawn


def few_topics(rng: np.random.Generator) -> Collection:
    """Draw a generated collection of few topics, or one like it."""
    least = 16 if rng.random() < 0.7 else MOST_ITEMS // 3
    return distinct(topics.drawn(rng, int(np.exp(rng.uniform(np.log(least), np.log(MOST_ITEMS))))))
