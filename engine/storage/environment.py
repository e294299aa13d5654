"""The LMDB environment of a store: opened, read and written only here.

Three things change under open transactions and are handled here: a writer whose map is full makes it larger,
a reader follows, and a compaction puts another file in the store's place. Each waits until this process
has no transaction open. LMDB must not be opened twice in a process: whoever reads where a writer is at work
shares its environment.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from engine.errors import CorruptStore, NoStore, StoreError, StoreFull
from engine.storage import schema
from engine.storage.tables import Tables
from engine.system import files, isolation

DATA, LOCK = "data.mdb", "lock.mdb"
MAP_BYTES = 1 << 36  # address space, neither memory nor disk
MAX_READERS = 126  # read transactions open at once, over all processes
DAMAGE = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
    lmdb.BadDbiError,
    lmdb.IncompatibleError,
    lmdb.CursorFullError,
    lmdb.PageFullError,
)
_REMAINS = (LOCK, "closed", "index-*.hnsw", "derived-*.npz")  # never there before DATA is
_META = struct.Struct("=16x8s16xI92xQQ")  # of LMDB's: magic and format, page size, last page, transaction
_MAGIC = struct.pack("=II", 0xBEEFC0DE, 1)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
T = TypeVar("T")
Files = tuple[int, int] | None


class Environment:
    """An open store. Any thread may read; one thread of one process writes."""

    def __init__(self, folder: Path, map_bytes: int, writable: bool) -> None:
        self.folder, self.writable, self._map_bytes = folder, writable, map_bytes
        self._gate, self._active = threading.Condition(), 0  # open read transactions
        self._changing = self._closed = False
        self._files = _files(folder)
        self._env, self._handles = (_open_to_write if writable else _open_to_read)(folder, map_bytes)

    @classmethod
    def create(cls, folder: Path, map_bytes: int = MAP_BYTES) -> Environment:
        """Open a store for its writer, and make its file where there is none. Raises lmdb.Error, OSError."""
        if not (folder / DATA).exists():
            _make_file(folder)
        return cls(folder, map_bytes, writable=True)

    @classmethod
    def attach(cls, folder: Path, map_bytes: int = MAP_BYTES) -> Environment:
        """Open a store to read it, also while another process writes it. Raises NoStore, CorruptStore,
        StoreError.
        """
        return cls(folder, map_bytes, writable=False)

    def close(self) -> None:
        """Wait for the open read transactions, then close the file."""
        with self._alone():
            if not self._closed:
                self._closed = True
                self._env.close()

    @contextmanager
    def read(self) -> Iterator[Tables]:
        """Open a read transaction. Thread-safe, also during a commit. Keep it short: it pins pages.

        Raises StoreError (all reader slots are taken), CorruptStore.
        """
        txn = self._begin()
        try:
            yield Tables(txn, self._handles)
        except lmdb.Error as error:
            raise unreadable(self.folder, error) from error
        finally:
            with self._gate:
                txn.abort()
                self._active -= 1
                self._gate.notify_all()

    def write(self, work: Callable[[Tables], T]) -> T:
        """Run `work` in a write transaction, again with a larger map where the map was too small.

        Only in the writer's thread, without a read transaction of its own. Raises lmdb.Error, OSError,
        StoreFull (no address space); then nothing of it was kept.
        """
        while True:
            try:
                with self._env.begin(write=True) as txn:
                    return work(Tables(txn, self._handles))
            except lmdb.MapFullError:
                self._grow()

    def replace_file(self, file: Path) -> None:
        """Put another file in the store's place and open it. Raises lmdb.Error, OSError.

        It gets a lock file of its own: LMDB counts its transactions from the beginning.
        """
        map_bytes = self.map_bytes
        with self._alone():
            self._closed = True  # and it stays so where something fails
            self._env.close()
            files.put_in_place(file, self.folder / DATA)
            (self.folder / LOCK).unlink(missing_ok=True)
            files.sync(self.folder)
            self._env, self._handles = _open_to_write(self.folder, map_bytes)
            self._closed = False

    def copy(self, folder: Path) -> None:
        """Write LMDB's compacted copy of the last version into a folder. Raises lmdb.Error, OSError."""
        self._env.copy(os.fspath(folder), compact=True)

    def check_readers(self) -> int:
        """Free the reader slots of processes that died; return how many."""
        return int(self._env.reader_check())

    @property
    def map_bytes(self) -> int:
        """The size of the map, which bounds the file."""
        return int(self._env.info()["map_size"])

    @property
    def transaction(self) -> int:
        """LMDB's number of the last committed transaction; a compacted file counts from the beginning."""
        return int(self._env.info()["last_txnid"])

    def oldest_reader(self) -> int | None:
        """Return the transaction that the oldest open read transaction of any process sees; None: none is."""
        rows = (line.split() for line in self._env.readers().splitlines()[1:])
        return min((int(row[2]) for row in rows if len(row) == 3 and row[2].isdigit()), default=None)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no read transaction is open, and let none begin."""
        with self._gate:
            self._gate.wait_for(lambda: not self._changing)
            self._changing = True
            try:
                self._gate.wait_for(lambda: self._active == 0)
                yield
            finally:
                self._changing = False
                self._gate.notify_all()

    def _begin(self) -> lmdb.Transaction[bytes]:
        with self._gate:
            self._gate.wait_for(lambda: not self._changing)
            if self._closed:
                raise StoreError(f"{self.folder} is closed; reopen the store")
            try:
                if not self.writable:
                    self._follow()
                try:
                    txn = self._env.begin()
                except lmdb.MapResizedError:  # the writer made the map larger
                    with self._alone():
                        self._env.set_mapsize(0)
                    txn = self._env.begin()
            except lmdb.Error as error:
                raise unreadable(self.folder, error) from error
            self._active += 1
            return txn

    def _follow(self) -> None:
        """Open the file that compaction has put in the place of the one that is open."""
        if _files(self.folder) in (None, self._files):
            return
        with self._alone():
            self._files = _files(self.folder)
            self._env.close()
            self._env, self._handles = _open_to_read(self.folder, self._map_bytes)

    def _grow(self) -> None:
        """Double the map. Raises StoreFull."""
        size = 2 * self.map_bytes
        with self._alone():
            try:
                self._env.set_mapsize(size)
            except (lmdb.Error, OSError) as error:
                raise StoreFull(
                    f"{self.folder}: no address space for a map of {size / 1e9:.1f} GB: raise `ulimit -v`, "
                    "or lower [limits] map_size_bytes"
                ) from error


@contextmanager
def reading(path: str | os.PathLike[str], lock: bool) -> Iterator[Tables | None]:
    """Open one version of a store just once; None while it has none.

    `lock`: others may be writing it. Not within a process that has the store open. Raises CorruptStore,
    StoreError.
    """
    folder = Path(path)
    _need_whole(folder)
    try:
        env = lmdb.open(os.fspath(path), max_dbs=len(schema.TABLES), readonly=True, lock=lock, create=False)
        with env, env.begin() as txn:
            if not txn.stat()["entries"]:
                yield None  # the writer was stopped before its first transaction
                return
            yield Tables(txn, _handles(env, txn, create=False))
    except lmdb.Error as error:
        raise unreadable(folder, error) from error


@contextmanager
def reading_made(folder: Path) -> Iterator[tuple[Tables, dict[str, Any]]]:
    """Open one version of a store that others may be writing; yield its tables and its configuration.

    Not within a process that has the store open. Raises NoStore, CorruptStore, StoreError.
    """
    require_file(folder)
    with reading(folder, lock=True) as tables:
        if tables is None or (config := tables.meta.config) is None:
            raise not_made(folder)
        yield tables, config


def require_file(folder: Path) -> None:
    """Raise NoStore where a folder has no store's file, CorruptStore where it has lost it."""
    if not (folder / DATA).is_file():
        refuse_remains(folder)
        raise NoStore(
            f"there is no store in {folder}; name another, or make one with `shoal ingest` or `shoal serve`"
        )


def remains(folder: Path) -> Path | None:
    """Return a file, other than the database, that only a store leaves; None: there is none."""
    return next((file for name in _REMAINS for file in folder.glob(name)), None)


def refuse_remains(folder: Path) -> None:
    """Raise CorruptStore where a folder without a store's file holds what only a store leaves."""
    if found := remains(folder):
        raise CorruptStore(
            f"{folder} is damaged: it has lost its {DATA}, {found.name} is still there; restore a backup, or "
            "delete the folder to start over"
        )


def not_made(folder: Path) -> NoStore:
    """Return the error to raise where a store has a file and no version yet."""
    return NoStore(f"{folder} holds no store yet; `shoal ingest` or `shoal serve` makes one")


@contextmanager
def scratch(folder: Path, map_bytes: int) -> Iterator[Callable[[Callable[[Tables], None]], None]]:
    """Make an environment in an empty folder; yield a function that runs work in one transaction of it.

    It is durable when the block ends, not at each transaction. Raises StoreFull, CorruptStore.
    """
    try:
        with lmdb.open(os.fspath(folder), map_size=map_bytes, max_dbs=len(schema.TABLES), sync=False) as env:
            with env.begin(write=True) as txn:
                handles = _handles(env, txn, create=True)

            def write(work: Callable[[Tables], None]) -> None:
                with env.begin(write=True) as txn:
                    work(Tables(txn, handles))

            yield write
            env.sync(True)
        files.sync(folder / DATA)
    except (lmdb.Error, OSError) as error:
        raise unwritable(folder.parent, error) from error


def unreadable(folder: Path, error: Exception) -> StoreError:
    """Return the error to raise where a store cannot be read."""
    if isinstance(error, lmdb.ReadersFullError):
        return StoreError(
            f"{folder}: all {MAX_READERS} reader slots are taken; end programs that have the store open, "
            "then try again"
        )
    if error_code(error) == errno.ENOMEM:
        return StoreFull(
            f"{folder}: memory or address space is short ({error}): end other programs, or allow this one "
            "more (ulimit -v), then start again"
        )
    if _is_refused(error):
        return StoreError(
            f"{folder} cannot be read ({error}): readers write its {LOCK}, too; run this as the user who "
            "writes the store, or give this one the right to write there"
        )
    return CorruptStore(f"{folder} is damaged ({error}); restore a backup")


def unwritable(folder: Path, error: Exception) -> StoreError:
    """Return the error to raise where a store cannot be opened to write, or a write failed."""
    code = error_code(error)
    if code == errno.ENOMEM or isinstance(error, (*DAMAGE, lmdb.ReadersFullError)):
        return unreadable(folder, error)
    if _is_refused(error):
        return StoreFull(f"{folder} cannot be written ({error}); make it writable, then start again")
    if isinstance(error, FileExistsError | NotADirectoryError):
        return StoreError(f"{folder} is not a folder; name another store")
    free = shutil.disk_usage(folder).free / 1e6 if folder.exists() else 0.0
    return StoreFull(
        f"{folder}: the disk refused a write ({error}; {free:.0f} MB free); nothing of it was kept: "
        "make room or repair the disk, then start again"
    )


def _is_refused(error: Exception) -> bool:
    """Whether this user may not do it, or nobody."""
    return error_code(error) in _REFUSED or isinstance(error, lmdb.ReadonlyError)


def error_code(error: Exception) -> int | None:
    """Return the number of the system's error, which LMDB has under another name."""
    return getattr(error, "errno", None) or getattr(error, "code", None)


def _open_to_write(folder: Path, map_bytes: int) -> tuple[lmdb.Environment, dict[str, Any]]:
    """Durable at each commit, never a writable map: on a full disk that kills the process."""
    _need_whole(folder)
    size = max(map_bytes, 2 * (folder / DATA).stat().st_size)
    env = lmdb.open(os.fspath(folder), map_size=size, max_dbs=len(schema.TABLES), max_readers=MAX_READERS)
    try:
        env.reader_check()
        with env.begin(write=True) as txn:  # all tables or none
            return env, _handles(env, txn, create=True)
    except BaseException:
        env.close()
        raise


def _open_to_read(folder: Path, map_bytes: int) -> tuple[lmdb.Environment, dict[str, Any]]:
    _need_whole(folder)
    try:
        env = lmdb.open(
            os.fspath(folder),
            map_size=map_bytes,
            max_dbs=len(schema.TABLES),
            max_readers=MAX_READERS,
            readonly=True,
            create=False,
        )
    except (*DAMAGE, lmdb.ReadersFullError, lmdb.MemoryError) as error:
        raise unreadable(folder, error) from error
    except lmdb.Error as error:
        if _is_refused(error):
            raise unreadable(folder, error) from error
        raise StoreError(f"{folder} cannot be read ({error})") from error
    try:
        env.reader_check()
        return env, _handles(env, None, create=False)
    except BaseException as error:
        env.close()
        if isinstance(error, lmdb.NotFoundError):  # a writer is just making it
            raise not_made(folder) from error
        if isinstance(error, lmdb.Error):
            raise unreadable(folder, error) from error
        raise


def _need_whole(folder: Path) -> None:
    """Raise CorruptStore where the end of the file is missing: reading a missing page raises SIGBUS.

    LMDB does not write free pages, so a whole file may be short too; another process reads what is in use.
    """
    if not _is_short(folder / DATA):
        return
    try:
        isolation.call("engine.storage.environment.read_pages", folder)
    except CorruptStore:
        raise CorruptStore(f"{folder} is damaged: the end of {DATA} is missing; restore a backup") from None


def _is_short(file: Path) -> bool:
    """Return whether a file ends before the last page of its newest version. Another's is left to LMDB."""
    try:
        with file.open("rb") as data:
            first = data.read(_META.size)
            if len(first) < _META.size:
                return True
            magic, page_size, *_ = _META.unpack(first)
            if magic != _MAGIC:
                return False
            data.seek(page_size)
            second = data.read(_META.size)  # each of the first two pages describes a version
            length = os.fstat(data.fileno()).st_size  # a writer only adds to it
    except OSError:
        return False
    if len(second) < _META.size:
        return True
    last: int = max(map(_META.unpack, (first, second)), key=lambda meta: meta[3])[2]
    return length < (last + 1) * int(page_size)


def read_pages(folder: str) -> int:
    """Read all pages in use; `_need_whole` runs it in a process of its own. Raises as `reading`."""
    lock = (Path(folder) / LOCK).exists()  # others may be writing it
    try:
        env = lmdb.open(folder, max_dbs=len(schema.TABLES), readonly=True, lock=lock, create=False)
        with env, open(os.devnull, "wb") as sink:
            env.copyfd(sink.fileno(), compact=True)
    except lmdb.Error as error:
        raise unreadable(Path(folder), error) from error
    return 0


def _handles(env: lmdb.Environment, txn: lmdb.Transaction[bytes] | None, create: bool) -> dict[str, Any]:
    """Open all tables. Handles of a read transaction are valid only there; with None, until `env` closes."""
    handles = {}
    for name in schema.TABLES:
        try:
            handles[name] = env.open_db(name.encode(), txn, create=create)
        except lmdb.NotFoundError:
            if name not in schema.ADDED:
                raise
    return handles


def _make_file(folder: Path) -> None:
    """Create data.mdb atomically: LMDB does not wait until a new file's first pages are durable."""
    temporary = folder / "data.new"
    temporary.unlink(missing_ok=True)
    lmdb.open(os.fspath(temporary), subdir=False, lock=False).close()
    files.put_in_place(temporary, folder / DATA)


def _files(folder: Path) -> Files:
    """Return the inodes of a store's files; None: the writer is replacing them right now."""
    try:
        return os.stat(f"{folder}/{DATA}").st_ino, os.stat(f"{folder}/{LOCK}").st_ino
    except FileNotFoundError:
        return None
