"""A collection with an adapter: clusters are of adapted vectors, the store keeps the incoming ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.collection.check import check
from engine.collection.collection import Engine
from engine.collection.rebuild import rebuild_store
from engine.config import Settings
from engine.errors import ConfigMismatch, InputError, ShoalError
from engine.model.adapter import Adapter
from engine.storage.backup import back_up, restore
from engine.types import Batch, Vectors
from engine.vectors import quantize
from tests.support.collections import DIM, draw, labels, names, settings_of, stored
from tests.support.random_models import random_model

pytestmark = pytest.mark.usefixtures("one_thread", "warm")

Make = Callable[..., Settings]
A = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
TWIN = [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 9.0]  # `cut` sees the first four components alone
OTHER = [4.0, 3.0, 2.0, -1.0, 0.0, 1.0, 0.0, 0.0]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    random_model(7).save(folder / "model.safetensors")
    rng = np.random.default_rng(4)
    weights = {
        "cut": np.eye(DIM, 4),
        "turn": rng.normal(size=(DIM, DIM)),
        "small": rng.normal(size=(DIM, 3)),
        "elsewhere": rng.normal(size=(DIM + 1, 4)),
    }
    for name, direct in weights.items():
        adapter = Adapter.of({"direct": direct, "bias": np.zeros(direct.shape[1])}, {})
        adapter.save(folder / f"{name}.safetensors")
    raw = (folder / "cut.safetensors").read_bytes()
    (folder / "short.safetensors").write_bytes(raw[: len(raw) // 2])
    return {file.stem: file for file in folder.glob("*.safetensors")}


@pytest.fixture
def make(tmp_path: Path, files: dict[str, Path]) -> Make:
    """`make("cut")`: the settings of the test's store with that adapter."""

    def settings(adapter: str | None = "cut", kind: str = "exact", **sections: Any) -> Settings:
        model = {"path": files["model"], "adapter": files[adapter] if adapter else None}
        return settings_of(tmp_path / "store", model=model, index={"kind": kind}, **sections)

    return settings


def opened(settings: Settings) -> Engine:
    return Engine.open(settings, clock=lambda: 5.0)


def incoming(engine: Engine) -> dict[str, bytes]:
    """What the store has of each item's incoming vector."""
    items = engine.store.load().items
    return {
        key.decode(): vector.tobytes()
        for key, vector in zip(items.keys, engine.store.incoming(), strict=True)
    }


def grid(*vectors: list[float]) -> list[bytes]:
    return [vector.tobytes() for vector in quantize(np.array(vectors))[0]]


def test_vectors_that_are_adapted_to_the_same_share_a_node_and_keep_their_own(make: Make) -> None:
    with opened(make()) as engine:
        applied = engine.upsert(["a", "copy", "twin", "other"], [A, A, TWIN, OTHER])
        assert applied.inserted == 4
        assert engine.state.hierarchy.base.nodes.live == 2
        assert engine["a"].cluster == engine["copy"].cluster == engine["twin"].cluster
        assert incoming(engine) == dict(
            zip(["a", "copy", "twin", "other"], grid(A, A, TWIN, OTHER), strict=True)
        )
        again = engine.upsert(["a", "twin"], [A, TWIN])
        assert (again.moved, again.unchanged) == (0, 2)
        moved = engine.upsert(["copy"], [TWIN])
        assert (moved.moved, moved.unchanged) == (1, 0)
        assert engine.state.hierarchy.base.nodes.live == 2
        assert engine["copy"].updated == moved.version
        assert incoming(engine)["copy"] == grid(TWIN)[0]
        engine.delete(["a", "twin"])
        assert incoming(engine) == dict(zip(["copy", "other"], grid(TWIN, OTHER), strict=True))
        assert engine.state.hierarchy.base.nodes.live == 2
    assert not check(make()).findings


def test_assign_adapts_what_it_is_asked(make: Make) -> None:
    with opened(make()) as engine:
        engine.upsert(["a", *names(40)], [A, *draw(2, 40)])
        for asked in (A, TWIN):
            (answer,) = engine.assign([asked])
            assert (answer.cluster, answer.probability, answer.neighbor) == (engine["a"].cluster, 1.0, "a")
        with pytest.raises(InputError, match="8"):
            engine.assign([A[:4]])


def test_the_adapted_vectors_are_what_a_store_without_adapter_makes_of_them(
    make: Make, files: dict[str, Path], tmp_path: Path
) -> None:
    with (
        opened(make("small")) as engine,
        opened(settings_of(tmp_path / "plain", model={"path": files["model"]})) as plain,
    ):
        adapter = engine.adapter
        assert adapter is not None
        for at in range(3):
            vectors = draw(at, 60)
            engine.upsert(names(60, 50 * at), vectors)
            keys = [name.encode() for name in names(60, 50 * at)]
            shown = adapter.apply(quantize(vectors)[0])  # on the grid: `upsert` would round once more
            plain.apply(Batch(keys, shown, np.full(60, 5_000), [b""] * 60))
        assert labels(engine) == labels(plain)
        assert engine.state.hierarchy.base.nodes.vectors.shape[1] == 3
        asked = draw(9, 5)
        assert engine.assign(asked) == plain.assign_grid(adapter.apply(quantize(asked)[0]))[1]


@pytest.mark.parametrize("other", ["turn", None])
def test_another_adapter_is_refused_and_a_rebuild_brings_it(make: Make, other: str | None) -> None:
    with opened(make()) as engine:
        engine.upsert(names(80), draw(1, 80))
        before, clusters = stored(engine), labels(engine)
    with pytest.raises(ConfigMismatch, match=r"the adapter .*(, not|names none).*shoal rebuild"):
        opened(make(other))
    with opened(make()) as engine:
        assert stored(engine) == before
    rebuild_store(make(other), clock=lambda: 5.0)
    with pytest.raises(ConfigMismatch, match="shoal rebuild"):
        opened(make())
    with opened(make(other)) as engine:
        assert engine["item 3"].updated == 1
        with engine.store.snapshot() as tables:
            assert tables.incoming.count() == (80 if other else 0)
        assert set(labels(engine).values()) & set(clusters.values()), "no id follows its members"
    assert not check(make(other)).findings
    rebuild_store(make(), clock=lambda: 5.0)
    with opened(make()) as engine:
        assert incoming(engine) == dict(
            zip(names(80), [row.tobytes() for row in quantize(draw(1, 80))[0]], strict=True)
        )


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ("elsewhere", "the adapter takes embeddings of 9 components, the collection's have 8"),
        ("short", "is no adapter of Shoal, or it is damaged"),
        ("model", r"is no adapter of Shoal: it has no card of an adapter; .*, not under adapter\.$"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused_and_nothing_changes(
    make: Make, adapter: str, words: str
) -> None:
    with opened(make(None)) as engine:
        engine.upsert(names(20), draw(1, 20))
        before = stored(engine)
        with pytest.raises(InputError, match=words):
            engine.rebuild(make(adapter))
        assert stored(engine) == before
        engine.upsert(["more"], draw(3, 1))
        before = stored(engine)
    with pytest.raises(ShoalError):
        opened(make(adapter))
    with pytest.raises(InputError, match=words):
        rebuild_store(make(adapter))
    with pytest.raises(InputError):
        opened(make(adapter, collection={"dim": DIM}))
    with opened(make(None)) as engine:
        assert stored(engine) == before


def test_an_adapter_that_is_not_there_is_named(make: Make, tmp_path: Path) -> None:
    settings = make().with_model(adapter=tmp_path / "none.safetensors")
    with pytest.raises(InputError, match=r"the adapter .*none\.safetensors cannot be read: No such file"):
        opened(settings)


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_a_live_rebuild_with_another_adapter_beside_batches_and_questions(make: Make, kind: str) -> None:
    with opened(make("cut", kind)) as engine:
        engine.upsert(names(1_500), draw(3, 1_500))
        done: list[object] = []
        thread = threading.Thread(target=lambda: done.append(engine.rebuild(make("small", kind))))
        thread.start()
        at = 0
        while thread.is_alive():
            engine.upsert(names(20, at), draw(100 + at, 20))  # also known keys, elsewhere
            engine.delete(names(1, at + 1))
            assert len(engine.assign(draw(5, 2))) == 2
            at += 15
        thread.join()
        assert done
        assert engine.state.hierarchy.shape.dim == 3
        engine.upsert(names(5, 9_000), draw(8, 5))
        assert engine.assign(draw(8, 5)[:1])[0].probability == 1.0
    report = check(make("small", kind), 0)
    assert report.findings == report.not_looked_at == []


def test_erase_compact_backup_and_restore_know_the_incoming_vectors(make: Make, tmp_path: Path) -> None:
    secret = quantize(np.array([OTHER]))[0].tobytes()
    with opened(make(limits={"free_disk_min_bytes": 0})) as engine:
        engine.upsert(names(200), draw(1, 200))
        engine.upsert(["secret"], [OTHER])
        path = engine.store.path
        assert secret in (path / "data.mdb").read_bytes()
        assert engine.erase("secret").found
        assert all(secret not in file.read_bytes() for file in path.iterdir() if file.is_file())
        held = incoming(engine)
        engine.compact()
        assert incoming(engine) == held
    back_up(path, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "again", False)
    moved = make().in_folder(tmp_path / "again")
    with opened(moved) as engine:
        assert incoming(engine) == held
    assert not check(moved).findings


def test_check_finds_what_is_not_adapted(make: Make) -> None:
    with opened(make()) as engine:
        engine.upsert(names(30), draw(1, 30))
        wrong = quantize(np.array([OTHER]))[0]
        engine.store.environment.write(
            lambda tables: tables.incoming.put_columns(Vectors(np.array([3]), wrong))
        )
    report = check(make())
    assert report.counts == {"adapted vectors": 1}
    assert "item 3" in report.findings[0]
    assert "adapted vectors" not in check(make(None)).looked_at


def test_check_finds_items_without_incoming_vector(make: Make) -> None:
    with opened(make()) as engine:
        engine.upsert(names(30), draw(1, 30))
        engine.store.environment.write(lambda tables: tables.incoming.delete_all([4]))
    assert any("incoming" in finding for finding in check(make()).findings)


def test_all_items_may_go_and_the_dimension_stays(make: Make) -> None:
    with opened(make()) as engine:
        engine.upsert(names(9), draw(1, 9))
        engine.delete(names(9))
        assert engine.dim == DIM
        with pytest.raises(InputError, match="8"):
            engine.upsert(["a"], [A[:5]])
        assert not incoming(engine)
        engine.upsert(["a"], [A])
        assert incoming(engine) == {"a": grid(A)[0]}
    assert not check(make()).findings


def test_the_keyword_of_open(tmp_path: Path, files: dict[str, Path]) -> None:
    with Engine.open(tmp_path / "store", adapter=files["cut"], index="exact") as engine:
        engine.upsert(["a", "b"], [A, TWIN])
        assert engine.state.hierarchy.shape.dim == 4
    with pytest.raises(ConfigMismatch):
        Engine.open(tmp_path / "store", adapter="", index="exact")
