"""Files that are whole or not there, and how to tell whether they still are what was written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

_PIECE = 1 << 20


def sync(path: Path) -> None:
    """Make a file's content, or a folder's names, durable. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def put_in_place(temporary: Path, goal: Path) -> None:
    """A finished file or folder gets its own name, durably. Raises OSError."""
    sync(temporary)
    os.replace(temporary, goal)
    sync(goal.parent)


def versions(folder: Path, name: str) -> list[int]:
    """The versions that have a manifest `<name>-<version>.json`, newest first."""
    numbers = (path.stem.removeprefix(f"{name}-") for path in folder.glob(f"{name}-*.json"))
    return sorted((int(number) for number in numbers if number.isdigit()), reverse=True)


def temporary_name(folder: Path, name: str) -> Path:
    """Where a version is written that has no name yet."""
    return folder / f"{name}.saving"


@contextmanager
def generations(folder: Path, name: str, keep: int) -> Iterator[Path]:
    """Room to write the files of a new version under a temporary name; the newest `keep` versions stay.

    Files without a manifest, of a writer that was cut short now or before, go.
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
    """What `sha256sum` prints. Raises OSError."""
    digest = hashlib.sha256()  # hashlib.file_digest came with Python 3.11
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def quick_digest(path: Path) -> str:
    """Several times as fast as SHA-256; against accidents, not against people. Raises OSError."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
