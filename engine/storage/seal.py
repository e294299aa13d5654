"""The seal that a writer leaves: the digest of `data.mdb` when it was closed.

LMDB's pages have no checksums, and a broken one can mislead or end the process that reads it. While no
writer has the store open, nothing changes its file: so one digest vouches for all of it, at the speed of
reading it. A writer takes the seal away before it opens the store.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import xxhash

from engine.errors import CorruptStore
from engine.system import files

NAME = "closed"


def seal(folder: Path) -> None:
    """Vouch for the store's file as it is. On a full disk there is no seal, and the next writer reads all."""
    with contextlib.suppress(OSError):
        words = f"{(folder / 'data.mdb').stat().st_size} {files.quick_digest(folder / 'data.mdb')}"
        temporary = folder / f"{NAME}.saving"
        temporary.write_text(f"{words} {_check(words)}\n")
        files.put_in_place(temporary, folder / NAME)


def breach(folder: Path) -> None:
    """The file is going to change."""
    (folder / NAME).unlink(missing_ok=True)


def is_sealed(folder: Path) -> bool:
    """Whether there is a seal; then the file has to be what was sealed. Raises CorruptStore."""
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
    """Whether a writer ended without closing the store, and none has it open now."""
    if not (folder / "unclean").exists():
        return False
    try:
        words = (folder / "writer").read_text().split()
        return not Path(f"/proc/{int(words[1])}").exists()
    except (OSError, ValueError, IndexError):
        return True


def _check(words: str) -> str:
    return xxhash.xxh32_hexdigest(words.encode())
