"""The seal of a closed store: a digest of `data.mdb`, written when the writer closes it.

LMDB pages have no checksums, and a damaged page can mislead or crash the process that reads it. Between two
writers the file does not change, so one digest covers all of it at the cost of reading it. A writer removes
the seal before it opens the store.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import xxhash

from engine.errors import CorruptStore
from engine.system import files

NAME = "closed"


def seal(folder: Path) -> None:
    """Write the seal. On a full disk there is none, and the next writer verifies every value."""
    with contextlib.suppress(OSError):
        words = f"{(folder / 'data.mdb').stat().st_size} {files.quick_digest(folder / 'data.mdb')}"
        temporary = folder / f"{NAME}.saving"
        temporary.write_text(f"{words} {_check(words)}\n")
        files.put_in_place(temporary, folder / NAME)


def breach(folder: Path) -> None:
    """Remove the seal: the file is going to change."""
    (folder / NAME).unlink(missing_ok=True)


def is_sealed(folder: Path) -> bool:
    """Return whether there is a seal, and compare the file with it. Raises CorruptStore."""
    try:
        size, digest, check = (folder / NAME).read_text().split()
        if _check(f"{size} {digest}") != check:
            return False
    except (OSError, ValueError):
        return False
    file = folder / "data.mdb"
    found = file.stat().st_size if file.exists() else -1
    if found != int(size) or files.quick_digest(file) != digest:
        if not (folder / NAME).exists():  # a writer has just opened it
            return False
        raise CorruptStore(f"{folder} is damaged: {file.name} is not what was written; restore a backup")
    return True


def is_orphaned(folder: Path) -> bool:
    """Return whether a writer crashed and none has the store open now."""
    if not (folder / "unclean").exists():
        return False
    try:
        words = (folder / "writer").read_text().split()
        return not Path(f"/proc/{int(words[1])}").exists()
    except (OSError, ValueError, IndexError):
        return True


def _check(words: str) -> str:
    return xxhash.xxh32_hexdigest(words.encode())
