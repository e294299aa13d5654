"""A store whose model is `lander`, which reads the vectors and takes one dimension."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.collection.check import check
from engine.collection.collection import Engine
from engine.config import Settings
from engine.errors import InputError
from engine.model.lander import LanderModel
from engine.types import Float64
from tests.support.random_models import random_lander, random_model

pytestmark = pytest.mark.usefixtures("one_thread", "warm")
DIM = 8


def draw(count: int, seed: int = 1, dim: int = DIM) -> Float64:
    centres = np.random.default_rng(5).normal(size=(10, dim))
    rng = np.random.default_rng(seed)
    return centres[rng.integers(0, 10, count)] + 0.3 * rng.normal(size=(count, dim))


def settings_of(path: Path, **more: Any) -> Settings:
    given = {"store": {"path": path / "store"}, "index": {"kind": "exact"}, "model": {"max_levels": 1}}
    return Settings.model_validate({**given, **more})


@pytest.mark.parametrize("variant", ["mean", "gat"])
def test_assign_is_what_an_insert_would_find(tmp_path: Path, variant: str) -> None:
    """The linkage of the edges from a vector, were it inserted and no other list changed."""
    model = random_lander(6, DIM, 3, variant=variant)
    known, asked = draw(80), np.random.default_rng(2).normal(size=(25, DIM))
    with Engine.open(settings_of(tmp_path), model) as engine:
        engine.upsert([f"k{row}" for row in range(80)], known)
        answers = engine.assign(asked)
        for row, answer in enumerate(answers):
            assert answer == engine.assign(asked[row : row + 1])[0]
        lists, compared = engine.state.hierarchy.base.lists, set()
        for row, answer in enumerate(answers):
            before = lists.neighbors[:80, :3].copy()
            engine.upsert(["new"], asked[row : row + 1])
            at = engine.state.items.nodes[engine.state.items.row_of[b"new"]]
            near = lists.neighbors[at, :3]
            if np.array_equal(lists.neighbors[near, :3], before[near]):
                found = engine.state.hierarchy.base.linkage[at].max()
                assert answer.probability == float(found)
                compared.add(answer.probability)
            engine.delete(["new"])
        assert len(compared) > 3


def test_opened_again_checked_and_rebuilt_under_another_model(tmp_path: Path) -> None:
    path = tmp_path / "lander.safetensors"
    random_lander(3, DIM, variant="gat").save(path)
    settings = settings_of(tmp_path, model={"path": path})
    with Engine.open(settings) as engine:
        assert engine.dim == DIM
        engine.upsert([f"k{row}" for row in range(60)], draw(60))
        before = dict(zip(*engine.labels(), strict=True))
    with Engine.open(settings) as engine:
        assert isinstance(engine.model, LanderModel)
        assert dict(zip(*engine.labels(), strict=True)) == before
        engine.upsert(["z"], draw(1, 9))
    report = check(settings)
    assert not report.findings
    assert not report.not_looked_at
    with Engine.open(settings) as engine:
        with pytest.raises(InputError, match="takes embeddings of 5 components, these have 8"):
            engine.rebuild(settings, random_lander(3, 5))
        assert engine.rebuild(settings, random_model(1)).items == 61
        assert engine.rebuild(settings, random_lander(4, DIM)).items == 61


def test_embeddings_of_another_dimension_change_nothing(tmp_path: Path) -> None:
    with Engine.open(settings_of(tmp_path), random_lander(3, DIM)) as engine:
        with pytest.raises(InputError, match="nothing has changed"):
            engine.upsert(["a", "b"], draw(2, dim=5))
        assert len(engine) == 0
        engine.upsert(["a"], draw(1))
    wrong = settings_of(tmp_path / "other", collection={"dim": 5})
    with pytest.raises(InputError, match="takes embeddings of 8 components, these have 5"):
        Engine.open(wrong, random_lander(3, DIM))
