"""The store on a real disk: bits, crashes, full disks, damage, two writers."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConfigMismatch, CorruptStore, StoreError, StoreFull, StoreLocked
from engine.events import show_event
from engine.storage import schema
from engine.storage.store import Store
from engine.storage.verify import walk
from engine.types import Assignment, DeadLetter, Lists, Loaded
from tests.support import warm_python
from tests.support.fake_collection import DIM, ROOT, Toy
from tests.support.stores import contents

pytestmark = pytest.mark.usefixtures("warm")

CONFIG = {"collection": "toy", "dim": None, "model": "m" * 64, "k": 10, "tau": 0.1, "arithmetic": "avx2"}


def assert_loaded(found: Loaded, toy: Toy) -> None:
    """Everything is back, to the bit."""
    wanted = toy.loaded()
    for field in dataclasses.fields(Loaded):
        one, other = getattr(found, field.name), getattr(wanted, field.name)
        if not dataclasses.is_dataclass(one):
            one, other = (one,), (other,)
        else:
            one, other = ([getattr(part, f.name) for f in dataclasses.fields(part)] for part in (one, other))
        for a, b in zip(one, other, strict=True):
            if isinstance(a, np.ndarray):
                assert a.dtype == b.dtype, field.name
                assert np.array_equal(a, b), field.name
            else:
                assert a == b, field.name


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


def derived(path: Path) -> dict[str, set[tuple[int, ...]]]:
    """The tables that answer queries, as sets of numbers."""
    rows = contents(path)
    numbers = {
        table: {schema.read_pair(key) for key, _ in rows[table]}
        for table in ("copies", "members", "cluster_trees", "endings")
    }
    return numbers | {"sizes": {schema.read_size_key(key) for key, _ in rows["sizes"]}}


def test_an_empty_store_loads_as_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path / "new" / "store", CONFIG) as store:
        assert_loaded(store.load(), Toy(0))


@given(key=st.none() | st.binary(), value=st.none() | st.binary(), name=st.text(), header=st.binary())
def test_dead_letters_keep_their_bytes(
    key: bytes | None, value: bytes | None, name: str, header: bytes
) -> None:
    letter = DeadLetter("no key", "topic 0 at 7", key, value, [(name, header)])
    assert schema.parse_event(schema.event_body(letter)) == letter
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
    assert [schema.event_key(version, ordinal) for version, ordinal, _ in wanted] == [key for key, _ in rows]
    read = [schema.read_event("toy", key, body) for key, body in rows]
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
        assert [schema.read_u64(key) for key, _ in store.rows("commits")] == [6, 7, 8]
        assert {schema.read_pair(key)[0] for key, _ in store.rows("endings")} <= {6, 7, 8}
        assert {int.from_bytes(key[:8], "big") for key, _ in store.rows("events")} == {6, 7, 8}
        ended = [schema.read_cluster(*row).ended for row in store.rows("clusters")]
        assert {version for version in ended if version} <= {6, 7, 8}
        assert_loaded(store.load(), toy)
    with Store.open(tmp_path, CONFIG, events_max_bytes=1) as store:
        store.commit(toy.step())
        assert [schema.read_u64(key) for key, _ in store.rows("commits")] == [9]
        assert store.load().version == 9


def test_the_log_keeps_what_is_not_published(tmp_path: Path) -> None:
    toy = Toy(5)

    def versions(store: Store) -> list[int]:
        return [schema.read_u64(key) for key, _ in store.rows("commits")]

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
        store.replace(change, {**CONFIG, "k": 5})
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


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [warm_python.executable(), "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_map_grows_when_it_is_full(tmp_path: Path) -> None:
    toy = Toy(9)
    with Store.open(tmp_path, CONFIG, map_bytes=1 << 18) as store:
        while store.environment.map_bytes < 1 << 20:
            store.commit(toy.step(40))
        assert_loaded(store.load(), toy)
    with Store.open(tmp_path, CONFIG, map_bytes=1 << 18) as store:
        store.commit(toy.step(40))
        assert_loaded(store.load(), toy)


CHILD = """
import sys
from engine.storage.store import Store
from tests.support.fake_collection import Toy
toy = Toy(int(sys.argv[2]))
with Store.open(sys.argv[1], {"collection": "toy", "dim": None}, free_bytes=0) as store:
    for _ in range(store.version):
        toy.step(30)
    while True:
        store.commit(toy.step(30))
        print(store.version, flush=True)
"""


def test_a_killed_writer_leaves_whole_versions(tmp_path: Path) -> None:
    seed = 11
    rng = random.Random(seed)
    for _ in range(8):
        child = subprocess.Popen(
            [warm_python.executable(), "-c", CHILD, str(tmp_path), str(seed)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert child.stdout is not None
        told = int(child.stdout.readline())
        time.sleep(rng.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        told = max([told, *map(int, child.stdout.read().split("\n")[:-1])])
        child.wait()
        child.stdout.close()
        assert (tmp_path / "unclean").exists()
        with Store.open(tmp_path, free_bytes=0) as store:
            assert store.version >= told, f"{seed=}"
            toy = Toy(seed)
            for _ in range(store.version):
                toy.step(30)
            assert_loaded(store.load(), toy)
        assert not (tmp_path / "unclean").exists()
        assert derived(tmp_path)["members"] == toy.derived()["members"], f"{seed=}"


def test_every_flipped_value_byte_is_detected(tmp_path: Path) -> None:
    toy = Toy(12)
    with Store.open(tmp_path / "good", CONFIG) as store:
        for _ in range(3):
            store.commit(toy.step())
        targets = [
            (table, key, body) for table in schema.TABLES for key, body in list(store.rows(table))[-2:]
        ]
    assert len({table for table, _, _ in targets}) == len(schema.TABLES)
    data = (tmp_path / "good" / "data.mdb").read_bytes()
    rng = random.Random(12)
    for number, (table, key, body) in enumerate(targets):
        value = schema.seal(table, key, body)
        places = list(occurrences(data, key + value))
        assert places, table
        bad = bytearray(data)
        for at in places:  # old versions of a page are on disk too
            bad[at + len(key) + rng.randrange(len(value))] ^= 1 << rng.randrange(8)
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "data.mdb").write_bytes(bad)
        with pytest.raises(CorruptStore, match=f"table {table}, key "):
            walk(folder)
        if table in LOADED:
            with Store.open(folder) as store, pytest.raises(CorruptStore, match=f"table {table}, key "):
                store.load()
        if number % 4 == 0:  # a process each
            (folder / "unclean").touch()
            with pytest.raises(CorruptStore, match="was not closed and is damaged"):
                Store.open(folder)
        shutil.rmtree(folder)


LOADED = {"items", "nodes", "lists", "places", "trees", "clusters", "positions"}


def test_a_lost_row_is_noticed(tmp_path: Path) -> None:
    toy = Toy(16)
    with Store.open(tmp_path, CONFIG) as store:
        store.commit(toy.step())
        entries = len(list(store.rows("members")))
    data = bytearray((tmp_path / "data.mdb").read_bytes())
    for at in occurrences(bytes(data), b"members"):  # the table's record follows its name
        count = at + len("members") + 32
        if int.from_bytes(data[count : count + 8], "little") == entries:
            data[count] += 1
    (tmp_path / "data.mdb").write_bytes(data)
    with pytest.raises(CorruptStore, match=f"table members has {entries} rows, not {entries + 1}"):
        walk(tmp_path)


def occurrences(data: bytes, part: bytes) -> Iterator[int]:
    at = data.find(part)
    while at >= 0:
        yield at
        at = data.find(part, at + 1)


def test_random_damage_gives_the_state_or_an_error_never_another_state(tmp_path: Path) -> None:
    seed, toy = 13, Toy(13)
    rng = random.Random(seed)
    with Store.open(tmp_path / "good", CONFIG) as store:
        for _ in range(6):
            store.commit(toy.step())
    data = (tmp_path / "good" / "data.mdb").read_bytes()
    good = contents(tmp_path / "good")
    caught = 0
    for number in range(30):
        folder = tmp_path / str(number)
        folder.mkdir()
        bad = bytearray(data)
        for _ in range(20):
            bad[rng.randrange(8192, len(bad))] ^= 1 << rng.randrange(8)
        (folder / "data.mdb").write_bytes(bad)
        (folder / "unclean").touch()
        try:
            found = contents(folder)
        except CorruptStore:
            caught += 1
        else:
            assert found == good, f"{seed=} {number=}"
        shutil.rmtree(folder)
    assert caught > 5


FULL = """
import resource, sys
from engine.errors import StoreFull
from engine.storage.store import Store
from tests.support.fake_collection import Toy
toy = Toy(14)
with Store.open(sys.argv[1], {"collection": "toy", "dim": None}, free_bytes=0) as store:
    if sys.argv[2]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
    try:
        while True:
            store.commit(toy.step(200))
    except StoreFull as error:
        print(store.version, error)
    try:
        store.commit(toy.step(1))
    except Exception as error:
        print(type(error).__name__)
"""


def test_a_write_that_the_disk_refuses_keeps_every_version_before(tmp_path: Path) -> None:
    done = run(FULL, tmp_path, 1 << 20)
    assert done.returncode == 0, done.stderr
    first, then = done.stdout.splitlines()
    assert "the disk refused a write" in first
    assert then == "StoreError"  # nothing more is tried
    assert (tmp_path / "unclean").exists()  # and what is there is read before it is used again
    toy = Toy(14)
    for _ in range(int(first.split()[0])):
        toy.step(200)
    with Store.open(tmp_path) as store:
        assert_loaded(store.load(), toy)
        store.commit(toy.step(200))
        assert_loaded(store.load(), toy)


def test_too_little_room_is_said_before_writing(tmp_path: Path) -> None:
    toy = Toy(15)
    with Store.open(tmp_path, CONFIG, free_bytes=1 << 60) as store:
        with pytest.raises(StoreFull, match=r"MB are free on its disk, a commit needs .*make room"):
            store.commit(toy.step())
        assert store.load().version == 0


def test_a_disk_error_has_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreFull, match=r"cannot be written .*Read-only file system"):
        Store.open(tmp_path, CONFIG)


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="not a folder"):
        Store.open(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "data.mdb").write_bytes(b"x" * 8192)
    with pytest.raises(CorruptStore, match="damaged"):
        Store.open(tmp_path / "folder")


def test_lists_come_back_from_their_columns() -> None:
    rng, n = np.random.default_rng(1), 20_000
    lists = Lists(
        np.arange(n),
        rng.integers(-1, 2**47, (n, 16)),
        rng.integers(-(2**28), 2**28, (n, 16)).astype(np.int32),
    )
    rows = schema.seal_rows("lists", schema.u64_keys(lists.ids), schema.list_bodies(lists))
    found = schema.read_lists(*schema.unseal_rows("lists", rows))
    assert np.array_equal(found.neighbors, lists.neighbors)
    assert np.array_equal(found.dots, lists.dots)
