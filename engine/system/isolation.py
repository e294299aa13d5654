"""Run functions in a process of their own: a damaged page or graph can kill the process that reads it."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from engine import errors
from engine.errors import CorruptStore, ShoalError, StoreError
from engine.system import importpath

_BOOT = Path(__file__).with_name("boot.py")
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)  # no damage: out of memory, or stopped


def command(module: str, *arguments: str | os.PathLike[str]) -> list[str]:
    """Return the command line of a Python process that runs a module as `python -m` does, isolated.

    It imports from where this process does, but never from the current folder.
    """
    paths = os.pathsep.join(importpath.trusted())
    return [sys.executable, "-I", str(_BOOT), paths, module, *(os.fspath(each) for each in arguments)]


def call(function: str, *arguments: str | os.PathLike[str]) -> str:
    """Run a function on strings in a process of its own; return `str()` of its result.

    `function`: a dotted path, `engine.storage.verify.walk`. Raises the ShoalError that the function raised;
    StoreError if a signal from outside ended the process, CorruptStore if it crashed.
    """
    words = command("engine.system.isolation", function, *arguments)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        told = json.loads(done.stdout.splitlines()[-1])
        if "error" in told:
            raise errors.load(told)
        return str(told["answer"])
    if -done.returncode in _FROM_OUTSIDE:
        name = signal.Signals(-done.returncode).name
        raise StoreError(f"the process that reads it was ended by {name}; give it memory, then start again")
    lines = done.stderr.strip().splitlines()
    raise CorruptStore(lines[-1] if lines and done.returncode > 0 else _ending(done.returncode))


def _ending(code: int) -> str:
    if code < 0:
        return f"reading it ended the process with {signal.Signals(-code).name}; restore a backup"
    return f"reading it ended with status {code}; restore a backup"


def main(function: str, *arguments: str) -> None:
    """Run in the other process: print the answer, or the error that `function` raised."""
    module, name = function.rsplit(".", 1)
    try:
        told = {"answer": str(getattr(importlib.import_module(module), name)(*arguments))}
    except ShoalError as error:
        told = errors.dump(error)
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
