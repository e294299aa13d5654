"""Reads a store, also while another process writes it: `View`, which any number of threads may ask.

Every answer is of one version and names it; a later page may be of a later version. A read transaction
lasts as long as one answer: one that stays open keeps the writer from reusing pages.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.closing import Closing
from engine.errors import InputError
from engine.events import BEGIN, EventId, EventRow, format_event_id
from engine.storage import eventlog, schema, seal
from engine.storage.answers import (
    ChangePage,
    ClusterDetail,
    ClusterPage,
    ClusterRow,
    ItemDetail,
    LevelRow,
    Levels,
    Lookup,
    MemberPage,
    Summary,
    ThemeDetail,
    ThemeItem,
    ThemeLookup,
    ThemePage,
)
from engine.storage.environment import MAP_BYTES, Environment, not_made, require_file
from engine.storage.queries import Peaks, Snapshot, page_size
from engine.storage.schema import Commit, StateRecord
from engine.storage.store import Store
from engine.storage.themes import Grouped
from engine.system import isolation
from engine.types import Int16, Items, Themes


@dataclass(frozen=True, slots=True)
class Head:
    """The last version of a store, and the ends of its event log."""

    version: int
    time_ms: int  # of its commit
    oldest: int  # the first version in the log; 0: there is none
    forgot: EventId  # the last event that the log has forgotten
    place: EventId  # the last event of the last version


class View(Closing):
    """A store open for reading. Thread-safe.

    Within the process that writes the store, use `View.beside`: LMDB must not be opened twice.
    """

    def __init__(self, environment: Environment, owned: bool) -> None:
        self._environment, self._owned = environment, owned
        self._levels: tuple[int, list[LevelRow]] = (-1, [])  # version and its levels
        path = environment.folder
        with environment.read() as tables:
            config = tables.meta.config
        if config is None:
            raise not_made(path)
        schema.require_format(path, config)
        self.collection = str(config.get("collection") or "")

    @classmethod
    def open(cls, path: str | os.PathLike[str], map_bytes: int = MAP_BYTES) -> View:
        """Open a store that another process may write. `map_bytes`: as the writer's.

        Raises NoStore, CorruptStore, StoreError.
        """
        folder = Path(path)
        require_file(folder)
        if not seal.is_sealed(folder) and seal.is_orphaned(folder):
            # The writer crashed: nothing vouches for the pages that lead to the values.
            isolation.call("engine.storage.verify.walk", folder, "beside")
        environment = Environment.attach(folder, map_bytes)
        try:
            return cls(environment, owned=True)
        except BaseException:
            environment.close()
            raise

    @classmethod
    def beside(cls, store: Store) -> View:
        """Return a view of a store that this process writes."""
        return cls(store.environment, owned=False)

    def close(self) -> None:
        """Wait for the answers in progress, then close the store."""
        if self._owned:
            self._environment.close()

    @property
    def state(self) -> StateRecord:
        """The last committed version, and when."""
        with self._environment.read() as tables:
            return tables.meta.state

    @property
    def version(self) -> int:
        """The last committed version."""
        return self.state.version

    @property
    def config(self) -> dict[str, Any]:
        """The settings that the stored clusters depend on."""
        with self._environment.read() as tables:
            return tables.meta.config or {}

    @property
    def dim(self) -> int | None:
        """The dimension of the vectors; None before the first one."""
        dim = self.config.get("dim")
        return None if dim is None else int(dim)

    @property
    def identity(self) -> str:
        """The store's random id; a copy has the same."""
        with self._environment.read() as tables:
            return tables.meta.identity

    def positions(self) -> dict[str, bytes]:
        """Return the next position of each source."""
        with self._environment.read() as tables:
            return dict(tables.positions.rows())

    def check_readers(self) -> int:
        """Free the reader slots of processes that died; return how many."""
        return self._environment.check_readers()

    def summary(self) -> Summary:
        """Return what the store holds."""
        with self.snapshot() as snapshot:
            return snapshot.summary()

    def items(self) -> tuple[Items, Int16]:
        """Return all items by rising id, and the vector of each (n, d)."""
        with self._environment.read() as tables:
            items, nodes = tables.items.columns(), tables.nodes.columns()
        return items, nodes.vectors[np.searchsorted(nodes.ids, items.nodes)]

    def levels(self) -> Levels:
        """Count the clusters of each level, and those of one item; finest first. Kept for a version."""
        with self.snapshot() as snapshot:
            version, rows = self._levels
            if version != snapshot.state.version:
                rows = snapshot.levels()
                self._levels = (snapshot.state.version, rows)
            return {**snapshot.stamp, "levels": rows}

    def item(self, key: str | bytes, level: int | None = None) -> ItemDetail:
        """Return an item and its clusters; `cluster` is that of `level`, by default the final one.

        Raises NotFound.
        """
        with self.snapshot() as snapshot:
            return snapshot.item(key.encode() if isinstance(key, str) else key, level)

    def lookup(self, keys: Sequence[bytes], level: int | None, payload_bytes: int) -> Lookup:
        """Return items of one version in the order of `keys`, None where there is none.

        Raises InputError: their payloads have more than `payload_bytes`.
        """
        with self.snapshot() as snapshot:
            return snapshot.lookup(keys, level, payload_bytes)

    def clusters(
        self, level: int | None = None, order: str = "size", cursor: str | None = None, limit: int = 100
    ) -> ClusterPage:
        """Return a page of the clusters of a level (None: the final ones): largest first (`order` "size"),
        newest first ("newest"), or by rising id ("id").
        """
        with self.snapshot() as snapshot:
            return snapshot.clusters(level, order, cursor, limit)

    def themes(
        self, grouping: Themes, step: int, order: str = "size", cursor: str | None = None, limit: int = 100
    ) -> ThemePage:
        """Return a page of the themes `step` levels above the final clusters; `order` as of clusters."""
        with self.snapshot() as snapshot:
            return Grouped(snapshot, grouping, step).page(order, cursor, limit)

    def theme(self, grouping: Themes, step: int, cluster: int) -> ThemeDetail:
        """Return the theme that a final cluster is in. Raises NotFound."""
        with self.snapshot() as snapshot:
            return Grouped(snapshot, grouping, step).theme(cluster)

    def theme_item(self, grouping: Themes, step: int, key: str) -> ThemeItem:
        """Return an item and the theme that it is in. Raises NotFound."""
        with self.snapshot() as snapshot:
            return Grouped(snapshot, grouping, step).item(snapshot.item(key.encode(), None))

    def theme_lookup(
        self, grouping: Themes, step: int, keys: Sequence[bytes], payload_bytes: int
    ) -> ThemeLookup:
        """Return items as `lookup` does, and the themes that they are in."""
        with self.snapshot() as snapshot:
            return Grouped(snapshot, grouping, step).lookup(snapshot.lookup(keys, None, payload_bytes))

    def final(self, clusters: Iterable[int], limit: int) -> tuple[int, list[ClusterRow]]:
        """Return the version, and the first `limit` of these clusters that are living final ones."""
        with self.snapshot() as snapshot:
            return snapshot.state.version, snapshot.final(clusters, limit)

    def cluster(self, cluster: int) -> ClusterDetail:
        """Return a cluster, its next finer ones, and what became of it if it ended. Raises NotFound.

        `into`: the clusters that took its members; `now`: the living final ones to which that has led.
        """
        with self.snapshot() as snapshot:
            return snapshot.cluster(cluster)

    def members(
        self, cluster: int, cursor: str | None = None, limit: int = 100, payload_bytes: int | None = None
    ) -> MemberPage:
        """Return a page of a cluster's items, tree by tree. Raises NotFound.

        `payload_bytes`: with their payloads; the page ends where these exceed this many bytes.
        """
        with self.snapshot() as snapshot:
            return snapshot.members(cluster, cursor, limit, payload_bytes)

    def peaks(self, limit: int) -> Peaks:
        """Return the largest final clusters, with the item at the peak of each."""
        with self.snapshot() as snapshot:
            return snapshot.peaks(limit)

    def changes(
        self, after: tuple[int, int] | None = None, limit: int = 100, kind: str | None = None
    ) -> ChangePage:
        """Return events behind `after` (version, ordinal), oldest first; None: from the oldest there is.

        `kind`: of "items", "clusters" or "rejects" alone. `cursor` names the last event looked at, to
        continue from, also where none was found; `more`: there are further ones by now. `gap`: events
        between `after` and the first one here were forgotten.
        """
        version, ordinal = after or BEGIN
        if not (0 <= version < 2**63 and -1 <= ordinal < 2**31):  # what the log's keys can hold; -1: `BEGIN`
            raise InputError(f"{version}-{ordinal} is no place in the log")
        with self.snapshot() as snapshot:
            gap = after is not None and (version, ordinal) < eventlog.forgot(snapshot.tables)
            page = eventlog.read(snapshot.tables, (version, ordinal), page_size(limit), kind)
            return {
                **snapshot.stamp,
                "changes": [raw.show(self.collection) for raw in page.events],
                "cursor": format_event_id(page.place) if page.place != BEGIN else None,
                "gap": gap,
                "more": page.more,
            }

    def events(self, places: Collection[EventId]) -> list[EventRow]:
        """Return the events at these places that are not forgotten."""
        with self._environment.read() as tables:
            stored = eventlog.at(tables, places)
            return [raw.show(self.collection) for raw in stored]

    def head(self) -> Head:
        """Return the last version and the ends of the event log."""
        with self._environment.read() as tables:
            state = tables.meta.state
            newest = tables.commits.get(state.version)
            place = newest.last if newest else (state.version, 0)
            return Head(state.version, state.time_ms, eventlog.oldest(tables), eventlog.forgot(tables), place)

    def follow(self, after: EventId, limit: int, kind: str | None = None) -> eventlog.Slice:
        """Return stored events behind a place, for a reader that aggregates or forwards them."""
        with self._environment.read() as tables:
            return eventlog.read(tables, after, limit, kind)

    def unpublished(self, after: EventId, max_events: int, max_bytes: int) -> eventlog.Unpublished:
        """Return the events to publish behind the last published one."""
        with self._environment.read() as tables:
            return eventlog.unpublished(tables, after, max_events, max_bytes)

    def behind(self, place: EventId) -> int:
        """Count the events behind a place."""
        with self._environment.read() as tables:
            return eventlog.behind(tables, place)

    def commits(self, versions: Iterable[int]) -> list[Commit]:
        """Return what the log knows of these versions, except of forgotten ones."""
        with self._environment.read() as tables:
            return [found for version in versions if (found := tables.commits.get(version))]

    def lineages(self, versions: Iterable[int]) -> list[eventlog.Raw]:
        """Return the lineage events of these versions, in their order."""
        with self._environment.read() as tables:
            return [event for version in versions for event in eventlog.lineage(tables, version)]

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Open one version. Keep it short, or in a process of its own: it pins pages."""
        with self._environment.read() as tables:
            yield Snapshot(self.collection, tables)
