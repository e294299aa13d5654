"""What tests of collections share: a model that links, and stores that are closed at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.collection.collection import Engine
from engine.model.linkage import LinkageModel
from tests.support.collections import settings_of
from tests.support.random_models import random_model

Open = Callable[..., Engine]


@pytest.fixture(scope="module")
def weights() -> LinkageModel:
    """They make many clusters of what `draw` draws, and at each tau others."""
    return random_model(7)


@pytest.fixture
def opened(tmp_path: Path, weights: LinkageModel) -> Iterator[Open]:
    """`opened(index={"kind": "hnsw"})` opens the test's store; all are closed at the end."""
    engines = []

    def open_it(name: str = "store", **sections: Any) -> Engine:
        engines.append(Engine.open(settings_of(tmp_path / name, **sections), weights, lambda: 1.5e9))
        return engines[-1]

    yield open_it
    for engine in engines:
        engine.close()
