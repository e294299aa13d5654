"""Keep the current folder out of the import path: a `random.py` in it is data, not our code.

`python -m` puts that folder first. This module is imported before anything else, so it imports only what
every Python has loaded by then.
"""

from __future__ import annotations

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # holds the package


def trusted() -> list[str]:
    """Return the import path without the current folder, unless the package is there."""
    here = os.path.realpath(os.getcwd())
    paths = [path for path in sys.path if path and os.path.realpath(path) != here]
    return paths if ROOT in map(os.path.realpath, paths) else [ROOT, *paths]


def is_command() -> bool:
    """Return whether this process is just starting as `python -m engine`."""
    words = sys.orig_argv
    return sys.argv[:1] == ["-m"] and "-m" in words and words[words.index("-m") + 1 :][:1] == ["engine"]


if is_command():
    sys.path[:] = trusted()
