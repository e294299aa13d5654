"""Snapshots that are written while batches go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.collection import snapshots
from engine.collection.collection import Engine
from engine.config import CollectionSettings, LimitsSettings, Settings, StoreSettings
from engine.system import files
from tests.support.random_models import random_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is written out until it is set."""
    opened, save = threading.Event(), snapshots.save_index

    def waiting(*arguments: Any) -> None:
        assert opened.wait(120)
        save(*arguments)

    monkeypatch.setattr(snapshots, "save_index", waiting)
    return opened


def engine_in(folder: Path, aside: ThreadPoolExecutor | None = None) -> Engine:
    settings = Settings(
        collection=CollectionSettings(name="saved"),
        store=StoreSettings(path=folder / "store"),
        limits=LimitsSettings(snapshot_items=10),
    )
    return Engine.open(settings, random_model(1), executor=aside)


def put(engine: Engine, first: int, count: int = 12) -> None:
    rows = np.random.default_rng(first).normal(size=(count, 8))
    engine.upsert([f"item {first + at}" for at in range(count)], rows)


def versions(engine: Engine) -> tuple[list[int], list[int]]:
    folder = engine.store.path
    return files.versions(folder, snapshots.INDEX), files.versions(folder, snapshots.LEVELS)


def test_batches_do_not_wait_for_a_snapshot(
    tmp_path: Path, aside: ThreadPoolExecutor, gate: threading.Event
) -> None:
    with engine_in(tmp_path, aside) as engine:
        for first in range(0, 60, 12):
            put(engine, first)
        assert engine.version == 5
        assert versions(engine) == ([], [])
        gate.set()
        engine.snapshots.wait()
        assert versions(engine) == ([1], [1])  # as it was when it was due, whatever came since
        labels = sorted(zip(*engine.labels(), strict=True))
    with engine_in(tmp_path) as engine:
        assert versions(engine) == ([5, 1], [5, 1])
        assert sorted(zip(*engine.labels(), strict=True)) == labels


def test_the_state_of_a_snapshot_serves_after_a_kill(
    tmp_path: Path, aside: ThreadPoolExecutor, gate: threading.Event
) -> None:
    """Copied, not shared: what was changed, moved and deleted meanwhile is not in it."""
    engine = engine_in(tmp_path, aside)
    put(engine, 0, 200)
    engine.delete([f"item {at}" for at in range(50, 150)])
    put(engine, 20, 40)
    gate.set()
    engine.snapshots.wait()
    assert versions(engine) == ([1], [1])
    labels = sorted(zip(*engine.labels(), strict=True))
    engine.store.close()  # nothing is saved
    found = snapshots.read_index(engine.store.path, 1)
    assert found is not None
    assert len(found[0]) == 200
    with engine_in(tmp_path) as engine:
        assert sorted(zip(*engine.labels(), strict=True)) == labels


def test_an_erased_item_is_not_in_one_that_was_being_written(
    tmp_path: Path, aside: ThreadPoolExecutor, gate: threading.Event
) -> None:
    with engine_in(tmp_path, aside) as engine:
        put(engine, 0)
        threading.Timer(0.3, gate.set).start()
        engine.erase("item 3")
        assert versions(engine) == ([2], [2])
        found = snapshots.read_index(engine.store.path, 2)
        assert found is not None
        assert len(found[0]) == 11


def test_one_that_cannot_be_written_costs_nothing(
    tmp_path: Path,
    aside: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError("no space left")

    with engine_in(tmp_path, aside) as engine:
        monkeypatch.setattr(snapshots, "save_index", refuse)
        put(engine, 0)
        put(engine, 12)
        engine.snapshots.wait()
        assert versions(engine) == ([], [])
        assert caplog.text.count("no snapshot is written: no space left. Nothing is lost") == 1
        monkeypatch.undo()
        put(engine, 24)
        engine.snapshots.wait()
        assert versions(engine) == ([3], [3])


def test_none_is_begun_that_could_take_the_room_of_batches(
    tmp_path: Path, aside: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    with engine_in(tmp_path, aside) as engine:
        put(engine, 0)
        engine.snapshots.wait()
        engine.snapshots.free_bytes, enough = 1 << 60, engine.snapshots.free_bytes
        put(engine, 12)
        put(engine, 24)
        engine.snapshots.wait()
        assert versions(engine) == ([1], [1])
        assert caplog.text.count("no room for one beside what commits need. Nothing is lost") == 1
        engine.snapshots.free_bytes = enough
        put(engine, 36)
        engine.snapshots.wait()
        assert versions(engine) == ([4, 1], [4, 1])
        engine.snapshots.free_bytes = 1 << 60
        put(engine, 48)
        assert caplog.text.count("make room on the disk") == 2


def test_a_bug_while_writing_is_not_passed_over(
    tmp_path: Path, aside: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise ZeroDivisionError

    engine = engine_in(tmp_path, aside)
    monkeypatch.setattr(snapshots, "save_index", fail)
    put(engine, 0)
    with pytest.raises(ZeroDivisionError):
        engine.snapshots.wait()
    put(engine, 12)
    with pytest.raises(ZeroDivisionError):
        engine.close()
    monkeypatch.undo()
    with engine_in(tmp_path) as engine:  # let go of, all the same
        assert engine.version == 2
