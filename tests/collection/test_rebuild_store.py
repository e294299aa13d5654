"""A rebuild of a store that nobody has open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.collection.collection import Engine
from engine.collection.rebuild import rebuild_store
from engine.errors import (
    ConfigMismatch,
    InputError,
    NoStore,
)
from engine.model.linkage import LinkageModel
from tests.collection.conftest import Open
from tests.support.collections import draw, labels, members, names, settings_of
from tests.support.random_models import random_model
from tests.support.sequences import differences

pytestmark = pytest.mark.usefixtures("one_thread", "warm")


def test_rebuild_with_another_tau_is_a_new_generation(opened: Open, weights: LinkageModel) -> None:
    engine = opened(model={"tau": 0.3})
    engine.upsert(names(150), draw(31, 150), positions={"source": b"150"})
    engine.upsert(names(150, 150), draw(32, 150))
    before = labels(engine)
    engine.close()
    stricter = settings_of(engine.settings.store.path, model={"tau": 0.7})
    made = rebuild_store(stricter, weights, lambda: 2.0)
    with pytest.raises(ConfigMismatch):
        opened(model={"tau": 0.3})
    engine = opened(model={"tau": 0.7})
    after = labels(engine)
    assert (made.version, made.items, made.clusters) == (3, 300, len(members(after)))
    assert engine.version == 3
    assert engine.store.position("source") == b"150"

    fresh = opened("fresh", model={"tau": 0.7})
    fresh.upsert(names(300), np.concatenate([draw(31, 150), draw(32, 150)]))
    assert fresh.state.calibration.epoch == engine.state.calibration.epoch
    assert set(members(labels(fresh)).values()) == set(members(after).values())

    old, new = members(before), members(after)
    assert set(old.values()) != set(new.values())
    for cluster, own in old.items():
        assert own not in new.values() or new[cluster] == own
    followed = [cluster for cluster in new if cluster in old]
    assert followed
    assert all(new[cluster] & old[cluster] for cluster in followed)
    assert min(new.keys() - old.keys(), default=max(old) + 1) > max(old)  # ids are never used again


def test_rebuild_with_another_tau_of_level_0_is_what_a_new_store_has(
    opened: Open, weights: LinkageModel
) -> None:
    engine = opened(model={"tau": 0.3})
    engine.upsert(names(300), draw(31, 300))
    before = labels(engine)
    engine.close()
    finer = {"tau": 0.3, "base_tau": 0.7}
    rebuild_store(settings_of(engine.settings.store.path, model=finer), weights)
    with pytest.raises(ConfigMismatch, match=r"base_tau 0\.7, not the model's: .*shoal rebuild"):
        opened(model={"tau": 0.3})
    engine, fresh = opened(model=finer), opened("fresh", model=finer)
    fresh.upsert(names(300), draw(31, 300))
    assert not differences(engine.state.hierarchy, fresh.state.hierarchy)
    assert set(members(labels(engine)).values()) == set(members(labels(fresh)).values())
    assert set(members(labels(engine)).values()) != set(members(before).values())


def test_a_store_that_says_nothing_of_level_0_has_the_model_s_tau(opened: Open, tmp_path: Path) -> None:
    """One that was made before level 0's tau could be set."""
    weights = LinkageModel.load()
    settings = settings_of(tmp_path / "old")
    with Engine.open(settings, weights) as engine:
        engine.upsert(names(200), draw(34, 200))
        before = labels(engine)
        config = dict(engine.store.config)
        assert config.pop("base_tau", None) is None
        engine.store._transact(lambda tables: tables.meta.put_config(config))
    same = settings_of(tmp_path / "old", model={"base_tau": weights.base_tau})
    for chosen in settings, same:
        with Engine.open(chosen, weights) as engine:
            assert labels(engine) == before
    with pytest.raises(ConfigMismatch, match=r"base_tau the model's, not 0\.9"):
        Engine.open(settings_of(tmp_path / "old", model={"base_tau": 0.9}), weights)


def test_rebuild_with_the_same_settings_changes_no_name(opened: Open, weights: LinkageModel) -> None:
    engine = opened()
    engine.upsert(names(300), draw(33, 300))
    before = labels(engine)
    engine.close()
    rebuild_store(engine.settings, weights, lambda: 2.0)
    engine = opened()
    assert engine.version == 2
    assert labels(engine) == before


def test_a_store_keeps_its_name_unless_the_settings_set_one(opened: Open, weights: LinkageModel) -> None:
    engine = opened(collection={"name": "news"})
    engine.upsert(names(50), draw(33, 50))
    engine.close()
    unnamed = settings_of(engine.settings.store.path, model={"tau": 0.9})
    assert rebuild_store(unnamed, weights).changed == ("tau 0.6 -> 0.9",)
    opened(collection={"name": "news"}, model={"tau": 0.9}).close()
    named = settings_of(engine.settings.store.path, model={"tau": 0.9}, collection={"name": "events"})
    assert rebuild_store(named, weights).changed == ("collection news -> events",)


def test_rebuild_takes_another_model(opened: Open, tmp_path: Path) -> None:
    engine = opened()
    engine.upsert(names(200), draw(34, 200))
    engine.close()
    other = random_model(5)
    rebuild_store(engine.settings, other)
    with pytest.raises(ConfigMismatch, match="model"):
        opened()
    with Engine.open(engine.settings, other) as again:
        assert len(labels(again)) == 200


def test_rebuild_of_nothing(opened: Open, tmp_path: Path, weights: LinkageModel) -> None:
    opened().close()
    with pytest.raises(InputError, match="nothing to rebuild"):
        rebuild_store(settings_of(tmp_path / "store"), weights)
    with pytest.raises((NoStore, InputError)):
        rebuild_store(settings_of(tmp_path / "nowhere"), weights)
