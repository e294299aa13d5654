"""Backups: made beside a writer, known to be good, never half there; and put back as a whole."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import lmdb
import orjson
import pytest

from engine.errors import CorruptStore, InputError, NoStore, StoreFull, StoreLocked
from engine.storage import backup, schema
from engine.storage.backup import back_up, restore, verify
from engine.storage.environment import Environment
from engine.storage.store import Store
from engine.storage.verify import walk
from engine.system import files
from tests.conftest import ROOT, Run
from tests.support import warm_python
from tests.support.fake_collection import CONFIG, Toy
from tests.support.stores import contents

pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of four versions."""
    toy = Toy(3)
    with Store.open(tmp_path / "store", CONFIG, free_bytes=0) as store:
        for _ in range(4):
            store.commit(toy.step(30))
    return tmp_path / "store"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_backup_is_restored_to_the_bit(path: Path, tmp_path: Path) -> None:
    made = back_up(path, tmp_path / "copies" / "monday")
    assert (made.collection, made.version) == ("toy", 4)
    assert names_in(tmp_path / "copies") == ["monday"]
    assert names_in(tmp_path / "copies" / "monday") == ["backup.json", "closed", "data.mdb"]
    assert verify(tmp_path / "copies" / "monday") == made
    back = restore(tmp_path / "copies" / "monday", tmp_path / "again")
    assert (back.backup, back.aside) == (made, None)
    assert contents(tmp_path / "again") == contents(path)
    assert names_in(tmp_path) == ["again", "copies", "store"]


def test_a_backup_replaces_a_store_that_lost_its_file(path: Path, tmp_path: Path) -> None:
    whole = contents(path)
    back_up(path, tmp_path / "copy")
    (path / "data.mdb").unlink()
    with pytest.raises(CorruptStore, match=r"has lost its data\.mdb"):
        back_up(path, tmp_path / "other")
    back = restore(tmp_path / "copy", path, force=True)
    assert back.aside is not None
    assert contents(path) == whole


WRITER = """
import sys
from engine.storage.store import Store
from tests.support.fake_collection import Toy
toy = Toy(3)
with Store.open(sys.argv[1], {"collection": "toy", "dim": None}, free_bytes=0) as store:
    while True:
        store.commit(toy.step(30))
        print(store.version, flush=True)
"""


def test_a_backup_while_a_writer_runs_is_one_version(tmp_path: Path) -> None:
    path = tmp_path / "store"
    command = [warm_python.executable(), "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
        assert writer.stdout is not None
        while int(writer.stdout.readline()) < 20:
            pass
        made = []
        for at in range(3):
            made.append(back_up(path, tmp_path / f"copy {at}"))
            while int(writer.stdout.readline()) <= made[-1].version:
                pass
        writer.kill()
    assert 20 <= made[0].version < made[1].version < made[2].version
    for at, one in enumerate(made):
        toy, world = Toy(3), tmp_path / "world" / str(at)
        with Store.open(world, CONFIG, free_bytes=0) as store:
            for _ in range(one.version):
                store.commit(toy.step(30))
        restore(tmp_path / f"copy {at}", tmp_path / f"back {at}")
        mine, theirs = contents(tmp_path / f"back {at}"), contents(world)
        assert {table: rows for table, rows in mine.items() if table != "meta"} == {
            table: rows for table, rows in theirs.items() if table != "meta"
        }
    # What the killed writer left is still a store, and can be backed up too.
    assert back_up(path, tmp_path / "after").version >= made[-1].version


def later(count: int) -> object:
    toy = Toy(3)
    return [toy.step(30) for _ in range(count)][-1]


def test_what_is_there_already_is_left_alone(path: Path, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(InputError, match="exists already; name a folder that does not"):
        back_up(path, tmp_path / "target")
    with pytest.raises(NoStore, match="there is no store in"):
        back_up(tmp_path / "target", tmp_path / "copy")
    back_up(path, tmp_path / "copy")
    with pytest.raises(InputError, match=r"is not empty; .*--force"):
        restore(tmp_path / "copy", path)
    with pytest.raises(InputError, match=r"is no backup: it has no backup\.json"):
        restore(path, tmp_path / "again")
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"file is no backup: it has no backup\.json"):
        restore(tmp_path / "file", tmp_path / "again")
    for force in False, True:
        with pytest.raises(InputError, match="file is no folder; name another place"):
            restore(tmp_path / "copy", tmp_path / "file", force)
    assert (tmp_path / "file").read_bytes() == b"mine"
    (tmp_path / "file").unlink()
    assert names_in(tmp_path) == ["copy", "store", "target"]
    restore(tmp_path / "copy", tmp_path / "target")  # an empty folder is no store


def test_no_copy_lies_in_what_it_is_a_copy_of(path: Path, tmp_path: Path) -> None:
    before = names_in(path)
    for target in path / "inside", path / "deep" / "inside":
        with pytest.raises(InputError, match=r"lies in .*store, which is copied; name a place outside"):
            back_up(path, target)
    assert names_in(path) == before
    back_up(path, tmp_path / "copy")
    for place in tmp_path / "copy", tmp_path / "copy" / "inside":
        with pytest.raises(InputError, match=r"lies in .*copy, which is copied"):
            restore(tmp_path / "copy", place, force=True)
    assert names_in(tmp_path) == ["copy", "store"]


def test_force_moves_a_store_aside_unless_somebody_writes_it(path: Path, tmp_path: Path) -> None:
    back_up(path, tmp_path / "copy")
    with Store.open(path) as store:
        store.commit(later(5))
        with pytest.raises(StoreLocked, match="is being written by process"):
            restore(tmp_path / "copy", path, force=True)
        assert store.version == 5
    newer = contents(path)
    made = restore(tmp_path / "copy", path, force=True)
    assert made.aside is not None
    assert contents(made.aside) == newer
    with Store.open(path) as store:
        assert store.version == 4


def test_force_moves_no_other_folder_aside(path: Path, tmp_path: Path) -> None:
    back_up(path, tmp_path / "copy")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="docs is not empty and holds no store; name another place"):
        restore(tmp_path / "copy", tmp_path / "docs", force=True)
    assert names_in(tmp_path / "docs") == ["thesis.txt"]
    assert names_in(tmp_path) == ["copy", "docs", "store"]


def test_what_is_no_lack_of_room_is_not_called_so(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(path, tmp_path / "copy")
    (path / "writer").unlink()

    def refuse(*_: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(backup.os, "rename", refuse)
    with pytest.raises(StoreFull, match=r"busy\); fix the cause, then run it again"):
        restore(tmp_path / "copy", path, force=True)
    assert not (path / "writer").exists()


def test_damage_found_while_copying_is_the_stores(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: Any) -> None:
        raise lmdb.CorruptedError("mdb_env_copy3", -30796)

    monkeypatch.setattr(Environment, "copy", damaged)
    with pytest.raises(CorruptStore, match=r"store is damaged .*mdb_env_copy3.*\); restore a backup"):
        backup.copy(str(path), str(tmp_path / "copy"))


@pytest.mark.parametrize("file", ["data.mdb", "backup.json"])
def test_a_damaged_backup_is_never_restored(path: Path, tmp_path: Path, file: str) -> None:
    back_up(path, tmp_path / "copy")
    raw = bytearray((tmp_path / "copy" / file).read_bytes())
    raw[len(raw) // 3] ^= 0x20
    (tmp_path / "copy" / file).write_bytes(raw)
    before = contents(path)
    with pytest.raises((CorruptStore, InputError), match=r"use another|backup"):
        restore(tmp_path / "copy", path, force=True)
    assert contents(path) == before
    assert names_in(tmp_path) == ["copy", "store"]


def test_a_byte_that_nobody_reads_counts_too(path: Path, tmp_path: Path) -> None:
    """The digest is of the whole file, unused space and all."""
    back_up(path, tmp_path / "copy")
    file = tmp_path / "copy" / "data.mdb"
    raw = bytearray(file.read_bytes())
    raw[raw.index(bytes(200), 8192) + 100] ^= 1
    file.write_bytes(raw)
    walk(file.parent)  # which finds nothing
    with pytest.raises(CorruptStore, match=r"data\.mdb is not what was written; use another backup"):
        restore(file.parent, tmp_path / "again")


def test_a_damaged_store_is_not_backed_up(path: Path, tmp_path: Path) -> None:
    raw = bytearray((path / "data.mdb").read_bytes())
    for at in range(8192, len(raw), 997):
        raw[at] ^= 0xFF
    (path / "data.mdb").write_bytes(raw)
    with pytest.raises(CorruptStore):
        back_up(path, tmp_path / "copy")
    assert names_in(tmp_path) == ["store"]


@pytest.mark.parametrize("step", ["copy", "manifest", "name"])
def test_a_backup_that_fails_leaves_nothing(
    path: Path, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    if step == "copy":
        monkeypatch.setattr(backup, "_call", refuse)
    elif step == "manifest":
        monkeypatch.setattr(backup.files, "sync", refuse)
    else:
        monkeypatch.setattr(backup.files, "put_in_place", refuse)
    with pytest.raises(StoreFull, match=r"No space left on device; .* make room, then run it again"):
        back_up(path, tmp_path / "copy")
    assert names_in(tmp_path) == ["store"]


def test_a_restore_that_fails_leaves_the_store(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(path, tmp_path / "copy")
    before = contents(path)
    real = files.put_in_place

    def refuse(temporary: Path, goal: Path) -> None:
        if goal == path:
            raise OSError(28, os.strerror(28))
        real(temporary, goal)

    monkeypatch.setattr(backup.files, "put_in_place", refuse)
    with pytest.raises(StoreFull):
        restore(tmp_path / "copy", path, force=True)
    assert contents(path) == before
    assert names_in(tmp_path) == ["copy", "store"]


def test_a_backup_of_another_format_is_refused(path: Path, tmp_path: Path) -> None:
    back_up(path, tmp_path / "copy")
    manifest = tmp_path / "copy" / "backup.json"
    manifest.write_bytes(orjson.dumps(orjson.loads(manifest.read_bytes()) | {"format": 9}))
    with pytest.raises(Exception, match=f"has format 9, this release reads {schema.FORMAT}; use the"):
        restore(tmp_path / "copy", tmp_path / "again")


def test_the_commands(shoal: Run, path: Path, tmp_path: Path) -> None:
    done = shoal("backup", "copy", "--store", path)
    assert done.returncode == 0, done.stderr
    assert "version 4 of toy" in done.stdout
    assert shoal("backup", "copy", "--store", path).returncode == 3
    done = shoal("restore", "copy", "--store", path)
    assert done.returncode == 3
    assert "--force" in done.stderr
    done = shoal("restore", "copy", "--store", path, "--force", "--json")
    answer = orjson.loads(done.stdout)
    assert (answer["version"], Path(answer["aside"]).parent) == (4, tmp_path)
    shutil.rmtree(path)
    assert shoal("backup", "other", "--store", path).returncode == 5
