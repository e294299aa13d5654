"""The types of the whole project, as `make check` checks them; here beside other tests."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT, environment

OLD = sys.version_info < (3, 11)


@pytest.mark.skipif(OLD, reason="NumPy's types for Python 3.10 are older than the code is written against")
def test_mypy_finds_nothing() -> None:
    command = [sys.executable, "-m", "mypy"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
