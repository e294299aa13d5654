"""Backups: verified copies of a store, made while it is written, and restored as a whole.

    data.mdb      LMDB's compacted copy of one version: items, clusters, event log and input positions
    backup.json   a manifest with the SHA-256 of data.mdb
    closed        as in a store

A backup gets its name once it is complete, verified and durable. It holds the input positions, so a restored
store resumes its sources where the backup was made.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import lmdb
import orjson

from engine.errors import CorruptStore, InputError, NoStore, StoreError, StoreFull
from engine.storage import schema, seal
from engine.storage.environment import (
    DAMAGE,
    DATA,
    Environment,
    error_code,
    reading,
    remains,
    require_file,
    unreadable,
)
from engine.storage.store import hold
from engine.system import files, isolation

MANIFEST = "backup.json"


@dataclass(frozen=True, slots=True)
class Backup:
    """The manifest of a backup."""

    collection: str
    identity: str
    version: int
    items: int
    time_ms: int  # of the version's commit
    format: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Restored:
    """The restored backup, and where the store that it replaced is now."""

    backup: Backup
    aside: Path | None


def back_up(store: Path, target: Path) -> Backup:
    """Copy the last version of a store, also while another process writes it.

    Raises NoStore, InputError (the target exists, or lies in the store), StoreFull, CorruptStore; then
    nothing is left of the copy.
    """
    require_file(store)
    _require_apart(target, store)
    with _new_folder(target) as folder:
        _call("engine.storage.backup.copy", store, folder)
        return _finish(folder)


def read(folder: Path) -> Backup:
    """Return the manifest of a backup. Raises InputError, CorruptStore, StoreError."""
    try:
        raw = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} is no backup: it has no {MANIFEST}; name another") from None
    except OSError as error:
        raise StoreError(f"{folder / MANIFEST} cannot be read ({error.strerror})") from error
    try:
        backup = Backup(**orjson.loads(raw))
    except (ValueError, TypeError):
        raise CorruptStore(f"{folder / MANIFEST} is damaged; use another backup") from None
    if backup.format not in (schema.FORMAT, schema.REBUILT_FROM):  # an older one is rebuilt once restored
        raise StoreError(
            f"{folder} has format {backup.format}, this release reads {schema.FORMAT}; "
            "use the release that made it"
        )
    return backup


def verify(folder: Path) -> Backup:
    """Compare a backup with its digest and every value with its checksum. Raises as `read`."""
    backup = read(folder)
    try:
        good = files.sha256(folder / DATA) == backup.sha256
    except OSError as error:
        raise CorruptStore(f"{folder}: data.mdb cannot be read ({error.strerror}); use another") from error
    if not good:
        raise CorruptStore(f"{folder} is damaged: data.mdb is not what was written; use another backup")
    isolation.call("engine.storage.verify.walk", folder)
    return backup


def restore(folder: Path, store: Path, force: bool = False) -> Restored:
    """Put a backup in the place of a store; `force` moves an existing store aside.

    Raises InputError (the place is not empty, or lies in the backup; no backup), StoreLocked, StoreFull,
    CorruptStore; the store is then unchanged.
    """
    read(folder)
    _require_apart(store, folder)
    if store.exists() and not store.is_dir():
        raise InputError(f"{store} is no folder; name another place")
    there = store.exists() and any(store.iterdir())
    if there and not force:
        raise InputError(f"{store} is not empty; name another place, or move it aside with --force")
    if there and not (store / DATA).is_file() and not remains(store):
        raise InputError(f"{store} is not empty and holds no store; name another place")
    with _scratch(store, "restoring") as scratch:
        shutil.copyfile(folder / DATA, scratch / DATA)
        shutil.copyfile(folder / MANIFEST, scratch / MANIFEST)
        files.sync(scratch / DATA)
        backup = verify(scratch)  # what was written, not what was read
        (scratch / MANIFEST).unlink()
        seal.seal(scratch)
        aside = _move_aside(store) if there else None
        try:
            files.put_in_place(scratch, store)
        except OSError:
            if aside:
                os.rename(aside, store)
            raise
    return Restored(backup, aside)


def copy(store: str, folder: str) -> int:
    """Copy a store into an existing folder; `back_up` runs it in a process of its own.

    Raises NoStore, CorruptStore, StoreFull.
    """
    environment = Environment.attach(Path(store))
    try:
        environment.copy(Path(folder))
        files.sync(Path(folder) / DATA)
    except DAMAGE as error:
        raise unreadable(environment.folder, error) from error
    except (lmdb.Error, OSError) as error:
        raise _refused(Path(folder), error) from error
    finally:
        environment.close()
    return 0


def _finish(folder: Path) -> Backup:
    """Verify a copy, write its manifest and seal it."""
    isolation.call("engine.storage.verify.walk", folder)
    backup = Backup(**orjson.loads(isolation.call("engine.storage.backup.describe", folder)))
    (folder / MANIFEST).write_bytes(orjson.dumps(asdict(backup), option=orjson.OPT_INDENT_2))
    files.sync(folder / MANIFEST)
    seal.seal(folder)
    return backup


def describe(folder: str) -> str:
    """Return the manifest of a copy as JSON. Raises NoStore (no version yet), CorruptStore."""
    with reading(folder, lock=False) as tables:
        if tables is None:
            raise NoStore(f"{folder} holds no version yet; there is nothing to copy")
        config, state = tables.meta.config or {}, tables.meta.state
        identity, items = tables.meta.identity, tables.items.count()
    data = Path(folder) / DATA
    backup = Backup(
        collection=config.get("collection") or "",
        identity=identity,
        version=state.version,
        items=items,
        time_ms=state.time_ms,
        format=int(config.get("format", 0)),
        bytes=data.stat().st_size,
        sha256=files.sha256(data),
    )
    return orjson.dumps(asdict(backup)).decode()


def _require_apart(target: Path, source: Path) -> None:
    """Raise InputError where the copy would lie in the folder that is copied."""
    if source.resolve() in (target.resolve(), *target.resolve().parents):
        raise InputError(f"{target} lies in {source}, which is copied; name a place outside")


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    if target.exists() or target.is_symlink():
        raise InputError(f"{target} exists already; name a folder that does not")
    with _scratch(target, "partial") as folder:
        yield folder
        if target.exists():
            raise InputError(f"{target} was created meanwhile; name a folder that does not exist")
        files.put_in_place(folder, target)


@contextmanager
def _scratch(goal: Path, what: str) -> Iterator[Path]:
    """Make a folder next to the goal; remove it at the end unless it was renamed."""
    folder = goal.absolute().with_name(f"{goal.absolute().name}.{what}-{os.getpid()}")
    try:
        folder.mkdir(parents=True)
        yield folder
    except OSError as error:
        raise _refused(folder, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_aside(store: Path) -> Path:
    """Rename a store that no process writes. Raises StoreLocked."""
    moment = datetime.fromtimestamp(time.time(), timezone.utc).strftime("%Y%m%d-%H%M%S")
    aside = store.absolute().with_name(f"{store.absolute().name}.before-{moment}")
    held_before = (store / "writer").exists()
    lock = hold(store)
    try:
        os.rename(store, aside)
    except OSError:
        if not held_before:
            (store / "writer").unlink(missing_ok=True)
        raise
    finally:
        os.close(lock)
    return aside


def _call(function: str, *arguments: Path) -> None:
    try:
        isolation.call(function, *arguments)
    except CorruptStore as damage:
        if str(damage).startswith(f"{arguments[0]} is damaged"):
            raise
        raise CorruptStore(f"{arguments[0]} is damaged: {damage}") from None


def _refused(folder: Path, error: Exception) -> StoreError:
    near = next(parent for parent in folder.parents if parent.exists())
    if error_code(error) not in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"{near} cannot be written ({error}); fix the cause, then run it again")
    words = getattr(error, "strerror", None) or str(error)
    free = shutil.disk_usage(near).free / 1e6
    return StoreFull(f"{near} refused a write ({words}; {free:.0f} MB free); make room, then run it again")
