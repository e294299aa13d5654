"""Nothing is imported from the current folder, whichever command starts there and whatever it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.system import isolation
from tests.conftest import Run

PLANTED = ("lmdb", "queue", "random", "uuid", "shutil", "orjson", "numpy", "xxhash")
HARM = 'import sys\nsys.stderr.write("planted code ran\\n")\nsys.exit(99)\n'


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder full of modules that end whoever imports them."""
    for name in PLANTED:
        (tmp_path / f"{name}.py").write_text(HARM)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plant_package(folder: Path) -> None:
    """`python -m engine` itself would run this one; children must not."""
    (folder / "engine").mkdir()
    (folder / "engine" / "__init__.py").write_text(HARM)


def test_a_child_imports_nothing_from_the_current_folder(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_package(planted)
    monkeypatch.syspath_prepend("")  # as in an interactive session
    assert isolation.call("os.path.basename", "a/b") == "b"
    assert isolation.call("engine.system.files.sha256", __file__)


def test_the_path_of_this_process_is_the_childs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PYTHONPATH sets it."""
    (tmp_path / "elsewhere.py").write_text("def answer():\n    return 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert isolation.call("elsewhere.answer") == "42"


def test_no_command_runs_planted_code(planted: Path, shoal: Run) -> None:
    """`ingest`, `check`, `backup` and `restore` start children that read the store; so does a crash."""
    rows = "".join(f'{{"key": "{i}", "embedding": [{i}, 1, {i % 3}]}}\n' for i in range(20))
    (planted / "rows.jsonl").write_text(rows)
    assert shoal("ingest", "rows.jsonl").returncode == 0
    (planted / "shoal-store" / "unclean").touch()
    (planted / "shoal-store" / "closed").unlink()
    for words in (
        ["query", "3"],
        ["ingest", "rows.jsonl", "--again"],
        ["check"],
        ["backup", "copy"],
        ["restore", "copy", "--store", "other"],
    ):
        done = shoal(*words)
        assert done.returncode == 0, (words, done.stderr)
        assert "planted" not in done.stderr, words
