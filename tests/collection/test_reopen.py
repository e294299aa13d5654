"""Stores come and go: closed and opened, locked, of other settings or machines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.collection.collection import Engine
from engine.errors import (
    ConfigMismatch,
    CorruptStore,
    StoreError,
    StoreFull,
    StoreLocked,
)
from engine.model.linkage import LinkageModel
from engine.system import determinism
from tests.collection.conftest import Open
from tests.support.collections import draw, labels, names, settings_of, stored
from tests.support.random_models import random_model

pytestmark = pytest.mark.usefixtures("one_thread", "warm")


def test_nothing_is_possible_after_close(opened: Open) -> None:
    engine = opened()
    engine.upsert(names(20), draw(16, 20))
    engine.close()
    engine.close()
    calls: list[Callable[[], Any]] = [
        lambda: engine.upsert(names(1), draw(16, 1)),
        lambda: engine.delete(names(1)),
        lambda: engine.assign(draw(16, 1)),
        engine.labels,
        lambda: engine.state,
    ]
    for call in calls:
        with pytest.raises(StoreError, match="closed; reopen the store"):
            call()


def test_one_writer_at_a_time(opened: Open, weights: LinkageModel) -> None:
    engine = opened()
    with pytest.raises(StoreLocked):
        opened()
    engine.close()
    with Engine.open(engine.settings, weights) as second:
        assert second.version == 0
    opened()


def test_other_settings_are_refused(opened: Open) -> None:
    engine = opened()
    engine.upsert(names(20), draw(17, 20))
    engine.close()
    with pytest.raises(ConfigMismatch, match=r"(?s)tau.*shoal rebuild"):
        opened(model={"tau": 0.9})
    assert len(opened()) == 20


def test_a_commit_that_fails_leaves_what_was(opened: Open, tmp_path: Path, weights: LinkageModel) -> None:
    engine = opened()
    engine.upsert(names(20), draw(18, 20))
    before = stored(engine)
    engine.close()
    full = Engine.open(settings_of(tmp_path / "store", limits={"free_disk_min_bytes": 2**60}), weights)
    with pytest.raises(StoreFull):
        full.upsert(names(5, 100), draw(19, 5))
    with pytest.raises(StoreError, match="reopen the store"):  # its memory is ahead of the store
        full.labels()
    full.close()
    engine = opened()
    assert stored(engine) == before
    assert engine.upsert(names(5, 100), draw(19, 5)).version == 2


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
@pytest.mark.parametrize("snapshots", [True, False])
def test_opens_as_it_was_closed(opened: Open, kind: str, snapshots: bool) -> None:
    """With the index's snapshot or without."""
    engine = opened(index={"kind": kind})
    engine.upsert(names(300), draw(27, 300))
    engine.delete(names(40))
    engine.upsert(names(30, 100), draw(28, 30))
    before, found = stored(engine), labels(engine)
    engine.close()
    saved = list(engine.settings.store.path.glob("index-*"))
    assert bool(saved) == (kind == "hnsw")
    if not snapshots:
        for path in saved:
            path.unlink()
    engine = opened(index={"kind": kind})
    assert stored(engine) == before
    assert labels(engine) == found
    assert engine.upsert(names(300), draw(27, 300)).inserted == 40


def test_another_arithmetic_is_clustered_anew(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened()
    engine.upsert(names(100), draw(29, 100))
    before = labels(engine)
    engine.close()
    monkeypatch.setattr(determinism, "fingerprint", lambda: "another machine")
    engine = opened()
    assert engine.version == 2
    assert labels(engine) == before  # here the machine is the same
    engine.close()
    assert opened().version == 2


def test_clusters_that_do_not_follow_from_the_lists_are_seen(opened: Open, tmp_path: Path) -> None:
    engine = opened()
    engine.upsert(names(200), draw(30, 200))
    engine.close()
    for file in (tmp_path / "store").glob("derived-*"):  # else nothing is computed
        file.unlink()
    other = random_model(4)
    other.sha256 = engine.model.sha256
    with pytest.raises(CorruptStore, match="shoal rebuild"):
        Engine.open(settings_of(tmp_path / "store"), other)
