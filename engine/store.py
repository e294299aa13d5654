"""The one writer of a store: a folder with an LMDB environment, which is the only truth.

    data.mdb, lock.mdb   LMDB's; the tables are those of `engine.schema`
    writer               locked (flock) by the process that writes, and says which one it is
    unclean              there while a writer has the store open; found at open, every value is read first

Invariants:
- one `Change` is one transaction: input positions, state and events become durable together or not at all;
- a version is committed once, and versions have no gaps;
- after an error of the disk nothing more is written: the store has to be opened again;
- what is read back has been compared with its checksum.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb
import numpy as np

from engine import schema, tables
from engine.errors import ConfigMismatch, CorruptStore, StoreError, StoreFull, StoreLocked
from engine.tables import Tables
from engine.types import Change, Cluster, Int64, Loaded

MAP_BYTES = 1 << 36
MAX_READERS = 126
DERIVED = ("lists", "places", "members", "trees", "cluster_trees")
_ANOTHER_STORE = ("collection", "dim")  # a rebuild does not mend a difference in these
_RECOMPUTED = "arithmetic"  # a difference in this is no reason to refuse: see `Store.stale`


@dataclass(frozen=True, slots=True)
class _Limits:
    free_bytes: int
    events_max_bytes: int
    events_max_age_ms: int


class Store:
    """A store open for writing. Not for more than one thread."""

    def __init__(self, path: Path, env: lmdb.Environment, lock: int, limits: _Limits) -> None:
        self.path, self.env = path, env
        self._lock, self._limits = lock, limits
        self.handles = {name: env.open_db(name.encode()) for name in schema.TABLES}
        self._failed = False
        self.version = 0
        self.config: dict[str, Any] = {}
        self.stale = False  # the arithmetic differs from the stored clusters'; commit what recomputing gives
        self.bytes_written = 0  # by commits, as the operating system counts them

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
        `events_max_bytes` are forgotten, never the newest.

        Raises StoreLocked, StoreFull, CorruptStore, ConfigMismatch.
        """
        folder = Path(path)
        limits = _Limits(free_bytes, events_max_bytes, events_max_age_ms)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _take(folder)
        except OSError as error:
            raise _unusable(folder, error) from error
        env = None
        try:
            if (folder / "unclean").exists() and (folder / "data.mdb").exists():
                _walk_elsewhere(folder)
            (folder / "unclean").touch()
            _sync_folder(folder)
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
        self.env.close()
        if not self._failed:
            (self.path / "unclean").unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = -1

    def position(self, source: str) -> bytes | None:
        """Where to go on reading a source."""
        with self.env.begin() as txn:
            return Tables(txn, self.handles).get("positions", source.encode())

    def load(self) -> Loaded:
        """Reads everything back, to the bit. Raises CorruptStore."""
        with self.env.begin() as txn:
            return tables.load(Tables(txn, self.handles))

    def rows(self, table: str) -> Iterator[schema.Row]:
        """All rows of a table in the order of keys, bodies without checksums. Raises CorruptStore."""
        with self.env.begin() as txn:
            yield from Tables(txn, self.handles).rows(table)

    def commit(self, change: Change) -> None:
        """Makes a change durable, all of it or nothing. Raises StoreFull, StoreError."""
        self._write(change, None)

    def replace(self, change: Change, config: Mapping[str, Any]) -> None:
        """Puts a new generation in place: `lists`, `moved` and `trees` of the change are complete."""
        self._write(change, config)

    def _adopt(self, config: Mapping[str, Any] | None) -> None:
        """Compares the configuration with the stored one, or stores it."""
        with self.env.begin() as txn:
            found = Tables(txn, self.handles)
            stored, state = found.json("config"), found.json("state") or {}
        self.version = int(state.get("version", 0))
        wanted = {"collection": "", "dim": None, **(config or stored or {}), "format": schema.FORMAT}
        if stored is None:
            with self.env.begin(write=True) as txn:
                Tables(txn, self.handles).put("meta", b"config", schema.dump_json(wanted))
            self.config = wanted
            return
        _compare(self.path, stored, wanted)
        self.stale = stored.get(_RECOMPUTED) != wanted.get(_RECOMPUTED)
        self.config = {**stored, _RECOMPUTED: wanted.get(_RECOMPUTED)}

    def _write(self, change: Change, config: Mapping[str, Any] | None) -> None:
        if self._failed:
            raise StoreError(f"{self.path}: the last commit failed; open the store again")
        assert change.version == self.version + 1, f"version {change.version} after {self.version}"
        self._check_room(change)
        kept = {**self.config, **(config or {}), "format": schema.FORMAT}
        if kept["dim"] is None and len(change.upserts.ids):
            kept["dim"] = change.upserts.vectors.shape[1]
        before = _bytes_written()
        while True:
            try:
                with self.env.begin(write=True) as txn:
                    found = Tables(txn, self.handles)
                    for table in DERIVED if config is not None else ():
                        found.clear(table)
                    _apply(found, change)
                    _write_history(found, change, self._limits)
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

    def _check_room(self, change: Change) -> None:
        """LMDB reports a full disk as "Input/output error", when it is too late for words."""
        items = change.upserts
        rows = items.vectors.nbytes + sum(map(len, items.payloads)) + change.lists.neighbors.nbytes
        need, free = 2 * rows + self._limits.free_bytes, shutil.disk_usage(self.path).free
        if free < need:
            raise StoreFull(
                f"{self.path}: {free / 1e6:.0f} MB are free on its disk, a commit needs {need / 1e6:.0f} MB; "
                "make room, then start again"
            )

    def _grow(self) -> None:
        """Doubles the map; no transaction is open here, and none of ours elsewhere in the process."""
        size = 2 * self.env.info()["map_size"]
        try:
            self.env.set_mapsize(size)
        except (lmdb.Error, OSError) as error:
            self._failed = True
            raise StoreFull(f"{self.path}: no address space for a map of {size / 1e9:.1f} GB") from error


def _apply(found: Tables, change: Change) -> None:
    """The state of the new version; each table in the order of its keys."""
    state = found.json("state") or {"counters": {}}
    _write_items(found, change, int(state["counters"].get("next_item", 1)))
    order = np.argsort(change.lists.ids)
    lists = replace(
        change.lists,
        ids=change.lists.ids[order],
        neighbors=change.lists.neighbors[order],
        dots=change.lists.dots[order],
    )
    found.put_rows("lists", schema.u64_keys(lists.ids), schema.list_bodies(lists))
    _write_places(found, *change.moved)
    for handle, path in sorted(change.trees.items()):
        _write_tree(found, handle, path)
    for cluster in sorted(change.clusters, key=lambda cluster: cluster.id):
        _write_cluster(found, cluster)
    for source, position in sorted(change.positions.items()):
        found.put("positions", source.encode(), position)
    epoch = [change.epoch.mean, change.epoch.deviation, change.epoch.items]
    state = {"version": change.version, "time_ms": change.time_ms, "epoch": epoch}
    found.put("meta", b"state", schema.dump_json(state | {"counters": dict(change.counters)}))


def _write_items(found: Tables, change: Change, next_item: int) -> None:
    """Items from `next_item` on have keys that are new."""
    items = change.upserts
    order = np.argsort(items.ids)
    keys, bodies = schema.u64_keys(items.ids), schema.item_bodies(items)
    found.put_rows("items", [keys[i] for i in order.tolist()], [bodies[i] for i in order.tolist()])
    fresh = np.flatnonzero(items.ids >= next_item).tolist()
    numbers = schema.number_bodies(items.ids)
    names = sorted((items.keys[i], numbers[i]) for i in fresh)
    found.put_rows("keys", [name for name, _ in names], [number for _, number in names])
    for item, key in sorted(change.removed):
        found.delete_all("items", [schema.u64(item)])
        found.delete("lists", schema.u64(item))
        found.delete_all("keys", [key])


def _write_places(found: Tables, ids: Int64, before: Int64, after: Int64) -> None:
    order = np.argsort(ids)
    ids, before, after = ids[order], before[order], after[order]
    here, gone, left = after > 0, after == 0, before > 0
    found.put_rows("places", schema.u64_keys(ids[here]), schema.number_bodies(after[here]))
    found.delete_all("places", schema.u64_keys(ids[gone & left]))
    found.delete_all("members", sorted(schema.pair_keys(before[left], ids[left])))
    found.put_keys("members", sorted(schema.pair_keys(after[here], ids[here])))


def _write_tree(found: Tables, handle: int, path: tuple[int, ...]) -> None:
    key = schema.u64(handle)
    before = schema.read_ids(found.get("trees", key) or b"")
    for cluster in before:
        if cluster not in path:
            found.delete_all("cluster_trees", [schema.pair(cluster, handle)])
    for cluster in path:
        if cluster not in before:
            found.put("cluster_trees", schema.pair(cluster, handle))
    if path:
        found.put("trees", key, schema.ids_body(path))
    elif before:
        found.delete("trees", key)


def _write_cluster(found: Tables, cluster: Cluster) -> None:
    key = schema.u64(cluster.id)
    body = found.get("clusters", key)
    if body is not None:
        before = schema.read_cluster(key, body)
        if not before.parent:
            found.delete_all("sizes", [schema.size_key(before.size, before.id)])
    found.put("clusters", key, schema.cluster_body(cluster))
    if cluster.ended:
        found.put("endings", schema.pair(cluster.ended, cluster.id))
    elif not cluster.parent:
        found.put("sizes", schema.size_key(cluster.size, cluster.id))


def _write_history(found: Tables, change: Change, limits: _Limits) -> None:
    """The version's events; then the oldest versions go while the log is beyond its bounds."""
    keys = [schema.event_key(change.version, ordinal) for ordinal in range(len(change.events))]
    bodies = [schema.event_body(event) for event in change.events]
    found.put_rows("events", keys, bodies)
    size = sum(map(len, bodies))
    found.put("commits", schema.u64(change.version), schema.commit_body(change.time_ms, len(keys), size))
    log = found.json("log") or {"bytes": 0}
    total = log["bytes"] + size
    for key, body in list(_leading(found, change, limits, total)):
        version = schema.read_u64(key)
        _, events, forgotten = schema.read_commit(body)
        found.delete_all("events", [schema.event_key(version, ordinal) for ordinal in range(events)])
        for ending, _ in list(found.rows("endings", prefix=key)):
            found.delete_all("clusters", [ending[8:]])
            found.delete_all("endings", [ending])
        found.delete_all("commits", [key])
        total -= forgotten
    found.put("meta", b"log", schema.dump_json({"bytes": total}))


def _leading(found: Tables, change: Change, limits: _Limits, total: int) -> Iterator[schema.Row]:
    """The oldest commits that are beyond the bounds, never the newest."""
    for key, body in found.rows("commits"):
        time_ms, _, size = schema.read_commit(body)
        late = time_ms < change.time_ms - limits.events_max_age_ms
        if schema.read_u64(key) == change.version or not (late or total > limits.events_max_bytes):
            return
        total -= size
        yield key, body


def _compare(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
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


def _take(folder: Path) -> int:
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
    os.pwrite(lock, f"process {os.getpid()} ({' '.join(sys.argv)[:120]})".encode(), 0)
    return lock


def _environment(folder: Path, map_bytes: int) -> lmdb.Environment:
    """Durable at each commit, never a writable map: on a full disk that kills the process."""
    size = max(map_bytes, 2 * ((folder / "data.mdb").stat().st_size if (folder / "data.mdb").exists() else 0))
    env = lmdb.open(os.fspath(folder), map_size=size, max_dbs=len(schema.TABLES), max_readers=MAX_READERS)
    env.reader_check()
    return env


def _walk_elsewhere(folder: Path) -> None:
    """Reads a store that was not closed in another process: a broken page can end the one that reads it."""
    root = Path(__file__).resolve().parent.parent
    script = "import sys; sys.path.insert(0, sys.argv[2]); from engine.store import walk; walk(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", script, os.fspath(folder), os.fspath(root)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        told = done.stderr.strip().splitlines()[-1:] or [f"reading it ended with status {done.returncode}"]
        reason = told[0].removeprefix("engine.errors.CorruptStore: ")
        raise CorruptStore(f"{folder} was not closed and is damaged: {reason}")


def _unusable(folder: Path, error: Exception) -> StoreError:
    """An error of the disk in words."""
    code = getattr(error, "errno", None) or getattr(error, "code", None)
    words = str(error)
    if isinstance(
        error, lmdb.CorruptedError | lmdb.InvalidError | lmdb.PageNotFoundError | lmdb.VersionMismatchError
    ):
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


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _bytes_written() -> int:
    """Handed to the disk by this process so far."""
    try:
        counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(counts["wchar"])
    except OSError:
        return 512 * resource.getrusage(resource.RUSAGE_SELF).ru_oublock


def walk(path: str | os.PathLike[str]) -> int:
    """Compares every value of a store with its checksum; returns how many there are. Raises CorruptStore."""
    env = lmdb.open(os.fspath(path), max_dbs=len(schema.TABLES), readonly=True, lock=False, create=False)
    try:
        with env.begin() as txn:
            count = 0
            for name in schema.TABLES:
                table = env.open_db(name.encode(), txn, create=False)
                count += schema.verify((name, key, value) for key, value in txn.cursor(table))
                assert txn.stat(table)["entries"] >= 0
            return count
    except lmdb.NotFoundError:
        return 0  # the writer was stopped before its first transaction
    except lmdb.Error as error:
        raise CorruptStore(f"{path}: {error}; restore a backup") from error
    finally:
        env.close()
