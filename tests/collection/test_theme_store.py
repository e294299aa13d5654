"""Themes of a store: what the live state has follows from the disk, and what queries make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.collection.collection import Engine
from engine.collection.themes import check_step, themes_of
from engine.config import Settings
from engine.errors import ConfigError, ConfigMismatch, InputError, NotFound
from engine.storage.reader import View
from engine.types import Themes
from tests.support.collections import draw, names, settings_of
from tests.support.random_models import random_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("themes")
    random_model(8).save(folder / "model.safetensors")
    chosen = {"path": folder / "model.safetensors", "tau": 0.8, "coarser": [0.4, 0.2]}
    return settings_of(folder / "store", model=chosen)


def live_themes(engine: Engine) -> Themes:
    return engine.prepare_themes()()


@pytest.fixture(scope="module")
def grouping(settings: Settings) -> Themes:
    """A store of several versions, and the live themes of its last one."""
    with Engine.open(settings) as engine:
        assert live_themes(engine).keys.shape == (2, 0)
        for at in range(4):
            engine.upsert(names(40, 40 * at), draw(at, 40))
        engine.save()
        engine.delete(names(15, 30))
        engine.upsert(names(10, 200), draw(9, 10))
        return live_themes(engine)


def test_what_the_state_has_follows_from_the_store(settings: Settings, grouping: Themes) -> None:
    stored = themes_of(settings)
    assert stored.version == grouping.version
    assert np.array_equal(stored.clusters, grouping.clusters)
    assert np.array_equal(stored.keys, grouping.keys)
    assert len(set(stored.keys[0].tolist())) < len(stored.clusters), "nothing is joined"
    for file in settings.store.path.glob("derived-*"):
        file.unlink()
    assert np.array_equal(themes_of(settings).keys, grouping.keys)
    with Engine.open(settings) as engine:
        assert np.array_equal(live_themes(engine).keys, grouping.keys)


@pytest.mark.parametrize("order", ["size", "id", "newest"])
@pytest.mark.parametrize("step", [1, 2])
def test_pages_hold_every_theme_once(settings: Settings, grouping: Themes, order: str, step: int) -> None:
    with View.open(settings.store.path) as view:
        rows, cursor = [], None
        while True:
            page = view.themes(grouping, step, order, cursor, 3)
            rows += page["clusters"]
            cursor = page["cursor"]
            if cursor is None:
                break
        assert page["grouped"] == page["version"] == grouping.version
        sizes = {row["cluster"]: row["size"] for row in view.clusters(limit=1000)["clusters"]}
        keys = dict(zip(grouping.clusters.tolist(), grouping.keys[step - 1].tolist(), strict=True))
        assert sizes.keys() == keys.keys()
        assert sorted(row["cluster"] for row in rows) == sorted(set(keys.values()))
        for row in rows:
            own = [cluster for cluster in sizes if keys[cluster] == row["cluster"]]
            assert (row["size"], row["clusters"]) == (sum(sizes[c] for c in own), len(own))
            assert row["largest"] == sorted(own, key=lambda c: (-sizes[c], c))[:8]
            detail = view.theme(grouping, step, own[-1])
            finer = (
                set(own) if step == 1 else {int(k) for k in grouping.keys[0][np.isin(grouping.clusters, own)]}
            )
            assert {name: detail[name] for name in row} == row
            assert set(detail["children"]) == finer
        wanted = {
            "size": sorted(rows, key=lambda row: (-row["size"], row["cluster"])),
            "id": sorted(rows, key=lambda row: row["cluster"]),
            "newest": sorted(rows, key=lambda row: -row["cluster"]),
        }
        assert rows == wanted[order]


def test_items_are_in_the_theme_of_their_cluster(settings: Settings, grouping: Themes) -> None:
    keys = names(10, 100)
    with View.open(settings.store.path) as view:
        looked = view.theme_lookup(grouping, 1, [key.encode() for key in [*keys, "nobody"]], 1000)
        for key, row in zip(keys, looked["items"], strict=False):
            item = view.theme_item(grouping, 1, key)
            at = np.searchsorted(grouping.clusters, item["path"][0])
            assert item["cluster"] == grouping.keys[0][at]
            assert row is not None
            assert row["cluster"] == item["cluster"]
        assert looked["missing"] == ["nobody"]
        with pytest.raises(NotFound):
            view.theme_item(grouping, 1, "nobody")
        with pytest.raises(NotFound, match="no final cluster 99999"):
            view.theme(grouping, 1, 99_999)


def test_a_grouping_of_another_version_still_covers_every_cluster(
    settings: Settings, grouping: Themes
) -> None:
    """Half of the clusters came since, and one that named a theme has ended."""
    kept = np.ones(len(grouping.clusters), np.bool_)
    kept[1::2] = False
    strange = np.concatenate([[0], grouping.clusters[kept]])  # 0: ended
    keys = np.concatenate([[0], grouping.keys[0][kept]])
    keys[1] = 0
    older = Themes(1, strange, np.stack([keys, keys]))
    with View.open(settings.store.path) as view:
        page = view.themes(older, 1, limit=1000)
        assert page["grouped"] == 1
        assert sum(row["clusters"] for row in page["clusters"]) == len(grouping.clusters)
        joined = {row["cluster"] for row in page["clusters"]}
        assert joined <= set(grouping.clusters.tolist())
        assert set(grouping.clusters[1::2].tolist()) <= joined


@pytest.mark.parametrize(
    ("step", "most", "words"), [(3, 2, r"\+1 to \+2"), (2, 1, r"there is level \+1"), (1, 0, "is no level")]
)
def test_a_level_that_there_is_not_is_named(step: int, most: int, words: str) -> None:
    check_step(most, most) if most else None
    with pytest.raises(InputError, match=words):
        check_step(step, most)


@pytest.mark.parametrize(
    "coarser", [[0.2, 0.35], [0.3, 0.3], [1.0], [-0.1], [0.9 - 0.1 * n for n in range(9)]]
)
def test_levels_that_do_not_fall_are_refused(coarser: list[float]) -> None:
    with pytest.raises((ConfigError, ValueError), match="coarser"):
        Settings.model_validate({"model": {"coarser": coarser}})


def test_an_empty_store_has_none_and_other_settings_are_named(tmp_path: Path, settings: Settings) -> None:
    model = {"path": settings.model.path, "tau": settings.model.tau}
    own = settings_of(tmp_path / "store", collection={"dim": 8}, model=model)
    with Engine.open(own):
        pass
    nothing = themes_of(own)
    assert nothing.keys.shape == (2, 0)
    with View.open(own.store.path) as view:
        assert view.themes(nothing, 1)["clusters"] == []
    none = settings_of(settings.store.path, model=model | {"coarser": []})
    assert themes_of(none).keys.shape[0] == 0
    with pytest.raises(ConfigMismatch, match="tau"):
        themes_of(settings_of(settings.store.path, model=model | {"tau": 0.7}))
