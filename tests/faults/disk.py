"""The disk of `disk.c`, which stops, loses power or refuses at a chosen file operation."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("disk.c")
KILL, POWER, EIO, DEAD, FULL = "kill", "power", "eio", "dead", "full"
FATAL, FAILING = (KILL, POWER), (EIO, DEAD, FULL)
KINDS = {KILL: 1, POWER: 2, EIO: 3, DEAD: 4, FULL: 5}


def compile_into(folder: Path) -> Path:
    """The library to preload."""
    library = folder / "disk.so"
    compiler = os.environ.get("CC", "cc")
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{SOURCE.name} cannot be compiled: {done.stderr.strip()}")
    return library


class Disk:
    """The disk of this process, in which the library is preloaded."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        try:
            self._watch, self._plan = library.disk_watch, library.disk_plan
        except AttributeError:
            sys.exit("the library of disk.c is not preloaded")
        self._die, self._count = library.disk_die, library.disk_count
        self._plan.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_uint64]
        self._die.argtypes = [ctypes.c_int, ctypes.c_uint64]
        self._count.restype = ctypes.c_long

    def watch(self, folder: Path) -> None:
        """Counts the operations on this folder's files from now on."""
        self._watch(os.fsencode(folder))

    def strike(self, at: int, kind: str, seed: int) -> None:
        """Strikes at the `at`th operation from now, 1: the next one."""
        self._plan(at, KINDS[kind], seed)

    def die(self, kind: str, seed: int) -> None:
        """Ends the process at once."""
        self._die(int(kind == POWER), seed)

    @property
    def operations(self) -> int:
        """Counted so far."""
        return int(self._count())


def scratch() -> Path:
    """A new folder, in memory where there is one."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="shoal-", dir=memory if os.access(memory, os.W_OK) else None))
