"""A disk that is really full: a tmpfs of a few megabytes, mounted in a namespace of its own.

As root, or where unprivileged user namespaces are allowed; elsewhere these tests fail and say so. All stories
are told in one process in that namespace, so nothing is left mounted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import ShoalError
from tests.conftest import ROOT, environment

MEGABYTE = 1 << 20
DIM, BATCH = 64, 100
BATCHES, MORE = 60, 8  # more than there is room for; when there is
TELL = """
import sys
from tests.faults.test_nospace import tell
tell(sys.argv[1], sys.argv[2])
"""


def settings_of(path: Path, kind: str = "exact", free_min: int = 0) -> Any:
    from engine.config import Settings

    return Settings.model_validate(
        {
            "store": {"path": path},
            "index": {"kind": kind},
            "model": {"tau": 0.3},
            "limits": {"free_disk_min_bytes": free_min, "snapshot_items": 300},
        }
    )


def draw(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(size=(40, DIM))
    return centres[rng.integers(40, size=count)] + 0.1 * rng.normal(size=(count, DIM))


def opened(path: Path, **how: Any) -> Any:
    from engine.collection.collection import Engine
    from tests.support.random_models import random_model

    return Engine.open(settings_of(path, **how), random_model(7), lambda: 5.0)


def feed(engine: Any, until: int) -> None:
    """Batches from where it is."""
    for at in range(engine.version, until):
        engine.upsert([f"k{i}" for i in range(at * BATCH, at * BATCH + BATCH)], draw(at, BATCH))


def labels(engine: Any) -> dict[str, int]:
    keys, clusters = engine.labels()
    return dict(zip(keys, clusters.tolist(), strict=True))


def caught(work: Callable[[], Any]) -> dict[str, Any]:
    try:
        work()
    except ShoalError as problem:
        return {"error": type(problem).__name__, "code": problem.exit_code, "sentence": str(problem)}
    return {}


def fill_up(disk: Path, leave: int) -> Path:
    """So that only so many bytes are free."""
    filler = disk / "filler"
    filler.write_bytes(b"x" * max(0, shutil.disk_usage(disk).free - leave))
    return filler


# --- stories, told on the small disk ------------------------------------------------------------


def ingest(disk: Path, other: Path) -> dict[str, Any]:
    """Batches until the disk is full; then it is made larger, and some more."""
    path, told = disk / "store", {}
    engine = opened(path)
    told["full"] = caught(lambda: feed(engine, BATCHES))
    told["version"] = version = engine.version
    told["again"] = caught(lambda: feed(engine, BATCHES))
    engine.close()
    told["reopened"] = caught(lambda: opened(path).close())
    subprocess.run(["mount", "-o", "remount,size=96m", str(disk)], check=True)
    with opened(other / "steady") as steady:
        feed(steady, version)
        with opened(path) as engine:
            told["kept"] = engine.version == version and labels(engine) == labels(steady)
            feed(engine, version + MORE)
            feed(steady, version + MORE)
            told["same"] = labels(engine) == labels(steady)
    return told


def too_little(disk: Path, other: Path) -> dict[str, Any]:
    """The bound on free space speaks before the disk does."""
    with opened(disk / "store", free_min=64 * MEGABYTE) as engine:
        told = caught(lambda: feed(engine, 1))
        return {**told, "version": engine.version}


def copies(disk: Path, other: Path) -> dict[str, Any]:
    """Backups and restores to a full disk leave nothing, and what was there is as it was."""
    from engine.storage.backup import back_up, restore

    with opened(other / "store") as engine:
        feed(engine, 30)
    back_up(other / "store", other / "copy")
    fill_up(disk, MEGABYTE)
    told = {
        "backup": caught(lambda: back_up(other / "store", disk / "copy")),
        "restore": caught(lambda: restore(other / "copy", disk / "store")),
    }
    return {**told, "left": sorted(os.listdir(disk))}


def compaction(disk: Path, other: Path) -> dict[str, Any]:
    """Refused before it starts, and, were there room by all accounts, given up on the way."""
    from engine.storage import store

    with opened(disk / "store") as engine:
        feed(engine, 4)
        fill_up(disk, MEGABYTE // 4)
        before = labels(engine)
        told = {"refused": caught(engine.compact)}
        real = shutil.disk_usage
        store.shutil.disk_usage = lambda path: real("/")._replace(free=1 << 40)  # type: ignore[attr-defined]
        told["given up"] = caught(engine.compact)
        store.shutil.disk_usage = real  # type: ignore[attr-defined]
        told["same"] = labels(engine) == before
        told["left"] = sorted(path.name for path in (disk / "store").iterdir())
    (disk / "filler").unlink()
    with opened(disk / "store") as engine:
        told["kept"] = labels(engine) == before
        engine.compact()
        feed(engine, 6)
    return told


def snapshots(disk: Path, other: Path) -> dict[str, Any]:
    """No room for snapshots: what is durable stays so, and no half of one is left."""
    path = disk / "store"
    engine = opened(path, kind="hnsw")
    feed(engine, 4)
    fill_up(disk, MEGABYTE // 8)
    engine.upsert(["one more"], draw(99, 1))
    engine.save()
    before = labels(engine)
    engine.close()
    told: dict[str, Any] = {"left": [name for name in os.listdir(path) if "saving" in name]}
    manifests = {Path(name).stem for name in os.listdir(path) if name.endswith(".json")}
    told["orphans"] = [
        name
        for name in os.listdir(path)
        if name.startswith(("index-", "derived-")) and Path(name).stem not in manifests
    ]
    with opened(path, kind="hnsw") as engine:
        told["same"] = labels(engine) == before
    return told


STORIES: dict[str, tuple[Callable[[Path, Path], dict[str, Any]], int]] = {
    "ingest": (ingest, 6),
    "too little": (too_little, 16),
    "copies": (copies, 3),
    "compaction": (compaction, 12),
    "snapshots": (snapshots, 6),
}


def tell(folder: str, mount: str) -> None:
    """In the namespace: each story on a disk of its own."""
    told: dict[str, Any] = {}
    for name, (story, megabytes) in STORIES.items():
        disk, other = Path(mount) / name, Path(folder) / name
        disk.mkdir()
        other.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(disk)], check=True)
        try:
            told[name] = story(disk, other)
        except BaseException:
            told[name] = {"bug": traceback.format_exc()}
    print(json.dumps(told))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, mount = tmp_path_factory.mktemp("other"), tmp_path_factory.mktemp("disk")
    alone = (
        ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    )
    command = [*alone, sys.executable, "-c", TELL, str(folder), str(mount)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), check=False)
    assert done.returncode == 0, f"no tmpfs can be mounted here: {done.stderr[-2000:]}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def story(told: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = told[request.node.name.removeprefix("test_").replace("_", " ")]
    assert "bug" not in found, found["bug"]
    return found


def assert_full(problem: dict[str, Any]) -> None:
    assert (problem.get("error"), problem.get("code")) == ("StoreFull", 7), problem
    assert "make room" in problem["sentence"]
    assert "\n" not in problem["sentence"]


def test_ingest(story: dict[str, Any]) -> None:
    assert_full(story["full"])
    assert 0 < story["version"] < BATCHES
    assert story["again"]["error"] == "StoreError"
    assert "open" in story["again"]["sentence"]
    assert story["kept"], "every version before the full disk is there, to the last label"
    assert story["same"], "and goes on as if nothing had been"


def test_too_little(story: dict[str, Any]) -> None:
    assert_full(story)
    assert story["version"] == 0


def test_copies(story: dict[str, Any]) -> None:
    assert_full(story["backup"])
    assert_full(story["restore"])
    assert story["left"] == ["filler"]


def test_compaction(story: dict[str, Any]) -> None:
    assert_full(story["refused"])
    assert_full(story["given up"])
    assert "compacting" not in story["left"]
    assert story["same"]
    assert story["kept"]


def test_snapshots(story: dict[str, Any]) -> None:
    assert story == {"left": [], "orphans": [], "same": True}
