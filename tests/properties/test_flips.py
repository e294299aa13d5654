"""A flipped bit in any file of a store: the same answers as before, or one sentence and its exit code.

One other process looks at all of them, in one store after the other, as queries, `check` and the next writer
do. It has to live to the end: what may crash on a broken page or graph does so elsewhere.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import errors
from tests.conftest import ROOT, environment
from tests.support import warm_python

NORMAL = {"closed": 8, "killed": 12}
LONG = {"closed": 80, "killed": 120}
NAMES = [f"k{i}" for i in range(160)]

MAKE = """
import sys
from tests.properties.test_flips import make
make(sys.argv[1])
"""
LOOK = """
import sys
from tests.properties.test_flips import look_at_all
look_at_all(sys.argv[1:])
"""


def settings_of(path: str | Path) -> Any:
    from engine.config import Settings

    return Settings.model_validate(
        {"store": {"path": path}, "model": {"tau": 0.3}, "limits": {"free_disk_min_bytes": 0}}
    )


def draw(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(size=(12, 8))
    return centres[rng.integers(12, size=count)] + 0.1 * rng.normal(size=(count, 8))


def make(path: str) -> None:
    """A store with a history, snapshots of two versions, and a backup of it."""
    from engine.collection.collection import Engine
    from engine.storage.backup import back_up
    from tests.support.random_models import random_model

    with Engine.open(settings_of(path), random_model(7), lambda: 5.0) as engine:
        for at in range(6):
            engine.upsert(NAMES[20 * at : 20 * at + 60], draw(at, len(NAMES[20 * at : 20 * at + 60])))
            engine.delete(NAMES[at : at + 30 : 9])
        engine.save()
        engine.upsert(NAMES[:9], draw(70, 9))
    back_up(Path(path), Path(path + ".backup"))


def answers(path: str) -> dict[str, Any]:
    """All that queries tell of a store."""
    from engine.errors import NotFound
    from engine.storage.reader import View

    with View.open(path) as view:
        items: dict[str, Any] = {}
        for name in NAMES:
            try:
                items[name] = view.item(name)
            except NotFound:
                items[name] = None
        clusters = view.clusters(order="id", limit=1_000)["clusters"]
        members = [view.members(cluster["cluster"])["items"] for cluster in clusters]
        changes = view.changes(limit=10_000)["changes"]
        return {"items": items, "clusters": clusters, "members": members, "changes": changes}


def written(path: str) -> dict[str, Any]:
    """What the next writer makes of it: with a batch more, and opened once again."""
    from engine.collection.collection import Engine
    from tests.support.random_models import random_model

    with Engine.open(settings_of(path), random_model(7), lambda: 6.0) as engine:
        engine.upsert([f"new {i}" for i in range(30)], draw(90, 30))
        engine.delete(NAMES[50:70])
    with Engine.open(settings_of(path), random_model(7), lambda: 6.0) as engine:
        keys, clusters = engine.labels()
        return {"version": engine.version, "labels": sorted(zip(keys, clusters.tolist(), strict=True))}


def checked(path: str) -> dict[str, Any]:
    from engine.collection.check import check

    report = check(settings_of(path), 0)
    return {"findings": report.findings}


def restored(path: str) -> dict[str, Any]:
    from engine.storage.backup import restore

    restore(Path(path + ".backup"), Path(path + ".restored"))
    return answers(path + ".restored")


def look_at_all(paths: list[str]) -> None:
    """A line for each store: what came of each question."""
    for path in paths:
        told = {}
        for question in (answers, checked, restored, written):
            try:
                told[question.__name__] = question(path)
            except errors.ShoalError as problem:
                told[question.__name__] = {
                    "error": type(problem).__name__, "code": problem.exit_code, "sentence": str(problem)
                }  # fmt: skip
        print(json.dumps(told), flush=True)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    run(MAKE, folder / "store")
    return folder


def run(script: str, *arguments: Path) -> str:
    command = [warm_python.executable(), "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), check=False)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout


def flip(folder: Path, file: str, rng: random.Random) -> str:
    raw = bytearray((folder / file).read_bytes())
    at, bit = rng.randrange(len(raw)), rng.randrange(8)
    raw[at] ^= 1 << bit
    (folder / file).write_bytes(raw)
    return f"{file}, byte {at:,}, bit {bit}"


def files_of(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.stat().st_size
    )


@pytest.mark.parametrize("state", ["closed", "killed"])
def test_a_flipped_bit_never_gives_a_wrong_answer(
    good: Path, tmp_path: Path, state: str, request: pytest.FixtureRequest
) -> None:
    """`killed`: no writer has closed it, so nothing vouches for the file as a whole."""
    seed, long = 40, request.config.getoption("--long")
    count = (LONG if long else NORMAL)[state]
    rng = random.Random(f"{seed} {state}")
    print(f"{seed=} {state=}")
    files, flips, paths = files_of(good), [], []
    for number in range(count + 1):
        folder = tmp_path / str(number)
        shutil.copytree(good, folder)
        if state == "killed":
            (folder / "store" / "closed").unlink()
            (folder / "store" / "unclean").touch()
        if number:
            file = files[number % len(files)] if number % 3 else "store/data.mdb"
            if not (folder / file).exists():
                file = "store/data.mdb"
            flips.append(flip(folder, file, rng))
        paths.append(folder / "store")
    first, *rest = (json.loads(line) for line in run(LOOK, *paths).splitlines())
    assert first["checked"]["findings"] == []
    assert not any("error" in told for told in first.values()), first
    caught = sum(judge(told, first, where) for told, where in zip(rest, flips, strict=True))
    assert len(rest) == count
    print(f"{caught} of {count} told of")
    assert caught > count // 4


def separators(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The keys of branch pages and where they stand; LMDB's layout, pages of 4,096 bytes."""
    for page in range(0, len(data), 4096):
        flags, lower = struct.unpack_from("<HH", data, page + 10)
        if flags == 1:
            for (node,) in struct.iter_unpack("<H", data[page + 18 : page + lower]):  # the first has no key
                (size,) = struct.unpack_from("<H", data, page + node + 6)
                yield page + node + 8, bytes(data[page + node + 8 : page + node + 8 + size])


def test_a_page_that_leads_astray_is_noticed_by_readers_too(tmp_path: Path) -> None:
    """Values have checksums, the pages above them have none; here one of these sends searches elsewhere."""
    from engine.errors import CorruptStore
    from engine.storage.reader import View
    from engine.storage.store import Store
    from tests.support.fake_collection import Toy

    toy = Toy(5)
    with Store.open(tmp_path, {"collection": "toy", "dim": None}, free_bytes=0) as store:
        for _ in range(6):
            store.commit(toy.step(150))
        store.compact()
        names = {key for key, _ in store.rows("keys")}
    data = bytearray((tmp_path / "data.mdb").read_bytes())
    at = next(at for at, key in separators(data) if key in names)
    data[at] ^= 0x10
    (tmp_path / "data.mdb").write_bytes(data)
    with pytest.raises(CorruptStore, match="is not what was written"):
        View.open(tmp_path)
    (tmp_path / "closed").unlink()
    (tmp_path / "unclean").touch()
    (tmp_path / "writer").write_text("process 999999999 (killed)")
    for look in View.open, Store.open:
        with pytest.raises(CorruptStore, match=r"is in a wrong place|out of order|is damaged"):
            look(tmp_path)


def judge(told: dict[str, Any], good: dict[str, Any], where: str) -> bool:
    """Whether it was told of; a wrong answer, and an error without words, are none of both."""
    caught = bool(told["checked"].get("findings"))
    for question, answer in told.items():
        if "error" in answer:
            kind = getattr(errors, answer["error"])
            assert answer["code"] == kind.exit_code > 1, f"{question} after {where}: {answer}"
            assert answer["sentence"].count("\n") == 0, f"{question} after {where}: {answer}"
            assert any(word in answer["sentence"] for word in WORDS), f"{question} after {where}: {answer}"
            caught = True
        elif question != "checked":
            assert answer == good[question], f"{question} after {where}"
    if where.startswith("store/data.mdb") and "error" not in told["answers"]:
        assert told["written"] == good["written"] or "error" in told["written"]
    return caught


WORDS = ("restore", "rebuild", "use another", "use the release", "name another", "make room", "set it back")
