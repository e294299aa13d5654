"""What is derived from the lists, on disk: embeddings, linkage, density, parents and the upper levels' lists.

    derived-<version>.npz    the columns of each level, row by row of the live nodes
    derived-<version>.json   manifest: what they depend on, size and digest of the columns

A cache beside the store, never the truth. Nodes have no numbers in it but the hash of their item's key and
vector, and what a row was computed from is in it as a signature: so a snapshot of an older version serves as
far as nothing has changed since (`engine.clustering.resume`), and one that does not match in every point is
passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import orjson

from engine.clustering.resume import Saved
from engine.system import files

KEPT = 2
NAME = "derived"


def save(folder: Path, version: int, depends: Mapping[str, Any], levels: Sequence[Saved]) -> None:
    """Write a snapshot as of a version, then forget the oldest. Raises OSError."""
    stem = folder / f"{NAME}-{version}"
    columns = {f"{name}.{at}": column for at, level in enumerate(levels) for name, column in _columns(level)}
    wanted = sum(column.nbytes for column in columns.values())
    with files.generations(folder, NAME, KEPT) as temporary:
        with open(temporary, "wb") as file:
            np.savez(file, **columns)
        size = temporary.stat().st_size
        if size < wanted:
            raise OSError(f"{temporary} has {size} bytes, at least {wanted} are in it: is the disk full?")
        manifest = {"depends": dict(depends), "levels": len(levels), "bytes": size}
        manifest["digest"] = files.quick_digest(temporary)
        files.put_in_place(temporary, stem.with_suffix(".npz"))
        temporary.write_bytes(orjson.dumps(manifest))
        files.put_in_place(temporary, stem.with_suffix(".json"))


def load(folder: Path, newest: int, depends: Mapping[str, Any]) -> list[Saved] | None:
    """The levels of the newest good snapshot up to a version; None: there is none to use."""
    for version in versions(folder):
        if version <= newest:
            found = read(folder, version, depends)
            if found:
                return found
    return None


def read(folder: Path, version: int, depends: Mapping[str, Any]) -> list[Saved] | None:
    """One snapshot; None if it is damaged or of other settings."""
    file = folder / f"{NAME}-{version}.npz"
    try:
        manifest = _manifest(folder, version)
        if manifest is None or manifest["depends"] != orjson.loads(orjson.dumps(dict(depends))):
            return None
        with np.load(file, allow_pickle=False) as saved:
            return [
                Saved(**{field.name: saved[f"{field.name}.{at}"] for field in fields(Saved)})
                for at in range(manifest["levels"])
            ]
    except (OSError, ValueError, TypeError, KeyError, BadZipFile):
        return None


def is_whole(folder: Path, version: int) -> bool:
    """Whether a snapshot is what was written."""
    try:
        return _manifest(folder, version) is not None
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _manifest(folder: Path, version: int) -> dict[str, Any] | None:
    """None: it is not that of the columns, which are damaged."""
    stem = folder / f"{NAME}-{version}"
    manifest: dict[str, Any] = orjson.loads(stem.with_suffix(".json").read_bytes())
    file = stem.with_suffix(".npz")
    same = file.stat().st_size == manifest["bytes"] and files.quick_digest(file) == manifest["digest"]
    return manifest if same else None


def newest(folder: Path, most: int) -> int:
    """The newest version up to `most` that has a manifest, 0: none."""
    return max((version for version in versions(folder) if version <= most), default=0)


def versions(folder: Path) -> list[int]:
    """Versions that have a manifest, newest first."""
    return files.versions(folder, NAME)


def _columns(level: Saved) -> Any:
    return asdict(level).items()
