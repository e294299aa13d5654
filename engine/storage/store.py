"""The writer of a store: a folder whose LMDB environment is the single source of truth.

    data.mdb, lock.mdb   LMDB's; the tables are those of `engine.storage.schema`
    writer               locked (flock) by the writing process, and names it
    unclean              exists while a writer has the store open; at open, every value is then verified
    closed               the digest of data.mdb when it was closed; see `engine.storage.seal`

Invariants:
- one `Change` is one transaction: input positions, state and events become durable together or not at all;
- a version is committed once, and versions have no gaps;
- after a disk error nothing more is written until the store is opened again;
- every value read has been compared with its checksum.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from engine.closing import Closing
from engine.errors import ConfigMismatch, CorruptStore, StoreError, StoreFull, StoreLocked
from engine.storage import commit, compaction, load, schema, seal
from engine.storage.compaction import Compacted, write_anew
from engine.storage.environment import DATA, MAP_BYTES, Environment, refuse_remains, unwritable
from engine.storage.tables import Tables
from engine.storage.upgrade import upgrade
from engine.system import files, isolation
from engine.types import Change, DeadLetter, Int16, Int64, Loaded, Renumbered

T = TypeVar("T")
_ANOTHER_STORE = ("collection", "dim")  # a rebuild cannot change these
_RECOMPUTED = "arithmetic"  # a difference in this is no reason to refuse: see `Store.stale`


@dataclass(frozen=True, slots=True)
class _Limits:
    free_bytes: int
    events_max_bytes: int
    events_max_age_ms: int


class Store(Closing):
    """A store open for writing. Single-threaded, except `snapshot`."""

    def __init__(self, path: Path, environment: Environment, lock: int, limits: _Limits) -> None:
        self.path, self.environment = path, environment
        self._lock, self._limits = lock, limits
        self._failed = False
        self.format = schema.FORMAT  # of what is on disk
        self.version = 0
        self.config: dict[str, Any] = {}
        self.identity = ""  # random, assigned when the store is made; copies keep it
        self.retain_from_version: int | None = None  # the log keeps this one and later: not published yet
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
        """Open the store in a folder, or make one there.

        `config`: the JSON settings that stored clusters depend on: `collection`, `dim` (None: that of the
        first batch), `model`, `k`, `arithmetic`, ... A store made with other ones is refused (another
        `arithmetic` only makes it `stale`); None accepts any. `free_bytes`: what a commit leaves free on the
        disk. The event log forgets versions older than `events_max_age_ms` or beyond `events_max_bytes`, but
        never the newest, nor those from `retain_from_version` on.

        Raises StoreLocked, StoreFull, CorruptStore, ConfigMismatch.
        """
        folder = Path(path)
        limits = _Limits(free_bytes, events_max_bytes, events_max_age_ms)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = hold(folder)
        except OSError as error:
            raise unwritable(folder, error) from error
        environment = None
        try:
            _examine(folder)
            (folder / "unclean").touch()
            seal.breach(folder)
            files.sync(folder)
            environment = Environment.create(folder, map_bytes)
            store = cls(folder, environment, lock, limits)
            store._adopt(config)
            return store
        except BaseException as error:
            if environment is not None:
                environment.close()
            os.close(lock)
            if isinstance(error, lmdb.Error | OSError):
                raise unwritable(folder, error) from error
            raise

    def close(self) -> None:
        """Seal the store and release the lock. Everything committed is durable already."""
        if self._lock < 0:
            return
        self.environment.close()
        if not self._failed:
            seal.seal(self.path)
            with contextlib.suppress(OSError):  # the disk failed since: the next writer verifies all
                (self.path / "unclean").unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = -1

    def positions(self) -> dict[str, bytes]:
        """Return the next position of each source."""
        with self.snapshot() as tables:
            return dict(tables.positions.rows())

    def position(self, source: str) -> bytes | None:
        """Return the next position of a source; None if it was never read."""
        with self.snapshot() as tables:
            return tables.positions.get(source)

    def load(self) -> Loaded:
        """Read everything but history, bit for bit. Raises CorruptStore."""
        with self.snapshot() as tables:
            return load.load(tables)

    def load_to_rebuild(self) -> Loaded:
        """Load as `load`, also where the derived tables contradict each other. Raises CorruptStore."""
        with self.snapshot() as tables:
            return load.load_to_rebuild(tables)

    def incoming(self, items: Int64 | None = None) -> Int16:
        """Return the incoming vectors of these items (n,), which have them; None: of all, by rising id.

        Raises CorruptStore.
        """
        with self.snapshot() as tables:
            table = tables.incoming
            found = table.columns() if items is None else table.pick(items)
        if items is not None and len(found.ids) != len(items):
            raise CorruptStore("an item has no row in the table incoming; restore a backup")
        return found.vectors

    def rows(self, table: str) -> Iterator[schema.Row]:
        """Yield all rows of a table by rising key, bodies without checksums. Raises CorruptStore."""
        with self.snapshot() as tables:
            yield from tables.raw[table].rows()

    def commit(
        self,
        change: Change,
        config: Mapping[str, Any] | None = None,
        renumbered: Renumbered | None = None,
    ) -> int:
        """Make a change durable, atomically; return how many items have another payload and the same vector.

        With a `config` it is a new generation: its `lists`, `places` and `trees` are complete and replace the
        derived tables. `renumbered`: with another adapter, items have other nodes.

        Raises StoreFull, StoreError.
        """
        if self._failed:
            raise StoreError(f"{self.path}: the last commit failed; open the store again")
        assert change.version == self.version + 1, f"version {change.version} after {self.version}"
        self.check_room(change, renumbered is not None)
        kept = {**self.config, **(config or {}), "format": schema.FORMAT}
        if kept["dim"] is None:
            kept["dim"] = change.vectors.vectors.shape[1] if len(change.vectors.ids) else self.config["dim"]
        limits, before = self._limits, _bytes_written()

        def write(tables: Tables) -> int:
            if self.format == schema.REBUILT_FROM:
                upgrade(tables)
            if config is not None:
                commit.clear_derived(tables)
            if renumbered is not None:
                commit.renumber(tables, renumbered)
            updated = commit.apply(tables, change)
            commit.forget(
                tables, change, limits.events_max_bytes, limits.events_max_age_ms, self.retain_from_version
            )
            if self.stale or kept != self.config or self.format != schema.FORMAT:
                tables.meta.put_config(kept)
            return updated

        updated = self._transact(write)
        self.version, self.config, self.stale = change.version, kept, False
        self.format = schema.FORMAT
        self.bytes_written += _bytes_written() - before
        return updated

    @contextmanager
    def snapshot(self) -> Iterator[Tables]:
        """Open a read transaction. Thread-safe, also during a commit. Keep it short: it pins pages."""
        try:
            with self.environment.read() as tables:
                yield tables
        except CorruptStore:
            self._failed = True  # write nothing on top of damage
            raise

    def erase_mentions(self, key: bytes) -> int:
        """Erase a key from the event log; return the number of events it was in. Raises StoreError."""
        return self._transact(lambda tables: commit.erase_mentions(tables, key))

    def compact(self) -> Compacted:
        """Rewrite the file without unused pages; no other thread may write meanwhile.

        Raises StoreFull, CorruptStore; the store is then unchanged, or must be opened again.
        """
        file = self.path / DATA
        before, free = file.stat().st_size, shutil.disk_usage(self.path).free
        if free < before + self._limits.free_bytes:
            need = f"compaction needs {(before + self._limits.free_bytes) / 1e6:.1f} MB"
            raise StoreFull(f"{self.path}: {free / 1e6:.1f} MB are free on its disk, {need}; make room")
        scratch = self.path / compaction.SCRATCH
        try:
            with self.snapshot() as tables:
                anew = write_anew(tables, scratch, self.environment.map_bytes)
            self._failed = True  # until it is open again
            self.environment.replace_file(anew)
            self._failed = False
        except (lmdb.Error, OSError) as error:
            raise unwritable(self.path, error) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return Compacted(before, file.stat().st_size)

    def log_is_full(self) -> bool:
        """Return whether the event log exceeds its bound and may not forget anything yet."""
        if self.retain_from_version is None:
            return False
        with self.snapshot() as tables:
            size, oldest = tables.meta.log.bytes, next(tables.commits.rows(), None)
        held = oldest is not None and oldest[0] >= self.retain_from_version
        return held and size > self._limits.events_max_bytes

    def _adopt(self, config: Mapping[str, Any] | None) -> None:
        """Compare the configuration with the stored one, or store it."""
        with self.snapshot() as tables:
            stored, self.version = tables.meta.config, tables.meta.state.version
            self.identity = tables.meta.identity
        wanted = {"collection": "", "dim": None, **(config or stored or {}), "format": schema.FORMAT}
        if stored is None:
            self._make(wanted)
            return
        if config is None and stored.get("format") == schema.REBUILT_FROM:  # for a rebuild
            self.format = schema.REBUILT_FROM
            stored = {**stored, "format": schema.FORMAT}
        compare(self.path, stored, wanted)
        self.stale = stored.get(_RECOMPUTED) != wanted.get(_RECOMPUTED)
        self.config = {**stored, _RECOMPUTED: wanted.get(_RECOMPUTED)}

    def _make(self, config: dict[str, Any]) -> None:
        self.config, self.identity = config, uuid.uuid4().hex

        def make(tables: Tables) -> None:
            tables.meta.put_config(config)
            tables.meta.put_identity(self.identity)

        self._transact(make)

    def _transact(self, work: Callable[[Tables], T]) -> T:
        """Run work in a durable transaction. After a disk error, or on damage, refuse further writes."""
        try:
            return self.environment.write(work)
        except CorruptStore:
            self._failed = True
            raise
        except (lmdb.Error, OSError, StoreFull) as error:
            self._failed = True
            if isinstance(error, StoreFull):
                raise
            raise unwritable(self.path, error) from error

    def check_room(self, change: Change, everything: bool = False) -> None:
        """Raise StoreFull if a commit may not fit: LMDB reports a full disk late, as "Input/output error".

        `everything`: it rewrites all items.
        """
        items = change.upserts
        rows = change.vectors.vectors.nbytes + sum(map(len, items.payloads)) + change.lists.neighbors.nbytes
        rows += sum(map(len, items.keys)) + change.incoming.vectors.nbytes
        rows += (self.path / DATA).stat().st_size if everything else 0
        rows += sum(len(event.value or b"") for event in change.events if isinstance(event, DeadLetter))
        # Twice, because LMDB copies the pages that it changes and leaves pages half full when it splits them.
        need, free = 2 * rows + self._limits.free_bytes, shutil.disk_usage(self.path).free
        if free < need:
            raise StoreFull(
                f"{self.path}: {free / 1e6:.1f} MB are free on its disk, a commit needs {need / 1e6:.1f} MB; "
                "make room, then start again"
            )


def compare(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise ConfigMismatch if settings differ, naming them and what to do."""
    differ = _differing(stored, wanted)
    if not differ:
        return
    words = ", ".join(_told(name, *values) for name, values in differ.items())
    schema.require_format(path, stored)
    if differ.keys() & set(_ANOTHER_STORE):
        what = f"name another store, or set it back ({_settings_of(differ)})"
    else:
        back = _settings_of(differ)
        what = (
            f"set it back in the settings ({back}), or run `shoal rebuild` to make a new generation with it"
        )
    raise ConfigMismatch(f"{path} was made with {words}: {what}")


def changes(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what changes where other settings replace those of a store: `tau 0.6 -> 0.42`."""
    differ = _differing({name: stored.get(name) for name in wanted}, wanted)
    return tuple(f"{name} {_value(name, was)} -> {_value(name, now)}" for name, (was, now) in differ.items())


def _differing(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return each setting in which they differ. A dimension that one leaves open is none of them."""
    differ = {
        name: (stored.get(name), wanted.get(name))
        for name in sorted(stored.keys() | wanted.keys())
        if name != _RECOMPUTED and stored.get(name) != wanted.get(name)
    }
    if "dim" in differ and None in differ["dim"]:
        del differ["dim"]
    return differ


def _settings_of(differ: Mapping[str, tuple[Any, Any]]) -> str:
    """Return what the settings have to say for a store: `[model] tau = 0.6`."""
    return ", ".join(_setting_of(name, was) for name, (was, _) in differ.items())


def _setting_of(name: str, was: Any) -> str:
    if name in _ANOTHER_STORE:
        return (
            f"[collection] {'name' if name == 'collection' else name} = {json.dumps(was, ensure_ascii=False)}"
        )
    if name in ("model", "k"):
        return "[model] path = the file of its model"
    if was is None:
        return f"[model] without {name}"
    return f"[model] {name} = {'its file' if name == 'adapter' else was}"


def _told(name: str, was: Any, now: Any) -> str:
    if name == "adapter":
        held = f"the adapter {was[:16]}..." if was else "no adapter"
        return f"{held}, not {now[:16]}..." if now else f"{held}, and [model] adapter names none"
    if name == "base_tau":
        return f"base_tau {_value(name, was)}, not {_value(name, now)}"
    return f"{name} {was!r}, not {now!r}"


def _value(name: str, value: Any) -> str:
    if value is None:
        return "the model's" if name == "base_tau" else "none"
    return f"{value[:16]}..." if name in ("model", "adapter") else str(value)


def hold(folder: Path) -> int:
    """Take the writer's lock, which the system releases when the process ends. Raises StoreLocked."""
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
    # Only the command's name: its arguments may be keys.
    os.pwrite(lock, f"process {os.getpid()} ({' '.join(sys.argv[:2])[:120]})".encode(), 0)
    return lock


def _examine(folder: Path) -> None:
    """Raise CorruptStore unless the store is new, is sealed or, after a crash, every value verifies.

    Another process reads it: a damaged page can crash the reader.
    """
    if not (folder / DATA).exists():
        refuse_remains(folder)
        return
    if seal.is_sealed(folder) or not (folder / "unclean").exists():
        return
    try:
        isolation.call("engine.storage.verify.walk", folder)
    except CorruptStore as damage:
        raise CorruptStore(f"{folder} was not closed and is damaged: {damage}") from None


def _bytes_written() -> int:
    """Return how many bytes this process has written so far."""
    try:
        counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(counts["wchar"])
    except OSError:
        return 512 * resource.getrusage(resource.RUSAGE_SELF).ru_oublock
