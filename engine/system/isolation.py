"""Work in another process, because a broken page or graph can end the one that reads it."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from engine import errors
from engine.errors import CorruptStore, ShoalError, StoreError

_ROOT = Path(__file__).resolve().parents[2]
_SCRIPT = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from engine.system.isolation import main; main(*sys.argv[2:])"
)
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)  # no damage: out of memory, or told to end


def call(function: str, *arguments: str | os.PathLike[str]) -> str:
    """Run `module.function` on strings in a process of its own; returns what it printed.

    Raises what it raised of Shoal's errors; StoreError when somebody ended it,
    CorruptStore when it did not end by itself or otherwise.
    """
    words = [str(_ROOT), function, *(os.fspath(argument) for argument in arguments)]
    command = [sys.executable, "-c", _SCRIPT, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout
    told = done.stderr.strip().splitlines()[-1:] or [_ending(done.returncode)]
    name, _, sentence = told[0].partition(": ")
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, ShoalError):
        raise kind(sentence)
    if -done.returncode in _FROM_OUTSIDE:
        ended = signal.Signals(-done.returncode).name
        raise StoreError(f"the process that reads it was ended by {ended}; give it memory, then start again")
    raise CorruptStore(told[0] if done.returncode > 0 else _ending(done.returncode))


def _ending(code: int) -> str:
    if code < 0:
        return f"reading it ended the process with {signal.Signals(-code).name}; restore a backup"
    return f"reading it ended with status {code}; restore a backup"


def main(function: str, *arguments: str) -> None:
    """The other process."""
    module, name = function.rsplit(".", 1)
    try:
        print(getattr(importlib.import_module(module), name)(*arguments))
    except ShoalError as problem:
        sys.exit(f"{type(problem).__name__}: {problem}")
