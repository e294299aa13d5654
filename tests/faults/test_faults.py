"""Stories of faults and kills at random moments, and the disk that they are told with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.broker import Broker, Given
from tests.conftest import ROOT, environment
from tests.faults import disk
from tests.support import warm_python


def run(module: str, *arguments: object, python: str = sys.executable, **extra: str) -> str:
    done = subprocess.run(
        [python, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=environment(extra),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_stories_of_faults_end_as_undisturbed(tmp_path: Path, long: bool) -> None:
    out = tmp_path / "simulation.jsonl"
    first, seeds = (0, 1000) if long else (18, 8)  # few that have faults of all kinds
    which = ("--first", first, "--seeds", seeds, "--out", out)
    run("tests.faults.simulate", *which)
    assert [line["seed"] for line in lines(out)] == list(range(first, first + seeds))
    struck = sum((Counter(line["struck"]) for line in lines(out)), Counter[str]())
    at_operations = {name for name in disk.KINDS if struck[f"{name} at operation"]}
    assert at_operations == set(disk.KINDS), struck
    assert sum(1 for fault in struck if not fault.endswith("operation")) >= 5, struck
    before = out.read_bytes()
    assert f"{seeds} seeds, 0 of them now; 0 failed" in run("tests.faults.simulate", *which)
    assert out.read_bytes() == before


def test_kills_change_nothing(tmp_path: Path, long: bool) -> None:
    out, kills = tmp_path / "kills.jsonl", 100 if long else 3
    run("tests.faults.kills", "--step-store", kills, "--out", out, python=warm_python.executable())
    assert [line["seed"] for line in lines(out)] == list(range(kills))
    assert any(0 < line["killed_at"] < line["versions"] for line in lines(out)), lines(out)


def test_kills_of_the_daemon_change_nothing(tmp_path: Path, long: bool, broker: Broker | Given) -> None:
    out, kills = tmp_path / "kills.jsonl", 30 if long else 2
    which = ["--daemon", kills, "--out", out]
    if not long:  # parts of a daemon start warm, so the next kill may come sooner
        which += ["--python", warm_python.executable(), "--within", 4]
    run("tests.faults.kills", *which, python=warm_python.executable(), KAFKA_BOOTSTRAP=broker.bootstrap)
    assert sum(len(line["kills"]) for line in lines(out)) == kills


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return disk.compile_into(tmp_path_factory.mktemp("disk"))


def on_disk(library: Path, folder: Path, at: int, kind: str, work: str, seed: int = 1) -> str:
    """Runs `work`, in which `path` is a file in the folder, and strikes; returns what it printed."""
    folder.mkdir(exist_ok=True)
    script = f"""
import os
from pathlib import Path
from tests.faults.disk import Disk
disk, folder = Disk(), Path({str(folder)!r})
path = folder / "file"
disk.watch(folder)
disk.strike({at}, {kind!r}, {seed})
{textwrap.dedent(work)}
print("reached the end after", disk.operations)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment(), "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -9), done.stderr
    return done.stdout


WRITES = """
    with open(path, "wb", buffering=0) as file:  # operation 1
        file.write(b"first")  # 2
        os.fsync(file)  # 3
        file.write(b" second")  # 4
        file.write(b" third")  # 5
        os.fsync(file)  # 6
    os.replace(path, folder / "other")  # 7
    (folder / "last").touch()  # 8
"""


def test_a_disk_that_is_left_alone_counts(library: Path, tmp_path: Path) -> None:
    assert on_disk(library, tmp_path / "d", 9, disk.KILL, WRITES) == "reached the end after 8\n"
    assert (tmp_path / "d/other").read_bytes() == b"first second third"


def test_a_kill_keeps_what_was_written(library: Path, tmp_path: Path) -> None:
    assert not on_disk(library, tmp_path / "d", 5, disk.KILL, WRITES)
    assert (tmp_path / "d/file").read_bytes() == b"first second"


def test_power_loss_keeps_what_was_synced_and_anything_of_the_rest(library: Path, tmp_path: Path) -> None:
    found = set()
    for seed in range(30):
        folder = tmp_path / str(seed)
        assert not on_disk(library, folder, 6, disk.POWER, WRITES, seed)
        found.add((folder / "file").read_bytes())
    nothing = b"\0" * len(" second")
    assert found == {b"first", b"first second", b"first second third", b"first" + nothing + b" third"}


def test_power_loss_takes_the_last_names_first(library: Path, tmp_path: Path) -> None:
    found = set()
    for seed in range(30):
        folder = tmp_path / str(seed)
        assert not on_disk(library, folder, 9, disk.POWER, WRITES + "    (folder / 'x').touch()\n", seed)
        found.add(tuple(sorted(os.listdir(folder))))
        assert not list(tmp_path.glob("*.kept.*"))
    assert found == {("file",), ("other",), ("last", "other")}


@pytest.mark.parametrize(
    ("kind", "words", "after"),
    [
        (disk.EIO, "[Errno 5]", b"first third"),
        (disk.DEAD, "[Errno 5]", b"first"),
        (disk.FULL, "[Errno 28]", b"first"),
    ],
)
def test_a_disk_that_refuses(library: Path, tmp_path: Path, kind: str, words: str, after: bytes) -> None:
    work = """
    file = open(path, "wb", buffering=0)
    file.write(b"first")
    for piece in (b" second", b" third"):
        try:
            file.write(piece)
        except OSError as error:
            print(error)
    """
    said = on_disk(library, tmp_path / "d", 3, kind, work)
    assert said.count(words) == (1 if kind == disk.EIO else 2)
    assert (tmp_path / "d/file").read_bytes() == after
