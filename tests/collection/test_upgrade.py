"""A store of format 1, whose items have a vector each: refused in words, and brought over by a rebuild."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import lmdb
import numpy as np
import pytest

from engine.cli import operate
from engine.collection.check import check
from engine.collection.collection import Engine
from engine.collection.rebuild import rebuild_store
from engine.config import Settings
from engine.errors import ConfigMismatch, StoreError
from engine.model.adapter import Adapter
from engine.storage import schema
from engine.storage.backup import back_up, restore
from engine.storage.environment import Environment
from engine.storage.reader import View
from engine.storage.schema import ID
from engine.storage.store import Store
from engine.storage.tables import Tables
from engine.types import Assignment, Loaded
from tests.support.random_models import random_model

pytestmark = pytest.mark.usefixtures("one_thread", "warm")
DIM = 6


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    random_model(7).save(tmp_path / "random.safetensors")
    return Settings.model_validate(
        {
            "store": {"path": tmp_path / "store"},
            "index": {"kind": "exact"},
            "model": {"path": tmp_path / "random.safetensors", "tau": 0.3},
        }
    )


def fill(settings: Settings, clock: float = 5.0) -> None:
    """Items with copies, moves and deletes; clusters that ended."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(12, DIM))
    with Engine.open(settings, clock=lambda: clock) as engine:
        for at in range(5):
            points = centres[rng.integers(12, size=60)] + 0.1 * rng.normal(size=(60, DIM))
            points[10:30] = points[0]
            keys = [f"k{number}" for number in range(40 * at, 40 * at + 60)]
            engine.upsert(keys, points, payloads=[b'{"n":%d}' % number for number in range(60)])
            engine.delete(keys[::7])


def downgrade(path: Path) -> None:
    """The store as the release before wrote it: items have vectors, places and lists."""
    environment = Environment.create(path)
    environment.write(_as_format_1)
    environment.close()
    with lmdb.open(str(path), max_dbs=len(schema.TABLES)) as env:
        for name in schema.ADDED:
            table = env.open_db(name.encode())
            with env.begin(write=True) as txn:
                txn.drop(table)
    for pattern in ("closed", "index-*", "derived-*"):
        for file in path.glob(pattern):
            file.unlink()


def _as_format_1(tables: Tables) -> None:
    items, places = tables.items.columns(), dict(tables.places.rows())
    nodes, oldest = tables.nodes.columns(), {}
    vectors = dict(zip(nodes.ids.tolist(), nodes.vectors, strict=True))
    tables.places.clear()
    tables.members.clear()
    columns = (items.ids.tolist(), items.keys, items.nodes.tolist(), items.times.tolist(), items.payloads)
    for number, key, node, time, payload, version in zip(*columns, items.versions.tolist(), strict=True):
        head = struct.pack("<qqHH", time, version, len(key), DIM)
        body = head + vectors[node].astype("<i2").tobytes() + key + payload
        tables.items.raw.put(ID.pack(number), body)
        tables.places.put(number, places[node])
        tables.members.add([(places[node], number)])
        oldest.setdefault(node, number)
    for number, cluster in list(tables.clusters.rows()):
        peak = oldest.get(cluster.peak, 10**6)
        tables.clusters.put(number, replace(cluster, peak=peak))
    tables.meta.put_config({**(tables.meta.config or {}), "format": 1})


def loaded(settings: Settings) -> Loaded:
    with Store.open(settings.store.path) as store:
        return store.load()


@pytest.mark.parametrize("closed", [True, False])
def test_it_is_refused_and_then_brought_over(settings: Settings, closed: bool) -> None:
    fill(settings)
    path = settings.store.path
    before = loaded(settings)
    with Engine.open(settings) as engine:
        labels = dict(zip(*engine.labels(), strict=True))
    downgrade(path)
    if not closed:
        (path / "unclean").touch()
        (path / "writer").write_text("process 999999999 (killed)")
    for name in ("index-9.hnsw", "index-9.npz", "index-9.json", "derived-9.npz", "derived-9.json"):
        (path / name).write_text("{}")  # snapshots of items
    for look in (lambda: View.open(path), lambda: Engine.open(settings), lambda: check(settings, 0)):
        with pytest.raises(ConfigMismatch, match="run `shoal rebuild` once"):
            look()
    made = rebuild_store(settings, clock=lambda: 6.0)
    assert (made.version, made.items) == (before.version + 1, len(before.items.ids))
    after = loaded(settings)
    assert after.items.keys == before.items.keys
    assert after.items.payloads == before.items.payloads
    for name in ("ids", "times", "versions"):
        assert np.array_equal(getattr(after.items, name), getattr(before.items, name))
    at = np.searchsorted(before.vectors.ids, before.items.nodes)
    assert np.array_equal(after.vectors.vectors[after.items.nodes - 1], before.vectors.vectors[at])
    assert len(after.vectors.ids) == len(before.vectors.ids)
    assert not [*path.glob("*-9.*")]
    assert check(settings, 0).findings == []
    with Engine.open(settings) as engine:
        now = dict(zip(*engine.labels(), strict=True))
        told = {}
        for _, body in engine.store.rows("events"):
            event = schema.unpack_event(body)
            if isinstance(event, Assignment):
                told[event.key] = event.cluster
        assert {key: cluster for key, cluster in told.items() if cluster} == {
            key if isinstance(key, bytes) else key.encode(): int(cluster) for key, cluster in now.items()
        }
        groups = [len(set(found.values())) for found in (labels, now)]
        assert abs(groups[0] - groups[1]) <= 0.2 * groups[0]
        engine.upsert(["one more"], np.ones((1, DIM)))
    assert check(settings, 0).findings == []


def test_it_is_brought_over_to_an_adapter(settings: Settings, tmp_path: Path) -> None:
    """And a store without the table of incoming vectors, as the release before adapters made it, opens."""
    fill(settings)
    before = loaded(settings)
    downgrade(settings.store.path)
    Adapter.of({"direct": np.eye(DIM, 2), "bias": np.zeros(2)}, {}).save(tmp_path / "adapter.safetensors")
    chosen = settings.with_model(adapter=tmp_path / "adapter.safetensors")
    rebuild_store(chosen, clock=lambda: 6.0)
    at = np.searchsorted(before.vectors.ids, before.items.nodes)
    with Engine.open(chosen) as engine:
        assert np.array_equal(engine.store.incoming(), before.vectors.vectors[at])
        assert engine.state.hierarchy.shape.dim == 2
    assert check(chosen, 0).findings == []


def test_cut_short_it_is_as_it_was(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(settings)
    downgrade(settings.store.path)

    def halt(*_: object) -> None:
        raise OSError("the disk went away")

    monkeypatch.setattr("engine.storage.commit.forget", halt)
    with pytest.raises(StoreError):
        rebuild_store(settings)
    monkeypatch.undo()
    with pytest.raises(ConfigMismatch, match="run `shoal rebuild` once"):
        Engine.open(settings)
    rebuild_store(settings)
    assert check(settings, 0).findings == []


def test_a_backup_of_format_1_is_restored_and_says_what_brings_it_over(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(settings)
    downgrade(settings.store.path)
    made = back_up(settings.store.path, tmp_path / "copy")
    assert made.format == schema.REBUILT_FROM
    assert restore(tmp_path / "copy", tmp_path / "again").backup == made
    operate.backup(settings, tmp_path / "another", as_json=True)
    assert f"{tmp_path / 'another'} was made by an earlier release" in capsys.readouterr().err
    operate.compact(settings, as_json=True)
    assert "run `shoal rebuild` once" in capsys.readouterr().err
    with pytest.raises(StoreError, match="shoal rebuild"):
        View.open(tmp_path / "again")
