"""Compiled kernels find a place, or do without, where installation and home folder are read-only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment

COMPUTE = """
import sys
sys.path.insert(0, sys.argv[1])
from engine.vectors import quantize
from engine.system import kernel_cache
kernel_cache.report()
kernel_cache.report()
print(quantize([[3.0, 4.0]])[0].tolist())
"""
READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Path]:
    """A copy without caches, and with a home folder, that `compute` cannot write."""
    folder = tmp_path / "installation"
    skip = shutil.ignore_patterns("__pycache__", "static", "guide", "pretrained", "deploy")
    shutil.copytree(ROOT / "engine", folder / "engine", ignore=skip)
    (folder / "home").mkdir()
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    yield folder
    for path in folders:
        path.chmod(0o755)


def compute(installation: Path, tmp: Path) -> subprocess.CompletedProcess[str]:
    env = environment(
        {"HOME": str(installation / "home"), "TMPDIR": str(tmp), "PYTHONDONTWRITEBYTECODE": "1"}
    )
    env = {name: value for name, value in env.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    command = [sys.executable, "-c", COMPUTE, str(installation)]
    if os.geteuid() == 0:  # permissions do not hold root back, a mount does
        command = ["unshare", "--mount", "sh", "-c", READ_ONLY, str(installation), *command]
    env.pop("PYTHONPATH")
    return subprocess.run(command, cwd=tmp, env=env, capture_output=True, text=True, check=False)


def test_a_folder_of_its_own_takes_the_kernels(installation: Path, tmp_path: Path) -> None:
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    own = tmp / f"shoal-kernels-{os.getuid()}"
    done = compute(installation, tmp)
    assert (done.returncode, done.stdout) == (0, "[[9830, 13107]]\n"), done.stderr
    assert done.stderr.count("compiled kernels have no lasting place") == 1
    assert f"cached in {own} until" in done.stderr
    assert own.stat().st_mode & 0o777 == 0o700
    assert list(own.rglob("*.nbc"))


def test_a_folder_that_others_can_write_is_not_trusted(installation: Path, tmp_path: Path) -> None:
    """What numba finds in its cache it unpickles."""
    tmp = tmp_path / "tmp"
    own = tmp / f"shoal-kernels-{os.getuid()}"
    own.mkdir(parents=True)
    own.chmod(0o777)
    done = compute(installation, tmp)
    assert (done.returncode, done.stdout) == (0, "[[9830, 13107]]\n"), done.stderr
    assert done.stderr.count("every process compiles them") == 1
    assert not list(own.rglob("*"))
