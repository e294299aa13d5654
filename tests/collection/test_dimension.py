"""The first vectors fix the dimension of a collection; when all items are gone, the next ones do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.collection.collection import Engine
from engine.config import Settings
from engine.errors import InputError
from tests.support.random_models import random_model

MODEL = random_model(3)


def settings_of(path: Path, kind: str, dim: int | None = None) -> Settings:
    return Settings(store={"path": path}, index={"kind": kind}, collection={"dim": dim})  # type: ignore[arg-type]


def vectors(dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(40, dim))


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
@pytest.mark.parametrize("reopened", [False, True])
def test_an_emptied_collection_takes_another_dimension(tmp_path: Path, kind: str, reopened: bool) -> None:
    keys = [f"k{i}" for i in range(40)]
    settings = settings_of(tmp_path / "store", kind)
    engine = Engine.open(settings, MODEL)
    engine.upsert(keys, vectors(4, 1))
    engine.delete(keys[1:])
    with pytest.raises(InputError, match="the embedding has 8 dimensions, not the collection's 4"):
        engine.upsert(keys, vectors(8, 2))
    before = set(engine.labels()[1].tolist())
    engine.delete(keys[:1])
    assert engine.dim is None
    engine.delete(["nobody"])  # a batch without vectors
    if reopened:
        engine.close()
        engine = Engine.open(settings, MODEL)
        assert engine.dim is None
    engine.upsert(keys, vectors(8, 2))
    assert (engine.dim, len(engine)) == (8, 40)
    names, clusters = engine.labels()
    assert not before & set(clusters.tolist())  # ids are never used again
    engine.close()
    with Engine.open(settings, MODEL) as engine:
        again, same = engine.labels()
        assert dict(zip(again, same.tolist(), strict=True)) == dict(
            zip(names, clusters.tolist(), strict=True)
        )
    fresh = settings_of(tmp_path / "fresh", "exact")
    with Engine.open(fresh, MODEL) as other:
        other.upsert(keys, vectors(8, 2))
        expected = dict(zip(*other.labels(), strict=True))
    if kind == "exact":
        groups = [expected[name] for name in names]
        pairs = set(zip(groups, clusters.tolist(), strict=True))
        assert len(pairs) == len(set(groups)) == len(set(clusters.tolist()))  # the same partition


def test_a_dimension_of_the_settings_stays(tmp_path: Path) -> None:
    with Engine.open(settings_of(tmp_path, "exact", 4), MODEL) as engine:
        engine.upsert(["a"], [[1, 2, 3, 4]])
        engine.delete(["a"])
        assert engine.dim == 4
        with pytest.raises(InputError, match="has 2 dimensions, not the collection's 4"):
            engine.upsert(["a"], [[1, 2]])
