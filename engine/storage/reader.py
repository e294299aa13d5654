"""Reads a store, also while another process writes it. Each answer is of one version, and says which.

Answers are JSON-ready. `level` asks for another granularity than the final clusters: 0 is the finest, a
level beyond the top is the final one. Pages go on with the `cursor` of the one before, null at the end; a
later page may be of a later version. Transactions last as long as one answer: a reader that stays open
keeps the writer from using pages again.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import orjson

from engine.errors import CorruptStore, InputError, NoStore, NotFound, StoreError
from engine.events import BEGIN, Place
from engine.storage import eventlog, moment, schema, seal
from engine.storage.environment import DATA, MAP_BYTES, Environment
from engine.storage.moment import Moment
from engine.storage.store import Store
from engine.system import isolation
from engine.types import Items

MAX_PAGE = 10_000
ORDERS = ("size", "id", "newest")
Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Head:
    """Where a store is."""

    version: int
    time_ms: int  # of its commit
    oldest: int  # the first version of which the log still tells; 0: there is none
    forgot: Place  # the last event of which it does not
    place: Place  # behind it are the events of later versions


@dataclass(frozen=True, slots=True)
class Peaks:
    """The largest final clusters, and the items that stand for them."""

    version: int
    total: int  # final clusters there are
    clusters: list[Answer]
    items: Items | None  # in the clusters' order; None: there are none


class View:
    """A store open for reading. Any number of threads may ask.

    Within the process that writes the store, use `View.beside`: LMDB must not be opened twice.
    """

    def __init__(self, environment: Environment, owned: bool) -> None:
        self._environment, self._owned = environment, owned
        self._sizes: tuple[int, list[Answer]] = (-1, [])  # version and summary of each level
        path = environment.folder
        with environment.read() as tables:
            config = tables.meta.config
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
        folder = Path(path)
        if not (folder / DATA).is_file():
            raise NoStore(f"there is no store in {folder}; name another, or make one with `shoal ingest`")
        if not seal.is_sealed(folder) and seal.is_orphaned(folder):
            # Nothing vouches for the way to its values.
            isolation.call("engine.storage.verify.walk", folder, "beside")
        environment = Environment.attach(folder, map_bytes)
        try:
            return cls(environment, owned=True)
        except BaseException:
            environment.close()
            raise

    @classmethod
    def beside(cls, store: Store) -> View:
        """A view of a store that this process writes."""
        return cls(store.environment, owned=False)

    def __enter__(self) -> View:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._owned:
            self._environment.close()

    @property
    def version(self) -> int:
        with self._snapshot() as found:
            return found.version

    @property
    def dim(self) -> int | None:
        """Of the vectors; None before the first one."""
        with self._snapshot() as found:
            dim = (found.tables.meta.config or {}).get("dim")
            return None if dim is None else int(dim)

    @property
    def config(self) -> Answer:
        """What the stored clusters depend on."""
        with self._snapshot() as found:
            return found.tables.meta.config or {}

    def positions(self) -> dict[str, bytes]:
        """The next position of each source."""
        with self._snapshot() as found:
            return dict(found.tables.positions.rows())

    def check_readers(self) -> int:
        """Frees the places of readers that died; returns how many."""
        return self._environment.check_readers()

    def summary(self) -> Answer:
        """What the store holds."""
        with self._snapshot() as found:
            return self._answer(
                found,
                items=found.tables.items.count(),
                clusters=found.tables.sizes.count(),
                levels=found.levels,
                time=found.time_ms,
                epoch=found.epoch,
                changes_from=eventlog.oldest(found.tables),
            )

    def levels(self) -> Answer:
        """How many clusters each level has, and how many of them have one item; finest first."""
        with self._snapshot() as found:
            version, sizes = self._sizes
            if version != found.version:
                sizes = moment.measure_levels(found)
                self._sizes = (found.version, sizes)
            return self._answer(found, levels=sizes)

    def item(self, key: str | bytes, level: int | None = None) -> Answer:
        """An item and where it is. Raises NotFound: there is none under this key."""
        with self._snapshot() as found:
            name = key.encode() if isinstance(key, str) else key
            number = found.tables.keys.get(name) if 0 < len(name) <= schema.MAX_KEY_BYTES else None
            if number is None:
                raise NotFound(f"no item has the key {name.decode(errors='backslashreplace')!r}")
            item = found.tables.items.need(number)
            path = found.tables.trees.need(found.tables.places.need(number))
            return self._answer(
                found,
                key=item.key.decode(),
                cluster=found.at_level(path, level),
                path=list(path),
                time=item.time,
                payload=orjson.loads(item.payload) if item.payload else None,
                updated=item.version,
            )

    def clusters(
        self, level: int | None = None, order: str = "size", cursor: str | None = None, limit: int = 100
    ) -> Answer:
        """The clusters of a level: largest first (`order` "size"), newest first, or by rising id ("id")."""
        if order not in ORDERS:
            raise InputError(
                f"clusters are ordered by 'size' or by 'id', or 'newest' first, not by {order!r}"
            )
        with self._snapshot() as found:
            if order == "size" and (level is None or level >= found.levels - 1):
                start = moment.read_size_cursor(cursor) if cursor else None
                largest = found.tables.sizes.pairs(start)
                page: Iterator[Answer] = (found.cluster(cluster) for _, cluster in largest)
            elif order == "newest":
                page = moment.newest(found, level, cursor)
            else:
                page = moment.clusters_at(found, level, order, cursor)
            rows, following = _page(page, limit)
            place = (following["size"], following["cluster"]) if following else ()
            after = "-".join(map(str, place if order == "size" else place[1:])) or None  # newest, id: the id
            return self._answer(found, clusters=rows, cursor=after)

    def final(self, clusters: Iterable[int], limit: int) -> tuple[int, list[Answer]]:
        """The version, and the first `limit` of these clusters that are living final ones."""
        with self._snapshot() as found:
            known = map(found.tables.clusters.get, clusters)
            records = (found.describe(cluster) for cluster in known if cluster is not None)
            living = (record for record in records if not (record["ended"] or record["parent"]))
            return found.version, list(islice(living, limit))

    def cluster(self, cluster: int) -> Answer:
        """A cluster, its next finer ones, and what became of it if it ended: `into`, the clusters that took
        its members, and `now`, the living final ones to which that has led. Raises NotFound.
        """
        with self._snapshot() as found:
            record = found.cluster(cluster)
            finer: dict[int, None] = {}
            for tree in islice(found.tables.cluster_trees.of(cluster), MAX_PAGE):
                path = found.tables.trees.need(tree)
                below = path.index(cluster) + 1
                finer |= dict.fromkeys(path[below : below + 1])
            now = found.successors(cluster) if record["ended"] else []
            return self._answer(found, **record, children=sorted(finer), now=now)

    def members(
        self, cluster: int, cursor: str | None = None, limit: int = 100, payload_bytes: int | None = None
    ) -> Answer:
        """The items of a cluster, tree by tree. Raises NotFound.

        `payload_bytes`: with their payloads, and a page ends where they exceed so many bytes.
        """
        with self._snapshot() as found:
            record = found.cluster(cluster)
            start = moment.read_cursor(cursor, 2) if cursor else (0, 0)
            rows = islice(moment.members(found, cluster, *start), _bound(limit) + 1)
            items: list[Answer] = []
            spent, after = 0, None
            for row in rows:
                if len(items) == limit or spent > (payload_bytes or 0):
                    after = f"{row['tree']}-{row['item']}"
                    break
                item = found.tables.items.need(row["item"])
                entry = {"key": item.key.decode(), "time": item.time, "tree": row["tree"]}
                if payload_bytes is not None:
                    entry["payload"] = orjson.loads(item.payload) if item.payload else None
                    spent += len(item.payload)
                items.append(entry)
            return self._answer(found, cluster=cluster, size=record["size"], items=items, cursor=after)

    def peaks(self, limit: int) -> Peaks:
        """The largest final clusters, with the item at the peak of each."""
        with self._snapshot() as found:
            largest = islice(found.tables.sizes.pairs(), limit)
            clusters = [found.tables.clusters.need(cluster) for _, cluster in largest]
            peaks = np.array([cluster.peak for cluster in clusters], np.int64)
            items = found.tables.items.pick(peaks)
            if len(items.ids) < len(peaks):
                raise CorruptStore("the peak of a cluster is no item of the store; `shoal rebuild` mends it")
            return Peaks(
                version=found.version,
                total=found.tables.sizes.count(),
                clusters=[found.describe(cluster) for cluster in clusters],
                items=items if clusters else None,
            )

    def changes(
        self, after: tuple[int, int] | None = None, limit: int = 100, kind: str | None = None
    ) -> Answer:
        """Events behind `after` (version, ordinal), oldest first; None: from the oldest there is.

        `kind`: of "items" or of "clusters" alone. `cursor` names the last one looked at, to go on from, also
        when there are none; `more`: there are further ones by now. `gap`: events between `after` and the
        first one here were forgotten.
        """
        version, ordinal = after or BEGIN
        if not (0 <= version < 2**63 and -1 <= ordinal < 2**31):
            raise InputError(f"{version}-{ordinal} is no place in the log")
        with self._snapshot() as found:
            gap = after is not None and (version, ordinal) < eventlog.forgot(found.tables)
            page = eventlog.read(found.tables, (version, ordinal), _bound(limit), kind)
            events = [schema.read_event(self.collection, raw.key, raw.body) for raw in page.events]
            cursor = f"{page.place[0]}-{page.place[1]}" if page.place != BEGIN else None
            return self._answer(found, changes=events, cursor=cursor, gap=gap, more=page.more)

    def head(self) -> Head:
        """Where the store is now."""
        with self._snapshot() as found:
            newest = eventlog.commit(found.tables, found.version)
            place = newest.last if newest else (found.version, 0)
            oldest, forgot = eventlog.oldest(found.tables), eventlog.forgot(found.tables)
            return Head(found.version, found.time_ms, oldest, forgot, place)

    def follow(self, after: Place, limit: int, kind: str | None = None) -> eventlog.Slice:
        """Events as they are stored, for what rolls them up or sends them on."""
        with self._snapshot() as found:
            return eventlog.read(found.tables, after, limit, kind)

    def outgoing(self, after: Place, max_events: int, max_bytes: int) -> eventlog.Outgoing:
        """Events to publish, for what follows the log without missing one."""
        with self._snapshot() as found:
            return eventlog.outgoing(found.tables, after, found.version, max_events, max_bytes)

    def behind(self, place: Place) -> int:
        """How many events are not published yet."""
        with self._snapshot() as found:
            return eventlog.behind(found.tables, place)

    @property
    def identity(self) -> str:
        """Of the store; a copy has the same."""
        with self._snapshot() as found:
            return found.tables.meta.identity

    def commits(self, versions: Iterable[int]) -> list[eventlog.Commit]:
        """What the log knows of these versions, but for the forgotten ones."""
        with self._snapshot() as found:
            return [told for version in versions if (told := eventlog.commit(found.tables, version))]

    def lineages(self, versions: Iterable[int]) -> list[eventlog.Raw]:
        """What happened to clusters in these versions, in their order."""
        with self._snapshot() as found:
            return [event for version in versions for event in eventlog.lineage(found.tables, version)]

    def events(self, places: Collection[Place]) -> list[Answer]:
        """The events at these places that are not forgotten."""
        with self._snapshot() as found:
            stored = eventlog.at(found.tables, places)
            return [schema.read_event(self.collection, raw.key, raw.body) for raw in stored]

    def _answer(self, found: Moment, **fields: Any) -> Answer:
        return {"collection": self.collection, "version": found.version, **fields}

    @contextmanager
    def _snapshot(self) -> Iterator[Moment]:
        with self._environment.read() as tables:
            yield Moment(tables)


def _page(rows: Iterator[Answer], limit: int) -> tuple[list[Answer], Answer | None]:
    """The page, and the first row of the next one."""
    return list(islice(rows, _bound(limit))), next(rows, None)


def _bound(limit: int) -> int:
    if not 1 <= limit <= MAX_PAGE:
        raise InputError(f"a page has 1 to {MAX_PAGE} entries, not {limit}")
    return limit
