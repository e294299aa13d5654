"""Small collections: embeddings in groups, keys, and what an engine holds, as plain Python."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from engine.collection.collection import Engine
from engine.config import Settings
from engine.storage.schema import TABLES
from engine.types import Float64

DIM = 8


def settings_of(path: Path, **sections: Any) -> Settings:
    """A store at `path` with the exact index, unless `index={...}` says otherwise."""
    return Settings.model_validate({"store": {"path": path}, "index": {"kind": "exact"}, **sections})


def draw(seed: int, count: int, groups: int = 8, dim: int = DIM, spread: float = 0.2) -> Float64:
    """Embeddings (count, dim) around the same few centres, whatever the seed."""
    centres = np.random.default_rng(1).normal(size=(groups, dim))
    rng = np.random.default_rng(seed)
    return centres[rng.integers(0, groups, count)] + spread * rng.normal(size=(count, dim))


def names(count: int, first: int = 0) -> list[str]:
    return [f"item {i}" for i in range(first, first + count)]


def labels(engine: Engine) -> dict[str, int]:
    keys, clusters = engine.labels()
    assert len(set(keys)) == len(keys) == len(clusters)
    return dict(zip(keys, clusters.tolist(), strict=True))


def members(found: dict[str, int]) -> dict[int, frozenset[str]]:
    clusters = defaultdict(set)
    for key, cluster in found.items():
        clusters[cluster].add(key)
    return {cluster: frozenset(own) for cluster, own in clusters.items()}


def stored(engine: Engine) -> dict[str, list[Any]]:
    """All that a store holds, except its identity."""
    return {table: [row for row in engine.store.rows(table) if row[0] != b"identity"] for table in TABLES}
