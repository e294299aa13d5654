"""The engine as a library: what it takes, what it refuses, what it answers."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.collection.assign import NEW
from engine.collection.collection import Engine
from engine.collection.rebuild import rebuild_store
from engine.config import Settings
from engine.errors import (
    ConfigMismatch,
    CorruptStore,
    InputError,
    NoStore,
    StoreError,
    StoreFull,
    StoreLocked,
)
from engine.model.linkage import LinkageModel, random_model
from engine.storage.schema import TABLES
from engine.system import determinism
from engine.types import Batch, Float64

pytestmark = pytest.mark.usefixtures("one_thread")
DIM = 8
Open = Callable[..., Engine]


@pytest.fixture(scope="module")
def weights() -> LinkageModel:
    """They make many clusters of what `draw` draws, and at each tau others."""
    return random_model(7)


def settings_of(path: Path, **sections: Any) -> Settings:
    return Settings.model_validate({"store": {"path": path}, "index": {"kind": "exact"}, **sections})


@pytest.fixture
def opened(tmp_path: Path, weights: LinkageModel) -> Iterator[Open]:
    """`opened(index={"kind": "hnsw"})` opens the test's store; all are closed at the end."""
    engines = []

    def open_it(name: str = "store", **sections: Any) -> Engine:
        engines.append(Engine.open(settings_of(tmp_path / name, **sections), weights, lambda: 1.5))
        return engines[-1]

    yield open_it
    for engine in engines:
        engine.close()


def draw(seed: int, count: int, groups: int = 8) -> Float64:
    """Embeddings around the same few centres whatever the seed."""
    centres = np.random.default_rng(1).normal(size=(groups, DIM))
    rng = np.random.default_rng(seed)
    return centres[rng.integers(0, groups, count)] + 0.2 * rng.normal(size=(count, DIM))


def names(count: int, first: int = 0) -> list[str]:
    return [f"item {i}" for i in range(first, first + count)]


def labels(engine: Engine) -> dict[bytes, int]:
    keys, clusters = engine.labels()
    assert len(set(keys)) == len(keys) == len(clusters)
    return dict(zip(keys, clusters.tolist(), strict=True))


def members(found: dict[bytes, int]) -> dict[int, frozenset[bytes]]:
    clusters = defaultdict(set)
    for key, cluster in found.items():
        clusters[cluster].add(key)
    return {cluster: frozenset(own) for cluster, own in clusters.items()}


def stored(engine: Engine) -> dict[str, list[Any]]:
    """All there is, but for what names the store itself."""
    return {table: [row for row in engine.store.rows(table) if row[0] != b"identity"] for table in TABLES}


# --- what it takes ------------------------------------------------------------------------------


def test_counts_what_a_batch_did(opened: Open) -> None:
    engine = opened()
    vectors = draw(2, 30)
    applied = engine.upsert(names(30), vectors)
    assert (applied.version, applied.inserted, applied.moved, applied.unchanged) == (1, 30, 0, 0)
    again = vectors.copy()
    again[:4] = draw(3, 4)
    applied = engine.upsert(names(32), np.concatenate([again, draw(4, 2)]))
    assert (applied.version, applied.inserted, applied.moved, applied.unchanged) == (2, 2, 4, 26)
    applied = engine.delete(["item 0", "item 1", "nobody", "item 0"])
    assert (applied.version, applied.deleted, applied.unknown) == (3, 2, 1)
    assert len(engine) == 30
    assert engine.version == 3
    assert engine.dim == DIM
    assert labels(engine).keys() == {name.encode() for name in names(32)[2:]}


def test_a_vector_of_another_length_is_the_same_vector(opened: Open) -> None:
    engine = opened()
    vectors = draw(2, 20)
    engine.upsert(names(20), vectors)
    assert engine.upsert(names(20), vectors * 37.0).unchanged == 20


def test_the_last_of_equal_keys_counts(opened: Open) -> None:
    one, other = opened("one"), opened("other")
    vectors = draw(5, 40)
    keys = [*names(20), *reversed(names(20))]
    applied = one.upsert(keys, vectors, times=np.arange(40), payloads=[b"%d" % i for i in range(40)])
    assert (applied.inserted, len(one)) == (20, 20)
    last = np.arange(39, 19, -1)
    other.upsert(names(20), vectors[last], times=last, payloads=[b"%d" % i for i in last])
    assert stored(one) == stored(other)


def test_text_and_bytes_are_the_same_key(opened: Open) -> None:
    engine = opened()
    engine.upsert(["ä", b"b"], draw(6, 2))
    assert engine.upsert(["ä".encode(), "b"], draw(6, 2)).unchanged == 2
    assert engine.delete(["ä".encode()]).deleted == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_float_type_and_plain_lists(opened: Open, dtype: Any) -> None:
    engine = opened()
    vectors = draw(7, 10).astype(dtype)
    engine.upsert(names(10), vectors)
    assert engine.upsert(names(10), vectors.tolist()).unchanged == 10


def test_the_longest_key(opened: Open) -> None:
    engine = opened()
    engine.upsert([b"x" * 511, b"y"], draw(8, 2))
    assert b"x" * 511 in labels(engine)


def test_the_time_is_now_where_none_is_given(opened: Open) -> None:
    engine = opened()
    engine.upsert(["a"], draw(9, 1))
    engine.upsert(["b"], draw(9, 1), times=[7])
    assert engine.store.load().items.times.tolist() == [1500, 7]


def test_an_empty_batch_is_a_version(opened: Open) -> None:
    """It carries the positions of a source that had nothing for us."""
    engine = opened()
    engine.upsert(names(20), draw(10, 20))
    before = labels(engine)
    applied = engine.upsert([], np.empty((0, DIM)), positions={"source": b"17"})
    assert (applied.version, applied.inserted, applied.unchanged) == (2, 0, 0)
    assert engine.store.position("source") == b"17"
    assert labels(engine) == before


def test_deletes_before_the_first_item(opened: Open) -> None:
    engine = opened()
    applied = engine.delete(["a"], positions={"source": b"1"})
    assert (applied.version, applied.unknown, engine.dim) == (1, 1, None)
    engine.upsert(names(3), np.eye(3))  # the dimension is still open
    assert (engine.version, engine.dim, len(engine)) == (2, 3, 3)


def test_all_items_may_go(opened: Open) -> None:
    engine = opened()
    engine.upsert(names(25), draw(11, 25))
    engine.delete(names(25))
    assert len(engine) == 0
    assert labels(engine) == {}
    engine.close()
    engine = opened()
    assert (len(engine), engine.dim, engine.version) == (0, DIM, 2)
    assert engine.upsert(names(1), draw(11, 1)).inserted == 1
    assert len(members(labels(engine))) == 1


def test_an_empty_collection_answers(opened: Open) -> None:
    engine = opened()
    assert (engine.version, len(engine), engine.dim, labels(engine)) == (0, 0, None, {})
    assert engine.assign(draw(12, 2)) == [NEW, NEW]
    with pytest.raises(InputError, match="is empty"):
        _ = engine.state


# --- what it refuses ----------------------------------------------------------------------------

GOOD = [1.0] * DIM
REFUSED = {
    "dimension": (["a"], [[1.0] * (DIM + 1)], r"have 9 dimensions, the collection 8"),
    "not a matrix": (["a"], GOOD, r"the shape \(1, d\), not \(8,\)"),
    "too few rows": (["a", "b"], [GOOD], r"the shape \(2, d\), not \(1, 8\)"),
    "NaN": (["a", "b"], [GOOD, [np.nan] * DIM], r"row 1 .*'b'.*NaN"),
    "infinity": (["a", "b"], [[*GOOD[1:], np.inf], GOOD], r"row 0 .*'a'.*infinity"),
    "zero": (["a"], [[0.0] * DIM], r"row 0 .*zero"),
    "empty key": (["a", ""], [GOOD, GOOD], r"row 1: a key has 1 to 511 bytes, this one 0"),
    "over-long key": (["a", "ä" * 256], [GOOD, GOOD], r"row 1: a key has 1 to 511 bytes, this one 512"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_named_and_changes_nothing(opened: Open, name: str) -> None:
    engine = opened()
    engine.upsert(names(30), draw(13, 30))
    before = stored(engine)
    keys, vectors, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason):
        engine.upsert(keys, vectors)
    assert stored(engine) == before
    assert len(engine) == 30
    assert engine.upsert(["a"], [GOOD]).inserted == 1  # and goes on


@pytest.mark.parametrize("key", ["", b"x" * 512])
def test_a_delete_of_no_possible_key_is_refused(opened: Open, key: str | bytes) -> None:
    with pytest.raises(InputError, match="row 1: a key has 1 to 511 bytes"):
        opened().delete(["a", key])


def test_a_batch_of_another_dimension_is_refused(opened: Open) -> None:
    engine = opened()
    engine.upsert(names(20), draw(14, 20))
    batch = Batch([b"a"], np.ones((1, 3), np.int16), np.zeros(1, np.int64), [b""])
    with pytest.raises(InputError, match="have 3 dimensions, the collection 8"):
        engine.apply(batch)
    assert engine.upsert(names(1), draw(14, 1)).version == 2


def test_a_dimension_that_was_set_holds_from_the_start(opened: Open) -> None:
    engine = opened(collection={"dim": 5})
    assert engine.dim == 5
    with pytest.raises(InputError, match="have 8 dimensions, the collection 5"):
        engine.upsert(["a"], [GOOD])
    with pytest.raises(InputError, match="have 8 dimensions, the collection 5"):
        engine.assign([GOOD])


@pytest.mark.parametrize(("times", "payloads"), [([1], None), (None, [b"{}"]), ([1, 2, 3], None)])
def test_columns_have_to_be_of_one_length(opened: Open, times: Any, payloads: Any) -> None:
    engine = opened()
    with pytest.raises(InputError, match=r"must be as many as the keys, 2, not [13]"):
        engine.upsert(["a", "b"], [GOOD, GOOD], times=times, payloads=payloads)
    assert engine.version == 0


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [([[np.nan] * DIM], "row 0: .*NaN"), ([GOOD, [0.0] * DIM], "row 1: .*zero"), ([[1.0]], "1 dimensions")],
)
def test_assign_refuses_bad_vectors(opened: Open, vectors: Any, reason: str) -> None:
    engine = opened()
    engine.upsert(names(20), draw(15, 20))
    with pytest.raises(InputError, match=reason):
        engine.assign(vectors)


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
        with pytest.raises(StoreError, match="closed; open it again"):
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


def test_a_dimension_beyond_the_bound_is_never_begun_with(opened: Open) -> None:
    engine = opened()
    with pytest.raises(InputError, match="1 to 16384 dimensions, not 16385"):
        engine.upsert(["a"], np.ones((1, 16_385)))
    assert engine.upsert(names(5), draw(1, 5)).inserted == 5


def test_a_commit_that_fails_leaves_what_was(opened: Open, tmp_path: Path, weights: LinkageModel) -> None:
    engine = opened()
    engine.upsert(names(20), draw(18, 20))
    before = stored(engine)
    engine.close()
    full = Engine.open(settings_of(tmp_path / "store", bounds={"free_disk_min_bytes": 2**60}), weights)
    with pytest.raises(StoreFull):
        full.upsert(names(5, 100), draw(19, 5))
    with pytest.raises(StoreError, match="open it again"):  # its memory is ahead of the store
        full.labels()
    full.close()
    engine = opened()
    assert stored(engine) == before
    assert engine.upsert(names(5, 100), draw(19, 5)).version == 2


# --- what it answers ----------------------------------------------------------------------------


def test_a_moved_item_keeps_its_id_and_its_history(opened: Open) -> None:
    engine = opened()
    engine.upsert(names(100), draw(20, 100))
    state, before = engine.state, labels(engine)
    ids = {key: int(state.ids[row]) for key, row in state.row_of.items()}
    moving = names(10)
    engine.upsert(moving, draw(21, 10))
    assert {key: int(state.ids[row]) for key, row in state.row_of.items()} == ids
    after = labels(engine)
    now = engine.store.load()
    assert now.items.versions.tolist() == [2 if i < 10 else 1 for i in range(100)]
    assert any(before[key.encode()] != after[key.encode()] for key in moving)
    kept = set(members(before)) & set(members(after))
    assert kept  # clusters that lived on under their ids


def test_an_item_nudged_within_its_cluster_stays_in_it(opened: Open) -> None:
    engine = opened()
    vectors = draw(22, 60)
    engine.upsert(names(60), vectors)
    before = labels(engine)
    engine.upsert(["item 0"], vectors[:1] + 1e-4)
    assert engine.version == 2
    assert labels(engine)[b"item 0"] == before[b"item 0"]


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_assign_answers_as_an_insert_that_enters_no_list(opened: Open, kind: str) -> None:
    """Then nothing differs from an insert: the same linkage, to the bit."""
    engine = opened(index={"kind": kind})
    engine.upsert(names(400), draw(23, 400))
    rng = np.random.default_rng(23)
    compared = linked = 0
    for at in range(60):
        vector = draw(100 + at, 1) + rng.choice([0.0, 0.5]) * rng.normal(size=(1, DIM))
        version = engine.version
        [answer] = engine.assign(vector)
        assert engine.version == version
        before = labels(engine)
        key = b"probe %d" % at
        applied = engine.upsert([key], vector)
        state = engine.state
        base, row = state.hierarchy.base, state.row_of[key]
        if applied.stats["work"][0].changed == 1 and not applied.stats["recalibrated"]:
            compared += 1
            rank = int(base.linkage[row, : base.lists.degrees[row]].argmax())
            neighbor = state.keys[base.lists.neighbors[row, rank]]
            assert answer.probability == float(base.linkage[row, rank])
            assert answer.neighbor == neighbor
            linked += answer.cluster is not None
            assert answer.cluster == (before[neighbor] if answer.probability > engine.model.tau else None)
        engine.delete([key])
    assert compared >= 10
    assert linked >= 5


def test_assign_of_an_item_that_is_there(opened: Open) -> None:
    """The shipped weights put a copy of an item where the item is."""
    engine = Engine.open(settings_of(opened().settings.store.path.with_name("shipped")))
    with engine:
        vectors = draw(24, 200)
        engine.upsert(names(200), vectors)
        found = labels(engine)
        answers = engine.assign(vectors)
        same = [found[name.encode()] == a.cluster for name, a in zip(names(200), answers, strict=True)]
        assert sum(same) > 150
        assert engine.assign(vectors[7]) == [answers[7]]  # one vector needs no matrix


def test_queries_run_beside_batches(opened: Open) -> None:
    engine = opened(index={"kind": "hnsw"})
    engine.upsert(names(200), draw(25, 200))
    problems: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        try:
            while not done.is_set():
                assert len(labels(engine)) in range(200, 401, 20)
                assert len(engine.assign(draw(26, 3))) == 3
        except BaseException as problem:
            problems.append(problem)

    asking = threading.Thread(target=ask)
    asking.start()
    for first in range(200, 400, 20):
        engine.upsert(names(20, first), draw(first, 20))
    done.set()
    asking.join()
    assert not problems


# --- stores come and go -------------------------------------------------------------------------


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


def test_rebuild_with_the_same_settings_changes_no_name(opened: Open, weights: LinkageModel) -> None:
    engine = opened()
    engine.upsert(names(300), draw(33, 300))
    before = labels(engine)
    engine.close()
    rebuild_store(engine.settings, weights, lambda: 2.0)
    engine = opened()
    assert engine.version == 2
    assert labels(engine) == before


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
