"""Themes are what the plain code makes of the final clusters, are nested, and leave the state as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.clustering import themes
from engine.clustering.distinct import distinct_hashes
from engine.clustering.state import State
from engine.errors import InputError
from engine.model.linkage import LinkageModel
from engine.types import Themes
from tests.support import reference
from tests.support.random_models import random_model
from tests.support.sequences import KINDS, World, content, empty_state, rebuilt, take

pytestmark = pytest.mark.usefixtures("one_thread")

TAUS = ([0.35, 0.2], [0.4, 0.3, 0.15, 0.0], [0.5], [])
MOST = 10_000
FEW = 80  # nodes up to which the plain code is asked

Members = frozenset[int]  # hashes of nodes


def themes_of(state: State, taus: list[float]) -> Themes:
    ground = themes.prepare(state, MOST)
    assert ground is not None
    return themes.grow(ground, taus)


def members(state: State, of_clusters: np.ndarray, found: Themes) -> dict[int, Members]:
    """The nodes of each theme, by its key. `of_clusters`: the theme of each cluster."""
    rows = state.hierarchy.base.nodes.all_rows()
    names = state.hierarchy.base.nodes.hashes[rows]
    theme = of_clusters[np.searchsorted(found.clusters, state.final_of_nodes(rows))]
    return {int(key): frozenset(names[theme == key].tolist()) for key in np.unique(theme)}


def check(state: State, found: Themes, taus: list[float]) -> None:
    """All final clusters, each in one theme at each level, which is known by its smallest one; nested."""
    rows = state.hierarchy.base.nodes.all_rows()
    assert found.clusters.tolist() == sorted(set(state.final_of_nodes(rows).tolist()))
    assert found.keys.shape == (len(taus), len(found.clusters))
    assert found.version == state.version
    finer = found.clusters
    for keys in found.keys:
        for key in set(keys.tolist()):
            assert found.clusters[keys == key].min() == key
            inside = set(finer[keys == key].tolist())
            assert not inside & set(finer[keys != key].tolist()), "a finer one is cut"
        finer = keys


def play(seed: int, kind: str, scale: int, model: Any = None) -> int:
    """Compare after some batches; return how many themes joined clusters."""
    model = model or random_model(seed, k=[3, 5, 10][seed % 3])
    world = World(seed, kind, scale, model)
    taus = TAUS[seed % len(TAUS)]
    state = empty_state(world, model)
    joined = 0
    for at, (batch, _) in enumerate(world.batches()):
        take(state, batch)
        if at % 4 or not world.live:
            continue
        where = f"batch {at} of {world}"
        before = [content(level) for level in state.hierarchy.levels]
        found = themes_of(state, taus)
        np.testing.assert_equal([content(level) for level in state.hierarchy.levels], before, where)
        assert (state.hierarchy.levels[-1].above == -1).all(), where
        check(state, found, taus)
        mine = [members(state, keys, found) for keys in found.keys]
        joined += sum(len(set(keys.tolist())) < len(keys) for keys in found.keys)
        if state.hierarchy.base.nodes.live <= FEW:
            for ours, plain in zip(mine, plain_themes(state, world, model, taus), strict=True):
                assert set(ours.values()) == plain, where
    other = rebuilt(world, model, state.calibration.epoch)
    if world.live:
        found, again = themes_of(state, taus), themes_of(other, taus)
        for mine_at, other_at in zip(found.keys, again.keys, strict=True):
            ours, theirs = members(state, mine_at, found), members(other, other_at, again)
            assert set(ours.values()) == set(theirs.values()), f"the end of {world}"
    return joined


def plain_themes(state: State, world: World, model: Any, taus: list[float]) -> list[set[Members]]:
    grid = np.unique(np.array([*world.live.values()], np.int16).reshape(-1, world.shape.dim), axis=0)
    hashes, epoch = distinct_hashes(grid), state.calibration.epoch
    levels = reference.cluster(grid, hashes, model, world.shape, epoch)
    names = levels[0].hashes
    return [
        {frozenset(names[own].tolist()) for own in level}
        for level in reference.themes(grid, levels, model, world.shape, taus, epoch)
    ]


@pytest.mark.parametrize(("seed", "kind"), [(seed, KINDS[seed % len(KINDS)]) for seed in range(800, 811)])
def test_themes_are_those_of_the_plain_code(seed: int, kind: str) -> None:
    play(seed, kind, 30 + 5 * (seed % 7))


@pytest.mark.long
@pytest.mark.parametrize(("seed", "kind"), [(seed, KINDS[seed % len(KINDS)]) for seed in range(820, 900)])
def test_themes_are_those_of_the_plain_code_in_many_sequences(seed: int, kind: str) -> None:
    play(seed, kind, 40 + 9 * (seed % 7))


def test_clusters_are_joined() -> None:
    assert play(800, "mixed", 60) > 0


def test_the_shipped_weights_make_the_same_ones_in_any_order() -> None:
    play(800, "mixed", 150, LinkageModel.load())


def test_one_cluster_is_one_theme() -> None:
    world = World(3, "mixed", 30, random_model(3))
    state = empty_state(world, random_model(3))
    take(state, world.told([(b"a", world.vectors(1)[0])], [])[0])
    found = themes_of(state, [0.35, 0.2])
    assert found.keys.tolist() == [found.clusters.tolist()] * 2
    assert len(found.clusters) == 1


def test_an_empty_state_has_none() -> None:
    world = World(3, "mixed", 30, random_model(3))
    state = empty_state(world, random_model(3))
    assert themes.prepare(state, MOST) is None
    take(state, world.told([(b"a", world.vectors(1)[0])], [])[0])
    take(state, world.told([], [b"a"])[0])
    assert themes.prepare(state, MOST) is None


def test_more_clusters_than_the_bound_are_refused() -> None:
    world = World(8, "mixed", 60, random_model(8))
    state = empty_state(world, random_model(8))
    for batch, _ in world.batches():
        take(state, batch)
    count = len(themes_of(state, []).clusters)
    assert themes.prepare(state, count) is not None
    with pytest.raises(InputError, match=rf"{count:,} final clusters are more than the {count - 1:,}"):
        themes.prepare(state, count - 1)
