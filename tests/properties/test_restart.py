"""Opening a store takes from the snapshots what still holds, computes the rest, and ends where it was."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import orjson
import pytest

from engine.collection import snapshots
from engine.collection.collection import Engine
from engine.collection.snapshots import prepare
from engine.config import Settings
from engine.model.network import Linkage
from engine.system import files
from tests.properties.test_exactness import compare, settings_of
from tests.support.random_models import random_model
from tests.support.sequences import KINDS, World

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("seed", range(700, 706))
def test_a_restart_from_an_older_snapshot_changes_nothing(tmp_path: Path, seed: int) -> None:
    from_older_snapshots(tmp_path, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(706, 740))
def test_restarts_from_older_snapshots_change_nothing(tmp_path: Path, seed: int) -> None:
    from_older_snapshots(tmp_path, seed)


def from_older_snapshots(folder: Path, seed: int) -> None:
    """Two engines take the same batches; one loses its memory now and then, as a kill makes it."""
    rng = np.random.default_rng([seed, 5])
    model = random_model(seed, k=int(rng.choice([3, 5, 10])))
    world = World(seed, KINDS[seed % len(KINDS)], 100, model)
    print(world)
    steady, broken = (
        Engine.open(settings_of(folder / name, world), model, lambda: 1.0) for name in ("steady", "broken")
    )
    path, kept = folder / "broken", folder / "kept"
    for at, (batch, _) in enumerate(world.batches()):
        where = f"batch {at} of {world}"
        steady.apply(batch)
        broken.apply(batch)
        if rng.random() < 0.3:
            prepare(path, broken.state, model)()
        if rng.random() < 0.3:
            shutil.copytree(path, kept, ignore=shutil.ignore_patterns("*.mdb", "writer", "unclean", "closed"))
            broken.close()
            for file in path.glob("derived-*"):
                file.unlink()
            shutil.copytree(kept, path, dirs_exist_ok=True)
            shutil.rmtree(kept)
            broken = Engine.open(settings_of(path, world), model, lambda: 1.0)
            compare(steady, broken, where)
    compare(steady, broken, f"the end of {world}")
    steady.close()
    broken.close()


class CountedModel:
    """A model that counts what is asked of it."""

    def __init__(self, seed: int) -> None:
        self._model = random_model(seed)
        self.base, self.upper = Counted(self._model.base), Counted(self._model.upper)

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    @property
    def embedded(self) -> int:
        return self.base.embedded + self.upper.embedded

    @property
    def linked(self) -> int:
        return self.base.linked + self.upper.linked

    def begin(self) -> None:
        for part in (self.base, self.upper):
            part.embedded = part.linked = 0


class Counted:
    """A network that counts what is asked of it."""

    def __init__(self, model: Linkage) -> None:
        self._model = model
        self.embedded = self.linked = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def embed(self, graph: object, epoch: object, rows: np.ndarray, kept: object = None) -> object:
        self.embedded += len(rows)
        return self._model.embed(graph, epoch, rows, kept)

    def link(
        self,
        graph: object,
        epoch: object,
        hidden: object,
        sources: np.ndarray,
        ranks: object,
        kept: object = None,
    ) -> object:
        self.linked += len(sources)
        return self._model.link(graph, epoch, hidden, sources, ranks, kept)


def opened(path: Path, model: object) -> Engine:
    settings = Settings.model_validate(
        {"store": {"path": path}, "index": {"kind": "exact"}, "model": {"tau": 0.3}}
    )
    return Engine.open(settings, model, lambda: 1.0)  # type: ignore[arg-type]


def draw(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(size=(60, 6))
    return centres[rng.integers(60, size=count)] + 0.1 * rng.normal(size=(count, 6))


def names(start: int, count: int) -> list[str]:
    return [f"k{i}" for i in range(start, start + count)]


def test_only_what_changed_since_the_snapshot_is_computed_again(tmp_path: Path) -> None:
    path, model = tmp_path / "store", CountedModel(3)
    with opened(path, model) as engine:
        engine.upsert(names(0, 600), draw(1, 600))
        assert len(engine.state.hierarchy.levels) > 1
    model.begin()
    with opened(path, model) as engine:
        assert (model.embedded, model.linked) == (0, 0)
        engine.upsert(names(600, 4), draw(2, 4))
        engine.delete(names(5, 1))
        before = engine.labels()
        engine._since_snapshot = 0  # as after a kill: there is none of now
    whole = model.embedded
    model.begin()
    with opened(path, model) as engine:
        assert 0 < model.embedded < 300, whole
        assert sorted(zip(*engine.labels(), strict=True)) == sorted(zip(*before, strict=True))


@pytest.mark.parametrize("how", ["gone", "cut", "flipped", "other model", "other epoch", "not json"])
def test_a_snapshot_that_does_not_match_is_passed_over(tmp_path: Path, how: str) -> None:
    path, model = tmp_path / "store", CountedModel(3)
    with opened(path, model) as engine:
        engine.upsert(names(0, 300), draw(1, 300))
        before = engine.labels()
    manifest, columns = sorted(path.glob("derived-*"))
    raw, told = bytearray(columns.read_bytes()), orjson.loads(manifest.read_bytes())
    if how == "gone":
        columns.unlink()
    elif how == "cut":
        columns.write_bytes(raw[:-100])
    elif how == "flipped":
        raw[len(raw) // 2] ^= 4
        columns.write_bytes(raw)
    elif how == "other model":
        manifest.write_bytes(orjson.dumps(told | {"depends": told["depends"] | {"model": "x"}}))
    elif how == "other epoch":
        epoch = told["depends"]["epoch"] | {"mean": 0.5}
        manifest.write_bytes(orjson.dumps(told | {"depends": told["depends"] | {"epoch": epoch}}))
    else:
        manifest.write_bytes(b"{")
    model.begin()
    with opened(path, model) as engine:
        assert model.embedded >= 300
        assert sorted(zip(*engine.labels(), strict=True)) == sorted(zip(*before, strict=True))


def test_two_snapshots_are_kept_and_a_full_disk_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = tmp_path / "store", CountedModel(3)
    with opened(path, model) as engine:
        for at in range(4):
            engine.upsert(names(10 * at, 10), draw(at, 10))
            prepare(path, engine.state, engine.model)()
        assert files.versions(path, snapshots.LEVELS) == [4, 3]
        engine.upsert(names(90, 10), draw(9, 10))
        monkeypatch.setattr(snapshots.files, "put_in_place", refuse)
    assert files.versions(path, snapshots.LEVELS) == [4, 3]
    monkeypatch.undo()
    with opened(path, model) as engine:
        assert engine.version == 5


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
