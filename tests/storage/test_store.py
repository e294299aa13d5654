"""The store on a real disk: what is committed comes back, the log, generations, two writers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConfigMismatch, StoreLocked
from engine.events import show_event
from engine.storage import schema
from engine.storage.environment import Environment
from engine.storage.schema import ID, PAIR, PLACE
from engine.storage.store import Store
from engine.storage.verify import walk
from engine.types import Assignment, DeadLetter, Lists
from tests.support.fake_collection import DIM, Toy
from tests.support.stores import CONFIG, assert_loaded, contents, derived, run

pytestmark = pytest.mark.usefixtures("warm")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_what_is_loaded_is_what_was_committed(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n: int
) -> None:
    path, toy = tmp_path_factory.mktemp("store"), Toy(seed)
    with Store.open(path, CONFIG, events_max_bytes=1 << 62) as store:
        for _ in range(n):
            store.commit(toy.step())
        assert_loaded(store.load(), toy)
    with Store.open(path, CONFIG) as store:
        assert store.version == n
        assert store.config["dim"] == DIM
        assert_loaded(store.load(), toy)
        assert store.position("file") == toy.positions["file"]
        assert store.position("nothing") is None
    assert derived(path) == toy.derived()
    assert walk(path) == sum(map(len, contents(path).values()))


def test_an_empty_store_loads_as_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path / "new" / "store", CONFIG) as store:
        assert_loaded(store.load(), Toy(0))


@given(key=st.none() | st.binary(), value=st.none() | st.binary(), name=st.text(), header=st.binary())
def test_dead_letters_keep_their_bytes(
    key: bytes | None, value: bytes | None, name: str, header: bytes
) -> None:
    letter = DeadLetter("no key", "topic 0 at 7", key, value, [(name, header)])
    assert schema.unpack_event(schema.pack_event(letter)) == letter
    assert show_event("toy", 3, 2, letter) == {
        "schema": 1,
        "collection": "toy",
        "event": "reject",
        "origin": letter.origin,
        "reason": letter.reason,
        "version": 3,
        "event-id": "3-2",
    }


def test_events_come_back_in_order_with_ids_that_never_repeat(tmp_path: Path) -> None:
    toy, wanted = Toy(4), []
    with Store.open(tmp_path, CONFIG) as store:
        for _ in range(5):
            change = toy.step()
            store.commit(change)
            wanted += [(change.version, i, event) for i, event in enumerate(change.events)]
        rows = list(store.rows("events"))
    assert [PLACE.pack((version, ordinal)) for version, ordinal, _ in wanted] == [key for key, _ in rows]
    read = [show_event("toy", *PLACE.unpack(key), schema.unpack_event(body)) for key, body in rows]
    assert len({event["event-id"] for event in read}) == len(wanted) > 20
    for (version, _, event), found in zip(wanted, read, strict=True):
        common = {"schema": 1, "collection": "toy", "version": version, "event-id": found["event-id"]}
        if isinstance(event, Assignment):
            path = {"key": event.key.decode(), "path": list(event.path)}
            assert found == common | path | {
                "cluster": event.cluster or None,
                "previous": event.previous or None,
            }
        else:
            sets = {"from": list(event.sources), "into": list(event.into)}
            assert found == common | sets | {
                "event": event.event,
                "cluster": event.cluster,
                "size": event.size,
            }


def test_the_log_forgets_old_versions_and_the_clusters_that_ended_in_them(tmp_path: Path) -> None:
    toy = Toy(5)
    with Store.open(tmp_path, CONFIG, events_max_age_ms=2_500) as store:  # a version a second
        for _ in range(8):
            store.commit(toy.step())
        assert [ID.unpack(key) for key, _ in store.rows("commits")] == [6, 7, 8]
        assert {PAIR.unpack(key)[0] for key, _ in store.rows("endings")} <= {6, 7, 8}
        assert {int.from_bytes(key[:8], "big") for key, _ in store.rows("events")} == {6, 7, 8}
        with store.snapshot() as tables:
            ended = [cluster.ended for _, cluster in tables.clusters.rows()]
        assert {version for version in ended if version} <= {6, 7, 8}
        assert_loaded(store.load(), toy)
    with Store.open(tmp_path, CONFIG, events_max_bytes=1) as store:
        store.commit(toy.step())
        assert [ID.unpack(key) for key, _ in store.rows("commits")] == [9]
        assert store.load().version == 9


def test_the_log_keeps_what_is_not_published(tmp_path: Path) -> None:
    toy = Toy(5)

    def versions(store: Store) -> list[int]:
        return [ID.unpack(key) for key, _ in store.rows("commits")]

    with Store.open(tmp_path, CONFIG, events_max_bytes=1) as store:
        store.retain_from_version = 0  # nobody has told yet how far it is published
        for _ in range(4):
            store.commit(toy.step())
        assert versions(store) == [1, 2, 3, 4]
        assert store.log_is_full()
        store.retain_from_version = 3
        assert not store.log_is_full()
        store.commit(toy.step())
        assert versions(store) == [3, 4, 5]
        assert store.log_is_full()
    with Store.open(tmp_path, CONFIG, events_max_bytes=1) as again:
        assert again.identity == store.identity != ""
        assert not again.log_is_full()
        again.commit(toy.step())
        assert versions(again) == [6]


def test_a_new_generation_replaces_what_is_derived(tmp_path: Path) -> None:
    toy = Toy(6)
    with Store.open(tmp_path, CONFIG) as store:
        for _ in range(4):
            store.commit(toy.step())
        change = toy.rebuild()
        store.commit(change, {**CONFIG, "k": 5})
        assert_loaded(store.load(), toy)
    assert derived(tmp_path) == toy.derived()
    with pytest.raises(ConfigMismatch):
        Store.open(tmp_path, CONFIG)
    with Store.open(tmp_path, {**CONFIG, "k": 5}) as store:
        assert store.version == 5
        assert store.config["dim"] == DIM


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"k": 5}, r"k 10, not 5: .*shoal rebuild"),
        ({"model": "n"}, r"model 'm+', not 'n': .*shoal rebuild"),
        ({"adapter": "a"}, r"no adapter, not a\.\.\.: .*shoal rebuild"),
        ({"dim": 7}, rf"dim {DIM}, not 7: name another store"),
        ({"collection": "b"}, r"collection 'toy', not 'b': name another store"),
    ],
)
def test_another_configuration_is_refused_with_what_differs(tmp_path: Path, other: dict, words: str) -> None:
    toy = Toy(7)
    with Store.open(tmp_path, CONFIG) as store:
        store.commit(toy.step())
    with pytest.raises(ConfigMismatch, match=words):
        Store.open(tmp_path, {**CONFIG, **other})
    with Store.open(tmp_path, CONFIG) as store:
        assert_loaded(store.load(), toy)


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(tmp_path, CONFIG).close()
    monkeypatch.setattr(schema, "FORMAT", 3)
    with pytest.raises(ConfigMismatch, match="has format 2, this release reads 3; use the release"):
        Store.open(tmp_path)


def test_another_arithmetic_makes_the_store_stale_until_a_commit(tmp_path: Path) -> None:
    toy, other = Toy(8), {**CONFIG, "arithmetic": "avx512"}
    with Store.open(tmp_path, CONFIG) as store:
        store.commit(toy.step())
        assert not store.stale
    Store.open(tmp_path, other).close()
    with Store.open(tmp_path, other) as store:
        assert store.stale
        store.commit(toy.step())
        assert not store.stale
    with Store.open(tmp_path, other) as store:
        assert not store.stale


def test_a_second_writer_is_told_who_writes(tmp_path: Path) -> None:
    with (
        Store.open(tmp_path, CONFIG),
        pytest.raises(StoreLocked, match=f"process {os.getpid()} .*wait for it"),
    ):
        Store.open(tmp_path, CONFIG)
    script = "import sys; from engine.storage.store import Store; Store.open(sys.argv[1])"
    with Store.open(tmp_path, CONFIG):
        done = run(script, tmp_path)
    assert done.returncode == 1
    assert "StoreLocked" in done.stderr
    Store.open(tmp_path, CONFIG).close()


def test_the_map_grows_when_it_is_full(tmp_path: Path) -> None:
    toy = Toy(9)
    with Store.open(tmp_path, CONFIG, map_bytes=1 << 18) as store:
        while store.environment.map_bytes < 1 << 20:
            store.commit(toy.step(40))
        assert_loaded(store.load(), toy)
    with Store.open(tmp_path, CONFIG, map_bytes=1 << 18) as store:
        store.commit(toy.step(40))
        assert_loaded(store.load(), toy)


def test_lists_come_back_from_their_columns(tmp_path: Path) -> None:
    rng, n = np.random.default_rng(1), 20_000
    lists = Lists(
        np.arange(n),
        rng.integers(-1, 2**47, (n, 16)),
        rng.integers(-(2**28), 2**28, (n, 16)).astype(np.int32),
    )
    environment = Environment.create(tmp_path)
    environment.write(lambda tables: tables.lists.put_columns(lists))
    with environment.read() as tables:
        found = tables.lists.columns()
    environment.close()
    assert np.array_equal(found.neighbors, lists.neighbors)
    assert np.array_equal(found.dots, lists.dots)
