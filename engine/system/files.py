"""Atomic, durable file replacement, and digests of files."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import xxhash

from engine.errors import InputError, StoreFull

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # room would help
_PIECE = 1 << 20


def sync(path: Path) -> None:
    """Make a file's content, or a folder's names, durable. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def put_in_place(temporary: Path, goal: Path) -> None:
    """Rename a finished file or folder to its final name, durably. Raises OSError."""
    sync(temporary)
    os.replace(temporary, goal)
    sync(goal.parent)


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of `path` once it is whole. Raises OSError.

    Interrupted, it leaves what was there. A pipe or a device is written into.
    """
    goal = path.resolve()
    if goal.exists() and not goal.is_file():
        with goal.open("wb") as file:
            yield file
        return
    unfinished = goal.with_name(f".{goal.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            yield file
        put_in_place(unfinished, goal)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """Write as `replaced`, to a file that a user has named. Raises InputError, StoreFull."""
    try:
        with replaced(path) as file:
            yield file
    except OSError as problem:
        kind = StoreFull if problem.errno in FULL else InputError
        raise kind(f"{path} cannot be written: {problem.strerror or problem}.") from None


def versions(folder: Path, name: str) -> list[int]:
    """Return the versions that have a manifest `<name>-<version>.json`, newest first."""
    numbers = (path.stem.removeprefix(f"{name}-") for path in folder.glob(f"{name}-*.json"))
    return sorted((int(number) for number in numbers if number.isdigit()), reverse=True)


def temporary_name(folder: Path, name: str) -> Path:
    """Return the path of a version that is still being written."""
    return folder / f"{name}.saving"


@contextmanager
def generations(folder: Path, name: str, keep: int) -> Iterator[Path]:
    """Yield a temporary name for a new version's files; keep the newest `keep` versions.

    Files without a manifest, left by an interrupted writer, are deleted.
    """
    temporary = temporary_name(folder, name)
    try:
        yield temporary
    finally:
        kept = {str(version) for version in versions(folder, name)[:keep]}
        for path in [temporary, *folder.glob(f"{name}-*")]:
            if path.stem.removeprefix(f"{name}-") not in kept:
                path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as `sha256sum` prints it. Raises OSError."""
    digest = hashlib.sha256()  # hashlib.file_digest came with Python 3.11
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def quick_digest(path: Path) -> str:
    """Return the XXH3-128 of a file: several times faster than SHA-256, not cryptographic. Raises OSError."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
