"""With an adapter, incremental equals batch over the adapted vectors; the store keeps those that came in."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.collection.check import check
from engine.collection.collection import Engine
from engine.collection.rebuild import rebuild_store
from engine.config import Settings
from engine.model.adapter import Adapter
from engine.types import Int16
from tests.properties.test_exactness import compare, names, settings_of
from tests.support.checks import check_calibration, check_state
from tests.support.random_models import random_model
from tests.support.sequences import KINDS, World, differences, rebuilt

pytestmark = pytest.mark.usefixtures("one_thread", "warm")

ADAPTERS = ("square", "fewer", "mlp", "cut", "line")


def draw(kind: str, dim: int, seed: int) -> Adapter:
    """`cut` leaves components out and `line` leaves one direction: many vectors become the same."""
    rng = np.random.default_rng([seed, 9])
    out = {"square": dim, "fewer": max(1, dim // 2), "mlp": dim + 3, "cut": max(1, dim - 1), "line": 1}[kind]
    weights: dict[str, Any] = {"direct": rng.normal(size=(dim, out)), "bias": 0.1 * rng.normal(size=out)}
    if kind == "mlp":
        weights["inner"], weights["inner_bias"] = rng.normal(size=(dim, 6)), rng.normal(size=6)
        weights["outer"] = rng.normal(size=(6, out))
    if kind in ("cut", "line"):
        weights = {"direct": np.eye(dim, out), "bias": np.zeros(out)}
    return Adapter.of(weights, {})


def with_model(settings: Settings, **files: Path | None) -> Settings:
    """`path` and `adapter`."""
    return settings.with_model(**files)


def adapted_world(world: World, adapter: Adapter | None) -> World:
    """The world as the adapter shows it."""
    shown = copy.copy(world)
    if adapter:
        shown.shape = replace(world.shape, dim=adapter.dim_out)
        shown.live = {key: adapter.apply(vector[None])[0] for key, vector in world.live.items()}
    return shown


def check_engine(engine: Engine, world: World, adapter: Adapter | None) -> None:
    """The state is that of a rebuild over the adapted vectors; the store has the incoming ones."""
    shown = adapted_world(world, adapter)
    other = rebuilt(shown, engine.model, engine.state.calibration.epoch, 2)
    assert not differences(engine.state.hierarchy, other.hierarchy)
    check_calibration(engine.state, other)
    check_state(engine.state, shown)
    assert stored(engine) == {key: vector.tobytes() for key, vector in world.live.items()}


def stored(engine: Engine) -> dict[bytes, bytes]:
    """The incoming vector of each item, from disk."""
    loaded = engine.store.load()
    if engine.adapter:
        vectors: Int16 = engine.store.incoming()
        assert len(vectors) == len(loaded.items.ids)
    else:
        with engine.store.snapshot() as tables:
            assert not tables.incoming.count()
        vectors = loaded.vectors.vectors[np.searchsorted(loaded.vectors.ids, loaded.items.nodes)]
    return dict(zip(loaded.items.keys, map(bytes, vectors), strict=True))


@pytest.mark.parametrize("seed", range(800, 815))
def test_equal_to_a_rebuild_with_an_adapter(tmp_path: Path, seed: int) -> None:
    play(tmp_path, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(815, 925))
def test_equal_to_a_rebuild_with_an_adapter_in_many_sequences(tmp_path: Path, seed: int) -> None:
    play(tmp_path, seed)


def play(folder: Path, seed: int) -> None:
    """Two engines take the same batches, one of them closed and opened again between them. Then rebuilds."""
    rng = np.random.default_rng([seed, 3])
    model = random_model(seed, k=int(rng.choice([3, 5, 10])))
    world = World(seed, KINDS[seed % len(KINDS)], 60, model)
    kind = ADAPTERS[seed % len(ADAPTERS)]
    print(world, kind)
    adapters = [draw(kind, world.shape.dim, seed), draw("fewer", world.shape.dim, seed + 1)]
    files = [folder / "first.safetensors", folder / "second.safetensors"]
    for adapter, file in zip(adapters, files, strict=True):
        adapter.save(file)
    index = "hnsw" if seed % 3 == 2 else "exact"
    model.save(folder / "model.safetensors")
    chosen = [
        with_model(
            settings_of(folder / name, world, index), path=folder / "model.safetensors", adapter=files[0]
        )
        for name in ("steady", "broken")
    ]
    steady, broken = (Engine.open(each, clock=lambda: 1.0) for each in chosen)
    for at, (batch, expected) in enumerate(world.batches()):
        where = f"batch {at} of {world}"
        applied = steady.apply(batch)
        assert {name: getattr(applied, name) for name in expected} == expected, where
        broken.apply(batch)
        if at % 4 == 0 and index == "exact" and world.live:
            check_engine(steady, world, adapters[0])
        if rng.random() < 0.4:
            broken.close()
            broken = Engine.open(chosen[1], clock=lambda: 1.0)
            compare(steady, broken, where)
    compare(steady, broken, f"the end of {world}")
    if world.live:
        rebuild(steady, broken, chosen, world, [(None, None), (adapters[1], files[1])])
    steady.close()
    broken.close()


def rebuild(
    live: Engine,
    other: Engine,
    chosen: list[Settings],
    world: World,
    goals: list[tuple[Adapter | None, Path | None]],
) -> None:
    """One is rebuilt while it is open, the other while it is not; with exact lists both come to the same."""
    other.close()
    for adapter, file in goals:
        mine, theirs = (with_model(each, adapter=file) for each in chosen)
        live.rebuild(mine)
        rebuild_store(theirs, clock=lambda: 1.0)
        with Engine.open(theirs, clock=lambda: 1.0) as found:
            if live.settings.index.kind == "exact":
                check_engine(live, world, adapter)
                check_engine(found, world, adapter)
                assert names(live) == names(found)
            assert stored(live) == stored(found) == {k: v.tobytes() for k, v in world.live.items()}
        report = check(theirs)
        assert not report.findings
        assert "partition" in report.looked_at
