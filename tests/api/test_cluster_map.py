"""The map: neighbours next to each other, discs apart, and what did not change stays where it was."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from engine.api.cluster_map import GAP, Atlas, arrange, similarities, to_discs
from engine.storage.reader import View
from engine.storage.store import Store
from engine.types import Float64, Int16
from engine.vectors import quantize
from tests.support.fake_collection import Toy

SEED = 5


def groups(seed: int, count: int, noise: float = 0.35) -> tuple[Int16, Float64]:
    """(count, 32) vectors around eight centres, and a size for each."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(8, 32))
    grid, _ = quantize(centres[np.arange(count) % 8] + noise * rng.normal(size=(count, 32)))
    return grid, np.floor(rng.pareto(1.0, count) * 20 + 1)


def apart(places: Float64) -> Float64:
    distances: Float64 = np.sqrt(((places[:, None] - places[None]) ** 2).sum(axis=2))
    return distances


@pytest.mark.parametrize("seed", range(3))
def test_neighbours_are_near_each_other(seed: int) -> None:
    vectors, _ = groups(seed, 80)
    distances = apart(arrange(similarities(vectors), [None] * 80)) + np.eye(80) * 1e9
    nearest = np.argsort(distances, axis=1)[:, :5]
    share = (nearest % 8 == np.arange(80)[:, None] % 8).mean()
    assert share > 0.9, f"{seed=}: {share:.2f} of the nearest are of the same group"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 60, 200])
def test_discs_are_apart_and_within_the_square(count: int) -> None:
    vectors, sizes = groups(SEED, count)
    places, radii = to_discs(arrange(similarities(vectors), [None] * count), sizes)
    assert np.isfinite(places).all()
    assert (np.abs(places) + radii[:, None]).max() <= 1.0 + 1e-9
    room = apart(places) - radii[:, None] - radii[None] + np.eye(count) * 9
    assert room.min() > -0.25 * radii.max(), "discs cover each other"
    assert (room < -GAP).mean() < 0.02, "many discs overlap"
    assert (np.diff(radii[np.argsort(sizes)]) >= 0).all()


def test_alike_ones_can_be_drawn_too() -> None:
    """Equal vectors, and opposite ones."""
    same = np.tile(groups(SEED, 1)[0], (7, 1))
    for vectors in (same, np.concatenate([same, -same])):
        places, _ = to_discs(arrange(similarities(vectors), [None] * len(vectors)), np.ones(len(vectors)))
        assert np.isfinite(places).all()
        assert (apart(places) + np.eye(len(vectors)) > 0.01).all()


def test_what_did_not_change_stays_where_it_was() -> None:
    """One in ten goes, one in ten comes; without the map before, all would be somewhere else."""
    vectors, _ = groups(SEED, 100)
    first = arrange(similarities(vectors[:90]), [None] * 90)
    before = [tuple(place) for place in first[10:].tolist()] + [None] * 10
    second = arrange(similarities(vectors[10:]), before)
    spread = np.linalg.norm(first, axis=1).mean()
    stayed = np.linalg.norm(second[:80] - first[10:], axis=1) / spread
    afresh = (
        np.linalg.norm(arrange(similarities(vectors[10:]), [None] * 90)[:80] - first[10:], axis=1) / spread
    )
    assert np.median(stayed) < 0.05 < np.median(afresh), (np.median(stayed), np.median(afresh))
    alike = np.ones(90)  # a large disc that goes would leave room to others
    was, now = to_discs(first, alike)[0][10:], to_discs(second, alike)[0][:80]
    assert np.median(np.linalg.norm(now - was, axis=1)) < 0.2  # a tenth of the map


def test_a_map_is_drawn_anew_for_a_new_version_but_not_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, now = Toy(SEED), [0.0]
    monkeypatch.setattr("engine.api.cluster_map.CLUSTERS", 2)
    atlas = Atlas(lambda: now[0])
    with Store.open(tmp_path, {"collection": "toy", "dim": None}) as store:
        view = View.beside(store)
        assert atlas.answer(view)["clusters"] == []
        now[0] += 5
        for _ in range(4):
            store.commit(toy.step(12))
        first = atlas.answer(view)
        assert first["version"] == store.version
        assert atlas.answer(view) is first
        store.commit(toy.step(12))
        now[0] += 1
        assert atlas.answer(view) is first, "too early"
        now[0] += 2
        second = atlas.answer(view)
        assert second["version"] == store.version
        largest = view.clusters(limit=2)["clusters"]
        assert [row["cluster"] for row in second["clusters"]] == [row["cluster"] for row in largest]
        assert [row["peak"] for row in second["clusters"]] == [row["peak"] for row in largest]
        assert second["total"] == view.summary()["clusters"]
        orjson.dumps(second)


def test_one_draws_and_the_others_get_what_there_is(tmp_path: Path) -> None:
    toy = Toy(SEED)
    with Store.open(tmp_path, {"collection": "toy", "dim": None}) as store:
        store.commit(toy.step(40))
    drawn: list[Any] = []
    with View.open(tmp_path) as view:
        atlas = Atlas()
        threads = [threading.Thread(target=lambda: drawn.append(atlas.answer(view))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len({id(answer) for answer in drawn}) == 1


def test_faces_are_short_and_pictures_are_data() -> None:
    from engine.api.cluster_map import IMAGE_BYTES, _face

    picture = "data:image/png;base64,AAAA"
    told = {"title": "t" * 500, "image": picture}
    assert _face(orjson.dumps(told)) == {"title": "t" * 80, "image": picture}
    assert _face(orjson.dumps({"image": picture + "A" * IMAGE_BYTES})) == {}
    for odd in (b"", b"null", b"[1]", b'"text"', b'{"title": 3, "image": "https://example.com/a.png"}'):
        assert _face(odd) == {}
