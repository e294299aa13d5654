"""Files that are replaced whole or not at all."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from engine.system.files import replaced


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path) -> None:
    goal = tmp_path / "a file"
    goal.write_bytes(b"before")

    def interrupted() -> None:
        with replaced(goal) as file:
            file.write(b"half of wh")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert goal.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [goal]


def test_a_whole_file_takes_the_place_through_a_link_too(tmp_path: Path) -> None:
    (tmp_path / "apart").mkdir()
    goal, link = tmp_path / "apart" / "goal", tmp_path / "link"
    link.symlink_to(goal)
    for content in (b"one", b"two"):
        with replaced(link) as file:
            file.write(content)
        assert goal.read_bytes() == content
    assert link.is_symlink()
    assert list(goal.parent.iterdir()) == [goal]


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    with replaced(pipe) as file:
        file.write(b"through it")
    reader.join(60.0)
    assert found == [b"through it"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
