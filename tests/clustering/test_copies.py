"""Identical vectors are one node: copies share a cluster, cost nothing, and never fall apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import vectors
from engine.clustering import distinct
from engine.clustering.distinct import Distinct, distinct_hashes
from engine.collection.check import check
from engine.collection.collection import Engine
from engine.config import Settings
from engine.index.columns import Nodes
from engine.storage.reader import View
from engine.types import Int16, UInt64
from engine.vectors import quantize

pytestmark = pytest.mark.usefixtures("one_thread")
DIM = 12
Open = Callable[[str], Engine]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    def open_(kind: str) -> Engine:
        return Engine.open(settings_of(tmp_path / kind, kind), clock=lambda: 1.0)

    return open_


def settings_of(path: Path, kind: str) -> Settings:
    return Settings.model_validate({"store": {"path": path}, "index": {"kind": kind}})


def draw(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(size=(6, DIM))
    return centres[rng.integers(6, size=count)] + 0.3 * rng.normal(size=(count, DIM))


def names(start: int, count: int) -> list[str]:
    return [f"k{number}" for number in range(start, start + count)]


def clusters(engine: Engine) -> dict[str, int]:
    keys, found = engine.labels()
    names = [key.decode() if isinstance(key, bytes) else key for key in keys]
    return dict(zip(names, found.tolist(), strict=True))


@pytest.mark.process
@pytest.mark.parametrize("kind", ["exact", "hnsw"])
@pytest.mark.parametrize("count", [2, 22, 100, 5_000])
def test_copies_of_one_vector_are_one_cluster(opened: Open, kind: str, count: int) -> None:
    with opened(kind) as engine:
        engine.upsert(names(0, count), np.tile(draw(1, 1), (count, 1)))
        assert len(engine) == count
        assert engine.state.hierarchy.base.nodes.live == 1
        assert len(set(clusters(engine).values())) == 1


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_copies_of_two_vectors_are_two_clusters_at_most(opened: Open, kind: str) -> None:
    pair = draw(2, 2)
    with opened(kind) as engine:
        engine.upsert(names(0, 200), np.repeat(pair, 100, axis=0))
        found = clusters(engine)
        assert len(set(found.values())) <= 2
        assert len({found[name] for name in names(0, 100)}) == 1
        assert len({found[name] for name in names(100, 100)}) == 1


@pytest.mark.process
@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_what_people_see_counts_items_and_what_the_model_sees_does_not(opened: Open, kind: str) -> None:
    """Copies leave lists, linkage and calibration as they are; sizes, members and events have all of them."""
    points = draw(3, 90)
    with opened(kind) as engine:
        engine.upsert(names(0, 90), points)
        before, epoch = clusters(engine), engine.state.calibration.epoch
        lists = list(engine.store.rows("lists"))
        applied = engine.upsert(names(90, 300), np.tile(points[:3], (100, 1)))
        assert not any(work.linked + work.embedded for work in applied.stats["work"])
        assert applied.stats["nodes"] == 0
        assert engine.state.calibration.epoch == epoch
        assert list(engine.store.rows("lists")) == lists
        after = clusters(engine)
        assert {name: after[name] for name in before} == before
        assert all(after[f"k{90 + at}"] == before[f"k{at % 3}"] for at in range(300))
        with View.beside(engine.store) as view:
            for cluster in set(after.values()):
                keys = {name for name, own in after.items() if own == cluster}
                assert view.cluster(cluster)["size"] == len(keys)
                page = view.members(cluster, limit=1_000)["items"]
                assert {item["key"] for item in page} == keys
                assert len(page) == len(keys)
            told = {e["cluster"] for e in view.changes(limit=10_000)["changes"] if e.get("event") == "grow"}
            assert told >= {before[f"k{at}"] for at in range(3)}
        settings = engine.settings
    assert check(settings, 0).findings == []


def test_a_copy_that_moves_or_goes_leaves_the_others(opened: Open) -> None:
    points = draw(4, 3)
    with opened("exact") as engine:
        engine.upsert(names(0, 60), np.repeat(points[:2], 30, axis=0))
        nodes = engine.state.hierarchy.base.nodes
        assert engine.upsert(["k0"], points[2:]).moved == 1
        assert nodes.live == 3
        assert engine.upsert(["k0"], points[1:2]).moved == 1
        assert nodes.live == 2
        engine.delete(names(1, 28))
        assert nodes.live == 2
        engine.delete(["k29"])
        assert nodes.live == 1
        assert len(list(engine.store.rows("nodes"))) == 1
        assert len(set(clusters(engine).values())) == 1
        assert len(engine) == 31


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_a_vector_that_items_have_is_in_their_cluster_for_certain(opened: Open, kind: str) -> None:
    points = draw(5, 80)
    with opened(kind) as engine:
        engine.upsert(names(0, 160), np.tile(points, (2, 1)))
        found = clusters(engine)
        for at, answer in enumerate(engine.assign(points)):
            assert (answer.cluster, answer.probability) == (found[f"k{at}"], 1.0)
            assert answer.neighbor is not None


def test_explain_shows_a_node_once_with_its_copies(opened: Open) -> None:
    points = draw(6, 40)
    with opened("exact") as engine:
        engine.upsert(names(0, 40), points)
        engine.upsert(names(40, 20), np.repeat(points[:1], 20, axis=0))
        told = engine.explain("k50")
        level = told["levels"][0]
        assert (level["key"], level["copies"], level["size"]) == ("k50", 21, 1)
        shown = [neighbor["key"] for neighbor in level["neighbors"]]
        assert len(set(shown)) == len(shown)
        assert not set(shown) & {"k0", *names(40, 20)}
        others = (engine.explain(name)["levels"][0]["neighbors"] for name in names(1, 39))
        seen = [near for row in others for near in row if near["copies"] > 1]
        assert seen
        assert {(near["key"], near["copies"]) for near in seen} == {("k0", 21)}, "the oldest stands for all"


@pytest.mark.process
@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_erasing_keeps_a_vector_as_long_as_an_item_has_it(opened: Open, kind: str) -> None:
    with opened(kind) as engine:
        engine.upsert(names(0, 30), draw(9, 30))
        engine.upsert(["secret a", "secret b"], np.tile(draw(10, 1), (2, 1)))
        vector = engine.on_grid(draw(10, 1))[0].tobytes()
        file = engine.store.path / "data.mdb"
        for key, stays in (("secret a", True), ("secret b", False)):
            assert engine.erase(key).found
            data = file.read_bytes()
            assert key.encode() not in data
            assert (vector in data) == stays


def test_near_copies_belong_together(opened: Open) -> None:
    """A hundred around each of ten vectors, noise of 1e-3, and so with a step or two of the grid."""
    centres = draw(7, 10)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rng = np.random.default_rng(7)
    with opened("exact") as engine:
        points = np.repeat(centres, 100, axis=0) + 1e-3 * rng.normal(size=(1_000, DIM)) / np.sqrt(DIM)
        engine.upsert(names(0, 1_000), points)
        found = clusters(engine)
        for at in range(10):
            group = [found[name] for name in names(100 * at, 100)]
            assert max(group.count(cluster) for cluster in set(group)) >= 95


# --- hashes that end every order ------------------------------------------------------------------


@pytest.fixture
def weak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of five bits: collisions everywhere."""
    strong = vectors.hash_vectors

    def hash_vectors(grid: Int16, attempt: int = 0) -> UInt64:
        return strong(grid, attempt) % np.uint64(32)

    monkeypatch.setattr(distinct.vectors, "hash_vectors", hash_vectors)


@pytest.mark.usefixtures("weak")
@pytest.mark.parametrize("seed", range(40))
def test_hashes_depend_on_the_vectors_alone_though_they_collide(seed: int) -> None:
    """No two vectors are taken for one, and whichever came first, each ends with the same hash."""
    rng = np.random.default_rng(seed)
    pool = quantize(rng.normal(size=(24, 4)))[0]
    nodes = Nodes(4)
    table, alive = Distinct(nodes), set[int]()
    for _ in range(30):
        coming = rng.integers(0, len(pool), int(rng.integers(0, 6)))
        rows, new = table.find_or_add(pool[coming])
        assert np.array_equal(nodes.vectors[rows], pool[coming])
        assert len(new) == len({*coming.tolist()} - alive)
        alive |= {*coming.tolist()}
        going = rng.permutation(np.array(sorted(alive), np.int64))[: int(rng.integers(0, 5))]
        gone = table.find(pool[going])
        assert (gone >= 0).all()
        table.remove(gone)
        nodes.remove(gone)
        alive -= {*going.tolist()}
        moved, hashes = table.settle()
        nodes.hashes[moved] = hashes
        assert (table.find(pool[np.array(sorted({*range(24)} - alive), np.int64)]) == -1).all()
        live = nodes.all_rows()
        assert len(live) == len(alive)
        order = rng.permutation(live)
        assert np.array_equal(distinct_hashes(nodes.vectors[order]), nodes.hashes[order]), f"{seed=}"
        assert len(np.unique(nodes.hashes[live])) == len(live)


@pytest.mark.usefixtures("weak")
def test_a_collision_merges_nothing(opened: Open) -> None:
    points: Any = draw(8, 20)
    with opened("exact") as engine:
        engine.upsert(names(0, 20), points)
        engine.upsert(names(20, 20), points[::-1])
        assert engine.state.hierarchy.base.nodes.live == 20
        grid = engine.on_grid(points)
        found = engine.state.items.nodes[engine.state.items.find([b"k%d" % at for at in range(20)])]
        assert np.array_equal(engine.state.hierarchy.base.nodes.vectors[found], grid)
