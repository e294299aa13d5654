"""A store after kills, flipped bytes, lost rows, and disks that refuse or fail."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import CorruptStore, StoreError, StoreFull
from engine.storage import schema
from engine.storage.environment import _is_short
from engine.storage.reader import View
from engine.storage.store import Store
from engine.storage.verify import walk
from tests.support import warm_python
from tests.support.fake_collection import ROOT, Toy
from tests.support.stores import CONFIG, assert_loaded, contents, derived, run

pytestmark = pytest.mark.usefixtures("warm")


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
        with store.snapshot() as tables:
            targets = [
                (name, *row) for name, table in tables.raw.items() for row in list(table.cursor())[-2:]
            ]
    assert len({table for table, _, _ in targets}) == len(schema.TABLES)
    data = (tmp_path / "good" / "data.mdb").read_bytes()
    rng = random.Random(12)
    for number, (table, key, value) in enumerate(targets):
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


OPEN = """
import sys
from engine.errors import CorruptStore
from engine.storage.reader import View
from engine.storage.store import Store
for look in View.open, Store.open:
    try:
        look(sys.argv[1]).close()
    except CorruptStore as error:
        print(error)
"""


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    """Neither sealed nor marked as open, so that nobody has read it before it is mapped."""
    toy = Toy(17)
    with Store.open(tmp_path, CONFIG) as store:
        for _ in range(4):
            store.commit(toy.step())
    (tmp_path / "closed").unlink()
    os.truncate(tmp_path / "data.mdb", int(share * (tmp_path / "data.mdb").stat().st_size))
    done = run(OPEN, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    told = f"{tmp_path} is damaged: the end of data.mdb is missing; restore a backup"
    assert done.stdout.splitlines() == [told, told]


def test_a_file_that_ends_before_free_pages_is_whole(tmp_path: Path) -> None:
    """LMDB does not write a page that the transaction which added it to the file has freed again."""
    toy = Toy(18)
    with Store.open(tmp_path, CONFIG) as store:
        store.commit(toy.step())
        sources = [f"source {number}" for number in range(3000)]
        rows = [(source, b"x" * 90) for source in sources]
        store.environment.write(lambda tables: tables.positions.put_all(rows))
        store.environment.write(lambda tables: tables.positions.delete_all(sources))
        for _ in range(3):
            store.commit(toy.step(1))
    (tmp_path / "closed").unlink()
    os.truncate(tmp_path / "data.mdb", (tmp_path / "data.mdb").stat().st_size - 4096)
    assert _is_short(tmp_path / "data.mdb")
    with View.open(tmp_path) as view:
        assert view.version == toy.version
    (tmp_path / "unclean").touch()
    with Store.open(tmp_path) as store:
        assert_loaded(store.load(), toy)
        store.commit(toy.step())
        assert_loaded(store.load(), toy)


@pytest.mark.parametrize("remaining", ["closed", "lock.mdb", "index-3.hnsw", "derived-3.npz"])
def test_a_store_that_lost_its_file_is_no_new_store(tmp_path: Path, remaining: str) -> None:
    (tmp_path / remaining).touch()
    words = f"it has lost its data.mdb, {remaining} is still there; restore a backup, or delete the folder"
    for look in Store.open, View.open:
        with pytest.raises(CorruptStore, match=words):
            look(tmp_path)
    assert not (tmp_path / "data.mdb").exists()


def test_a_writer_that_was_stopped_before_it_made_the_file_left_a_new_store(tmp_path: Path) -> None:
    for name in ("writer", "unclean", "data.new"):
        (tmp_path / name).touch()
    Store.open(tmp_path).close()
