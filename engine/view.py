"""Reads a store, also while another process writes it. Each answer is of one version, and says which.

Answers are JSON-ready. `level` asks for another granularity than the final clusters: 0 is the finest, a
level beyond the top is the final one. Pages go on with the `cursor` of the one before, null at the end; a
later page may be of a later version. Transactions last as long as one answer: a reader that stays open
keeps the writer from using pages again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from threading import Condition
from types import TracebackType
from typing import Any

import lmdb
import numpy as np
import orjson

from engine import schema
from engine.errors import CorruptStore, InputError, NoStore, StoreError
from engine.tables import Tables
from engine.types import Clusters

MAP_BYTES = 1 << 36
MAX_READERS = 126
MAX_PAGE = 10_000
Answer = dict[str, Any]


class View:
    """A store open for reading. Any number of threads may ask.

    Within the process that writes the store, use `View.beside`, in the writer's thread: LMDB must
    not be opened twice, and the writer may change the map between transactions.
    """

    def __init__(self, env: lmdb.Environment, handles: Mapping[str, Any], path: str, owned: bool) -> None:
        self._env, self._path, self._owned = env, path, owned
        self._gate, self._active = Condition(), 0  # the map changes only while no transaction is open
        self._sizes: tuple[int, list[Answer]] = (-1, [])  # version and summary of each level
        self._handles = dict(handles)
        try:
            with env.begin() as txn:
                config = Tables(txn, self._handles).json("config")
        except lmdb.Error as error:
            raise CorruptStore(f"{path} is damaged ({error}); restore a backup") from error
        if config is None:
            raise NoStore(f"{path} holds no store yet; `shoal ingest` makes one")
        if config.get("format") != schema.FORMAT:
            raise StoreError(
                f"{path} has format {config.get('format')}, this release reads {schema.FORMAT}; "
                "use the release that made it"
            )
        self.collection = str(config.get("collection") or "")

    @classmethod
    def open(cls, path: str | os.PathLike[str], map_bytes: int = MAP_BYTES) -> View:
        """`map_bytes`: as the writer's. Raises NoStore, CorruptStore, StoreError."""
        name = os.fspath(path)
        if not (Path(name) / "data.mdb").is_file():
            raise NoStore(f"there is no store in {name}; name another, or make one with `shoal ingest`")
        try:
            env = lmdb.open(
                name,
                map_size=map_bytes,
                max_dbs=len(schema.TABLES),
                max_readers=MAX_READERS,
                readonly=True,
                create=False,
            )
        except (lmdb.CorruptedError, lmdb.InvalidError, lmdb.VersionMismatchError) as error:
            raise CorruptStore(f"{name} is damaged ({error}); restore a backup") from error
        except lmdb.Error as error:
            raise StoreError(f"{name} cannot be read ({error})") from error
        try:
            env.reader_check()
            handles = {table: env.open_db(table.encode(), create=False) for table in schema.TABLES}
            return cls(env, handles, name, owned=True)
        except BaseException as error:
            env.close()
            if isinstance(error, lmdb.NotFoundError):  # a writer is just making it
                raise NoStore(f"{name} holds no store yet; `shoal ingest` makes one") from error
            if isinstance(error, lmdb.Error):
                raise CorruptStore(f"{name} is damaged ({error}); restore a backup") from error
            raise

    @classmethod
    def beside(cls, env: lmdb.Environment, handles: Mapping[str, Any]) -> View:
        """A view within the writer's process: `View.beside(store.env, store.handles)`."""
        return cls(env, handles, env.path(), owned=False)

    def __enter__(self) -> View:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._owned:
            self._env.close()

    @property
    def version(self) -> int:
        with self._snapshot() as found:
            return found.version

    def check_readers(self) -> int:
        """Frees the places of readers that died; returns how many."""
        return int(self._env.reader_check())

    def summary(self) -> Answer:
        """What the store holds."""
        with self._snapshot() as found:
            oldest = found.tables.first("commits")
            return self._answer(
                found,
                items=found.tables.count("items"),
                clusters=found.tables.count("sizes"),
                levels=found.levels,
                time=found.time_ms,
                epoch=found.epoch,
                changes_from=schema.read_u64(oldest[0]) if oldest else 0,
            )

    def levels(self) -> Answer:
        """How many clusters each level has, and how many of them have one item; finest first."""
        with self._snapshot() as found:
            version, sizes = self._sizes
            if version != found.version:
                sizes = _measure_levels(found)
                self._sizes = (found.version, sizes)
            return self._answer(found, levels=sizes)

    def item(self, key: str | bytes, level: int | None = None) -> Answer:
        """An item and where it is. Raises InputError: there is none under this key."""
        with self._snapshot() as found:
            name = key.encode() if isinstance(key, str) else key
            number = found.tables.get("keys", name) if 0 < len(name) <= schema.MAX_KEY_BYTES else None
            if number is None:
                raise InputError(f"no item has the key {name.decode(errors='backslashreplace')!r}")
            row = schema.u64(schema.read_number(number))
            record = schema.read_items([row], [found.need("items", row)])
            tree = schema.read_number(found.need("places", row))
            path = schema.read_ids(found.need("trees", schema.u64(tree)))
            return self._answer(
                found,
                key=record.keys[0].decode(),
                cluster=found.at_level(path, level),
                path=list(path),
                time=int(record.times[0]),
                payload=orjson.loads(record.payloads[0]) if record.payloads[0] else None,
                updated=int(record.versions[0]),
            )

    def clusters(
        self, level: int | None = None, order: str = "size", cursor: str | None = None, limit: int = 100
    ) -> Answer:
        """The clusters of a level, largest first (`order` "size") or by rising id ("id")."""
        if order not in ("size", "id"):
            raise InputError(f"clusters are ordered by 'size' or by 'id', not by {order!r}")
        with self._snapshot() as found:
            if order == "size" and (level is None or level >= found.levels - 1):
                start = schema.size_key(*_cursor(cursor, 2)) if cursor else b""
                keys = found.tables.rows("sizes", start)
                page: Iterator[Answer] = (found.cluster(schema.read_size_key(key)[1]) for key, _ in keys)
            else:
                page = _clusters_at(found, level, order, cursor)
            rows, following = _page(page, limit)
            place = (following["size"], following["cluster"]) if following else ()
            after = "-".join(map(str, place if order == "size" else place[1:])) or None
            return self._answer(found, clusters=rows, cursor=after)

    def cluster(self, cluster: int) -> Answer:
        """A cluster, its next finer ones, and what became of it if it ended. Raises InputError."""
        with self._snapshot() as found:
            record = found.cluster(cluster)
            finer: dict[int, None] = {}
            for tree in islice(found.trees(cluster), MAX_PAGE):
                path = schema.read_ids(found.need("trees", schema.u64(tree)))
                below = path.index(cluster) + 1
                finer |= dict.fromkeys(path[below : below + 1])
            return self._answer(found, **record, children=sorted(finer))

    def members(self, cluster: int, cursor: str | None = None, limit: int = 100) -> Answer:
        """The items of a cluster, tree by tree. Raises InputError."""
        with self._snapshot() as found:
            record = found.cluster(cluster)
            start = _cursor(cursor, 2) if cursor else (0, 0)
            rows, following = _page(_members(found, cluster, *start), limit)
            after = f"{following['tree']}-{following['item']}" if following else None
            items = []
            for row in rows:
                key = schema.u64(row["item"])
                item = schema.read_items([key], [found.need("items", key)])
                items.append({"key": item.keys[0].decode(), "time": int(item.times[0]), "tree": row["tree"]})
            return self._answer(found, cluster=cluster, size=record["size"], items=items, cursor=after)

    def changes(self, after: tuple[int, int] | None = None, limit: int = 100) -> Answer:
        """Events behind `after` (version, ordinal), oldest first; None: from the oldest there is.

        `cursor` names the last one given, to go on from, also when there are none. `gap`: events between
        `after` and the first one here were forgotten.
        """
        version, ordinal = after or (0, -1)
        if not (0 <= version < 2**63 and -1 <= ordinal < 2**31):
            raise InputError(f"{version}-{ordinal} is no place in the log")
        with self._snapshot() as found:
            oldest = found.tables.first("commits")
            gap = after is not None and oldest is not None and version + 1 < schema.read_u64(oldest[0])
            rows = found.tables.rows("events", schema.event_key(version, ordinal + 1))
            events = [
                schema.read_event(self.collection, key, body) for key, body in islice(rows, _bound(limit))
            ]
            last = events[-1]["event-id"] if events else f"{version}-{ordinal}"
            return self._answer(found, changes=events, cursor=last if events or after else None, gap=gap)

    def _answer(self, found: _Snapshot, **fields: Any) -> Answer:
        return {"collection": self.collection, "version": found.version, **fields}

    @contextmanager
    def _snapshot(self) -> Iterator[_Snapshot]:
        with self._gate:
            try:
                txn = self._env.begin()
            except lmdb.MapResizedError:  # the writer made the map larger
                self._gate.wait_for(lambda: self._active == 0)
                self._env.set_mapsize(0)
                txn = self._env.begin()
            except lmdb.ReadersFullError as error:
                raise StoreError(f"{self._path} has {MAX_READERS} readers already; try again") from error
            self._active += 1
        try:
            yield _Snapshot(txn, self._handles)
        except lmdb.Error as error:
            raise CorruptStore(f"{self._path} is damaged ({error}); restore a backup") from error
        finally:
            with self._gate:
                txn.abort()
                self._active -= 1
                self._gate.notify_all()


class _Snapshot:
    """One version of the store, for as long as the block lasts."""

    def __init__(self, txn: lmdb.Transaction[bytes], handles: dict[str, Any]) -> None:
        self.tables = Tables(txn, handles)
        state = self.tables.json("state") or {}
        self.version = int(state.get("version", 0))
        self.time_ms = int(state.get("time_ms", 0))
        self.epoch = state.get("epoch")
        self.levels = int(state.get("counters", {}).get("levels", 1))

    def need(self, table: str, key: bytes) -> bytes:
        body = self.tables.get(table, key)
        if body is None:
            raise CorruptStore(
                f"table {table}, key {schema.show_key(table, key)} is missing; restore a backup"
            )
        return body

    def cluster(self, cluster: int) -> Answer:
        key = schema.u64(cluster) if 0 < cluster < 2**63 else b""
        body = self.tables.get("clusters", key) if key else None
        if body is None:
            raise InputError(f"there is no cluster {cluster}, or the log has forgotten it")
        return self.describe(key, body)

    def describe(self, key: bytes, body: bytes) -> Answer:
        found = schema.read_cluster(key, body)
        top = found.parent == 0 and not found.ended
        return {
            "cluster": found.id,
            "size": found.size,
            "finest": found.finest,
            "coarsest": self.levels - 1 if top else found.coarsest,
            "peak": self._key_of(found.peak),
            "parent": found.parent or None,
            "born": found.born,
            "changed": found.changed,
            "ended": found.ended or None,
            "into": list(found.into),
        }

    def at_level(self, path: Iterable[int], level: int | None) -> int:
        """The cluster of a path at a level: the coarsest that reaches down to it."""
        ids = list(path)
        if level is None or level >= self.levels - 1:
            return ids[0]
        for cluster in ids:
            key = schema.u64(cluster)
            if schema.read_cluster(key, self.need("clusters", key)).finest <= level:
                return cluster
        raise CorruptStore(f"cluster {ids[-1]} does not reach down to level 0; `shoal rebuild` mends it")

    def trees(self, cluster: int, start: int = 0) -> Iterator[int]:
        prefix = schema.u64(cluster)
        for key, _ in self.tables.rows("cluster_trees", schema.pair(cluster, start), prefix):
            yield schema.read_pair(key)[1]

    def _key_of(self, item: int) -> str | None:
        key = schema.u64(item)
        body = self.tables.get("items", key)
        return schema.read_items([key], [body]).keys[0].decode() if body is not None else None


def _clusters_at(found: _Snapshot, level: int | None, order: str, cursor: str | None) -> Iterator[Answer]:
    """The living clusters of a level from the cursor on."""
    table = _living(found)
    at = found.levels - 1 if level is None else min(max(level, 0), found.levels - 1)
    rows = np.flatnonzero((table.finest <= at) & (table.coarsest >= at))
    if order == "size":
        rows = rows[np.lexsort((table.ids[rows], -table.size[rows]))]
        if cursor:
            size, first = _cursor(cursor, 2)
            later = (table.size[rows] < size) | ((table.size[rows] == size) & (table.ids[rows] >= first))
            rows = rows[later]
    elif cursor:
        rows = rows[table.ids[rows] >= _cursor(cursor, 1)[0]]
    return (found.cluster(int(cluster)) for cluster in table.ids[rows])


def _living(found: _Snapshot) -> Clusters:
    table = schema.read_living(*found.tables.read("clusters"))
    table.coarsest[table.parent == 0] = found.levels - 1
    return table


def _measure_levels(found: _Snapshot) -> list[Answer]:
    table, measured = _living(found), []
    for level in range(found.levels):
        size = table.size[(table.finest <= level) & (table.coarsest >= level)]
        measured.append({"level": level, "clusters": len(size), "singletons": int((size == 1).sum())})
    return measured


def _members(found: _Snapshot, cluster: int, tree: int, item: int) -> Iterator[Answer]:
    """(tree, item) of a cluster's members from a place on."""
    for handle in found.trees(cluster, tree):
        start = schema.pair(handle, item if handle == tree else 0)
        for key, _ in found.tables.rows("members", start, schema.u64(handle)):
            yield {"tree": handle, "item": schema.read_pair(key)[1]}


def _page(rows: Iterator[Answer], limit: int) -> tuple[list[Answer], Answer | None]:
    """The page, and the first row of the next one."""
    return list(islice(rows, _bound(limit))), next(rows, None)


def _bound(limit: int) -> int:
    if not 1 <= limit <= MAX_PAGE:
        raise InputError(f"a page has 1 to {MAX_PAGE} entries, not {limit}")
    return limit


def _cursor(cursor: str, parts: int) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in cursor.split("-") if re.fullmatch("[0-9]{1,18}", part))
    if len(numbers) != parts or len(cursor.split("-")) != parts:
        raise InputError(f"{cursor!r} is not the cursor of such a page")
    return numbers
