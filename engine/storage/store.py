"""The one writer of a store: a folder with an LMDB environment, which is the only truth.

    data.mdb, lock.mdb   LMDB's; the tables are those of `engine.storage.schema`
    writer               locked (flock) by the process that writes, and says which one it is
    unclean              there while a writer has the store open; found at open, every value is read first
    closed               the digest of data.mdb as a writer left it; see `engine.storage.seal`

Invariants:
- one `Change` is one transaction: input positions, state and events become durable together or not at all;
- a version is committed once, and versions have no gaps;
- after an error of the disk nothing more is written: the store has to be opened again;
- what is read back has been compared with its checksum.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import shutil
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb

from engine.errors import ConfigMismatch, CorruptStore, StoreError, StoreFull, StoreLocked
from engine.storage import commit, compaction, schema, seal, tables
from engine.storage.compaction import Compacted, write_anew
from engine.storage.tables import Tables
from engine.system import files, isolation
from engine.types import Change, DeadLetter, Loaded

MAP_BYTES = 1 << 36
MAX_READERS = 126
_ANOTHER_STORE = ("collection", "dim")  # a rebuild does not mend a difference in these
_RECOMPUTED = "arithmetic"  # a difference in this is no reason to refuse: see `Store.stale`
_DAMAGE = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
    lmdb.BadDbiError,
    lmdb.IncompatibleError,
    lmdb.CursorFullError,
    lmdb.PageFullError,
)


@dataclass(frozen=True, slots=True)
class _Limits:
    free_bytes: int
    events_max_bytes: int
    events_max_age_ms: int


class Store:
    """A store open for writing. Not for more than one thread, but for `snapshot`."""

    def __init__(self, path: Path, env: lmdb.Environment, lock: int, limits: _Limits) -> None:
        self.path, self.env = path, env
        self._lock, self._limits = lock, limits
        with env.begin(write=True) as txn:  # all tables or none
            self.handles = {name: env.open_db(name.encode(), txn) for name in schema.TABLES}
        self._failed = False
        self._gate, self._readers = threading.Condition(), 0
        self._growing = self._closed = False
        self.version = 0
        self.config: dict[str, Any] = {}
        self.identity = ""  # given when the store is made; a copy keeps it
        self.keep_from: int | None = None  # versions from this one on are not forgotten: not published yet
        self.stale = False  # the arithmetic differs from the stored clusters'; commit what recomputing gives
        self.bytes_written = 0  # by the process during commits, as the operating system counts them

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        config: Mapping[str, Any] | None = None,
        *,
        map_bytes: int = MAP_BYTES,
        free_bytes: int = 1 << 26,
        events_max_bytes: int = 1 << 30,
        events_max_age_ms: int = 7 * 24 * 3_600_000,
    ) -> Store:
        """Opens the store in a folder, or makes one there.

        `config` tells what the stored clusters depend on: `collection`, `dim` (None: the first vector
        decides), `model`, `k`, `arithmetic`, ...; JSON values. A store that was made with another one is
        refused (another `arithmetic` only makes it `stale`); None takes it as it is. `free_bytes`: what a
        commit leaves free on the disk. Of the event log, versions older than `events_max_age_ms` or beyond
        `events_max_bytes` are forgotten, never the newest, nor those from `keep_from` on.

        Raises StoreLocked, StoreFull, CorruptStore, ConfigMismatch.
        """
        folder = Path(path)
        limits = _Limits(free_bytes, events_max_bytes, events_max_age_ms)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = hold(folder)
        except OSError as error:
            raise _unusable(folder, error) from error
        env = None
        try:
            _examine(folder)
            (folder / "unclean").touch()
            seal.breach(folder)
            files.sync(folder)
            env = _environment(folder, map_bytes)
            store = cls(folder, env, lock, limits)
            store._adopt(config)
            return store
        except BaseException as error:
            if env is not None:
                env.close()
            os.close(lock)
            if isinstance(error, lmdb.Error | OSError):
                raise _unusable(folder, error) from error
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets the next writer in. What was committed is durable already."""
        if self._lock < 0:
            return
        with self._gate:
            self._closed = True
            self._gate.wait_for(lambda: self._readers == 0)
        self.env.close()
        if not self._failed:
            seal.seal(self.path)
            with contextlib.suppress(OSError):  # the disk failed since: the next writer reads all
                (self.path / "unclean").unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = -1

    def positions(self) -> dict[str, bytes]:
        """The next position of each source."""
        with self._reading() as found:
            return {name.decode(): position for name, position in found.rows("positions")}

    def position(self, source: str) -> bytes | None:
        """Where to go on reading a source."""
        with self._reading() as found:
            return found.get("positions", source.encode())

    def load(self) -> Loaded:
        """Reads everything back, to the bit. Raises CorruptStore."""
        with self._reading() as found:
            return tables.load(found)

    def load_to_rebuild(self) -> Loaded:
        """`load`, also where the derived tables contradict each other. Raises CorruptStore."""
        with self._reading() as found:
            return tables.load_to_rebuild(found)

    def rows(self, table: str) -> Iterator[schema.Row]:
        """All rows of a table in the order of keys, bodies without checksums. Raises CorruptStore."""
        with self._reading() as found:
            yield from found.rows(table)

    def commit(self, change: Change) -> None:
        """Makes a change durable, all of it or nothing. Raises StoreFull, StoreError."""
        self._write(change, None)

    def replace(self, change: Change, config: Mapping[str, Any]) -> None:
        """Puts a new generation in place: `lists`, `moved` and `trees` of the change are complete."""
        self._write(change, config)

    @contextmanager
    def snapshot(self) -> Iterator[Tables]:
        """What is committed, for any thread of this process, also while a commit is made. Keep it short."""
        with self._gate:
            self._gate.wait_for(lambda: not self._growing)
            if self._closed:
                raise StoreError(f"{self.path} is closed; open it again")
            self._readers += 1
        try:
            with self._reading() as found:
                yield found
        finally:
            with self._gate:
                self._readers -= 1
                self._gate.notify_all()

    @contextmanager
    def _reading(self) -> Iterator[Tables]:
        try:
            with self.env.begin() as txn:
                yield Tables(txn, self.handles)
        except CorruptStore:
            self._failed = True  # nobody vouches for it
            raise
        except lmdb.Error as error:
            self._failed = True
            raise _unusable(self.path, error) from error

    def erase_mentions(self, key: bytes) -> int:
        """Take a key out of the event log; returns in how many events it was. Raises StoreError."""
        while True:
            try:
                with self.env.begin(write=True) as txn:
                    return commit.erase_mentions(Tables(txn, self.handles), key)
            except lmdb.MapFullError:
                self._grow()
            except (lmdb.Error, OSError) as error:
                self._failed = True
                raise _unusable(self.path, error) from error

    def compact(self) -> Compacted:
        """Write the file anew without what is not used; no other thread may write meanwhile.

        Raises StoreFull, CorruptStore; then the store is as it was, or has to be opened again.
        """
        file = self.path / "data.mdb"
        before, free = file.stat().st_size, shutil.disk_usage(self.path).free
        if free < before + self._limits.free_bytes:
            need = f"compaction needs {(before + self._limits.free_bytes) / 1e6:.1f} MB"
            raise StoreFull(f"{self.path}: {free / 1e6:.1f} MB are free on its disk, {need}; make room")
        size, scratch = self.env.info()["map_size"], self.path / compaction.SCRATCH
        try:
            with self._reading() as found:
                anew = write_anew(found, scratch, size)
            self._swap(anew, size)
        except (lmdb.Error, OSError) as error:
            raise _unusable(self.path, error) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return Compacted(before, file.stat().st_size)

    def _swap(self, anew: Path, map_bytes: int) -> None:
        """The new file in the place of the old, with a lock file of its own: LMDB's counts are others."""
        with self._gate:
            self._growing = True
            self._gate.wait_for(lambda: self._readers == 0)
        self._failed = True  # until it is open again
        try:
            self.env.close()
            files.put_in_place(anew, self.path / "data.mdb")
            (self.path / "lock.mdb").unlink(missing_ok=True)
            files.sync(self.path)
            self.env = _environment(self.path, map_bytes)
            with self.env.begin(write=True) as txn:
                self.handles = {name: self.env.open_db(name.encode(), txn) for name in schema.TABLES}
            self._failed = False
        finally:
            with self._gate:
                self._growing = False
                self._gate.notify_all()

    def log_is_full(self) -> bool:
        """Whether the event log is beyond its bound and nothing of it may be forgotten yet."""
        if self.keep_from is None:
            return False
        with self._reading() as found:
            log, oldest = found.json("log") or {"bytes": 0}, found.first("commits")
        held = oldest is not None and schema.read_u64(oldest[0]) >= self.keep_from
        return held and log["bytes"] > self._limits.events_max_bytes

    def _adopt(self, config: Mapping[str, Any] | None) -> None:
        """Compares the configuration with the stored one, or stores it."""
        with self._reading() as found:
            stored, state = found.json("config"), found.json("state") or {}
            self.identity = str((found.json("identity") or {}).get("id", ""))
        self.version = int(state.get("version", 0))
        wanted = {"collection": "", "dim": None, **(config or stored or {}), "format": schema.FORMAT}
        if stored is None:
            self.identity = uuid.uuid4().hex
            with self.env.begin(write=True) as txn:
                found = Tables(txn, self.handles)
                found.put("meta", b"config", schema.dump_json(wanted))
                found.put("meta", b"identity", schema.dump_json({"id": self.identity}))
            self.config = wanted
            return
        compare(self.path, stored, wanted)
        self.stale = stored.get(_RECOMPUTED) != wanted.get(_RECOMPUTED)
        self.config = {**stored, _RECOMPUTED: wanted.get(_RECOMPUTED)}

    def _write(self, change: Change, config: Mapping[str, Any] | None) -> None:
        if self._failed:
            raise StoreError(f"{self.path}: the last commit failed; open the store again")
        assert change.version == self.version + 1, f"version {change.version} after {self.version}"
        self.check_room(change)
        kept = {**self.config, **(config or {}), "format": schema.FORMAT}
        if kept["dim"] is None:
            kept["dim"] = change.upserts.vectors.shape[1] if len(change.upserts.ids) else self.config["dim"]
        limits, before = self._limits, _bytes_written()
        while True:
            try:
                with self.env.begin(write=True) as txn:
                    found = Tables(txn, self.handles)
                    if config is not None:
                        commit.clear_derived(found)
                    commit.apply(found, change)
                    commit.write_history(
                        found, change, limits.events_max_bytes, limits.events_max_age_ms, self.keep_from
                    )
                    if self.stale or kept != self.config:
                        found.put("meta", b"config", schema.dump_json(kept))
                break
            except lmdb.MapFullError:
                self._grow()
            except (lmdb.Error, OSError) as error:
                self._failed = True
                raise _unusable(self.path, error) from error
        self.version, self.config, self.stale = change.version, kept, False
        self.bytes_written += _bytes_written() - before

    def check_room(self, change: Change) -> None:
        """Raises StoreFull. LMDB reports a full disk as "Input/output error", too late for words."""
        items = change.upserts
        rows = items.vectors.nbytes + sum(map(len, items.payloads)) + change.lists.neighbors.nbytes
        rows += sum(len(event.value or b"") for event in change.events if isinstance(event, DeadLetter))
        need, free = 2 * rows + self._limits.free_bytes, shutil.disk_usage(self.path).free
        if free < need:
            raise StoreFull(
                f"{self.path}: {free / 1e6:.1f} MB are free on its disk, a commit needs {need / 1e6:.1f} MB; "
                "make room, then start again"
            )

    def _grow(self) -> None:
        """Doubles the map; no transaction may be open in this process meanwhile."""
        size = 2 * self.env.info()["map_size"]
        with self._gate:
            self._growing = True
            self._gate.wait_for(lambda: self._readers == 0)
        try:
            self.env.set_mapsize(size)
        except (lmdb.Error, OSError) as error:
            self._failed = True
            raise StoreFull(f"{self.path}: no address space for a map of {size / 1e9:.1f} GB") from error
        finally:
            with self._gate:
                self._growing = False
                self._gate.notify_all()


def compare(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises ConfigMismatch, naming what differs and what to do about it."""
    differ = {
        name: (stored.get(name), wanted.get(name))
        for name in sorted(stored.keys() | wanted.keys())
        if name != _RECOMPUTED and stored.get(name) != wanted.get(name)
    }
    if "dim" in differ and None in differ["dim"]:
        del differ["dim"]
    if not differ:
        return
    words = ", ".join(f"{name} {was!r}, not {now!r}" for name, (was, now) in differ.items())
    if "format" in differ:
        what = "use the release that made it, or ingest the data into a new store"
    elif differ.keys() & set(_ANOTHER_STORE):
        what = "name another store, or set it back"
    else:
        what = "set it back, or run `shoal rebuild` to make a new generation with it"
    raise ConfigMismatch(f"{path} was made with {words}: {what}")


def hold(folder: Path) -> int:
    """The writer's lock. It ends with the process, however that ends. Raises StoreLocked."""
    lock = os.open(folder / "writer", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 200, 0).decode(errors="replace").strip() or "another process"
        os.close(lock)
        raise StoreLocked(f"{folder} is being written by {holder}; wait for it or stop it") from None
    except OSError:
        os.close(lock)
        raise
    os.ftruncate(lock, 0)
    # No more of the command than its name: arguments may be keys.
    os.pwrite(lock, f"process {os.getpid()} ({' '.join(sys.argv[:2])[:120]})".encode(), 0)
    return lock


def _environment(folder: Path, map_bytes: int) -> lmdb.Environment:
    """Durable at each commit, never a writable map: on a full disk that kills the process."""
    if not (folder / "data.mdb").exists():
        _make_environment(folder)
    size = max(map_bytes, 2 * (folder / "data.mdb").stat().st_size)
    env = lmdb.open(os.fspath(folder), map_size=size, max_dbs=len(schema.TABLES), max_readers=MAX_READERS)
    env.reader_check()
    return env


def _make_environment(folder: Path) -> None:
    """A new file is there as a whole or not at all: LMDB does not wait until its first pages are."""
    temporary = folder / "data.new"
    temporary.unlink(missing_ok=True)
    lmdb.open(os.fspath(temporary), subdir=False, lock=False).close()
    files.put_in_place(temporary, folder / "data.mdb")


def _examine(folder: Path) -> None:
    """Raises CorruptStore unless the store is as a writer closed it or, after a crash, good in every value.

    It is read in another process: a broken page can end the one that reads it.
    """
    if not (folder / "data.mdb").exists() or seal.is_sealed(folder) or not (folder / "unclean").exists():
        return
    try:
        isolation.call("engine.storage.verify.walk", folder)
    except CorruptStore as damage:
        raise CorruptStore(f"{folder} was not closed and is damaged: {damage}") from None


def _unusable(folder: Path, error: Exception) -> StoreError:
    """An error of the disk in words."""
    code = getattr(error, "errno", None) or getattr(error, "code", None)
    words = str(error)
    if isinstance(error, _DAMAGE):
        return CorruptStore(f"{folder} is damaged ({words}); restore a backup")
    if code in (errno.EROFS, errno.EACCES, errno.EPERM) or isinstance(error, lmdb.ReadonlyError):
        return StoreFull(f"{folder} cannot be written ({words}); make it writable, then start again")
    if isinstance(error, FileExistsError | NotADirectoryError):
        return StoreError(f"{folder} is not a folder; name another store")
    free = shutil.disk_usage(folder).free / 1e6 if folder.exists() else 0.0
    return StoreFull(
        f"{folder}: the disk refused a write ({words}; {free:.0f} MB free); nothing of it was kept: "
        "make room or mend the disk, then start again"
    )


def _bytes_written() -> int:
    """Handed to the disk by this process so far."""
    try:
        counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(counts["wchar"])
    except OSError:
        return 512 * resource.getrusage(resource.RUSAGE_SELF).ru_oublock
