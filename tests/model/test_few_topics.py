"""The shipped model on what people try first: one topic, two or three, near-copies; and random directions."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from benchmarks.bench_blobs import clusters, in_large
from benchmarks.blobs import Example, around, blobs, directions, examples
from engine.evaluation import scores
from engine.model.linkage import LinkageModel

EXAMPLES = {example.name: example for example in examples(0)}
CELLS = [
    (count, dim, 60, spread)
    for count, dim, spread in product((1, 2, 3, 5), (2, 16, 384), (0.1, 0.3, 0.5))
    if (count > 1 and (dim > 2 or spread < 0.4)) or (dim > 2 and spread < 0.4)
]


@pytest.fixture(scope="module")
def model() -> LinkageModel:
    return LinkageModel.load()


def found(model: LinkageModel, example: Example) -> tuple[int, float]:
    """Clusters, BCubed F."""
    part = clusters(model, example.emb)
    return len(np.unique(part)), scores.bcubed_f(example.labels, part)


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_people_try_first(model: LinkageModel, name: str) -> None:
    example = EXAMPLES[name]
    assert found(model, example) == (len(np.unique(example.labels)), 1.0)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_topics_without_gaps(model: LinkageModel, cell: tuple[int, int, int, float]) -> None:
    number, score = found(model, blobs(*cell, seed=0))
    assert number == cell[0]
    assert score >= 0.9


@pytest.mark.parametrize("number", [6, 12, 40])
@pytest.mark.parametrize("dim", [16, 24, 32, 64, 384])
def test_clear_clusters_are_found_as_they_are(model: LinkageModel, dim: int, number: int) -> None:
    """On the level above them nothing belongs together, which no level of the training showed."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(number), 20)
    emb = rng.normal(size=(number, dim))[labels] + 0.15 * rng.normal(size=(len(labels), dim))
    assert found(model, Example("clear", emb.astype(np.float32), labels)) == (number, 1.0)


@pytest.mark.parametrize(("dim", "items"), [(32, 300), (64, 1000), (384, 300), (1000, 500)])
def test_random_directions_stay_apart(model: LinkageModel, dim: int, items: int) -> None:
    assert in_large(clusters(model, directions(dim, items, seed=0).emb)) <= 0.02


@pytest.mark.parametrize("items", [15, 16, 17, 40, 120])
def test_a_topic_is_one_from_its_first_items_on(model: LinkageModel, items: int) -> None:
    """Below sixteen items the card's calibration serves, then the collection's own."""
    assert found(model, around((items,), 0.3, seed=0)) == (1, 1.0)
