"""The engine as a library: a collection that Python programs change and query."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from operator import index
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from typing_extensions import Self, Unpack

from engine import config
from engine.collection import arguments, items
from engine.collection.assign import Answer
from engine.collection.items import Item
from engine.collection.live import Key, LiveCollection
from engine.collection.themes import check_step
from engine.config import Options, Settings
from engine.errors import InputError, NotFound
from engine.events import EventId, EventRow, read_event_id
from engine.levels import checked, read_level, step_of
from engine.model.trained import Trained
from engine.storage.queries import MAX_PAGE
from engine.storage.reader import View
from engine.types import Applied, Int16, Int64

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

T = TypeVar("T")


class Engine(LiveCollection):
    """One collection, open for writing; a mapping from keys to items.

    >>> with Engine.open("news", index="exact") as engine:
    ...     engine.upsert(["a", "b"], embeddings, payloads=[{"title": "A"}, {"title": "B"}])
    ...     keys, clusters = engine.labels()
    ...     engine["a"].cluster

    Keys are strings, UTF-8 bytes, integers or UUIDs, and come back as strings. Whatever is refused is refused
    with InputError before anything has changed.
    """

    @classmethod
    def open(
        cls,
        settings: Settings | str | os.PathLike[str] | None = None,
        model: Trained | str | os.PathLike[str] | None = None,
        clock: Callable[[], float] = time.time,
        executor: Executor | None = None,
        **options: Unpack[Options],
    ) -> Self:
        """Open or create a collection: in a folder, with keywords, or with `Settings`.

        Without a folder it is ./shoal-store. Keywords: see `engine.config.Options`; any other setting is
        `section__name=value`. They win over the environment's settings. `clock` gives seconds since 1970.
        `executor` writes snapshots while batches run; without one the batch that is due waits.

        Raises StoreError (locked, full, corrupt, made with other settings), ConfigError, InputError (no
        model) and Forked.
        """
        if not isinstance(settings, Settings):
            given: dict[str, Any] = dict(options)
            if settings is not None:
                given["path"] = settings
            if model is not None and isinstance(model, (str, os.PathLike)):
                given["model"], model = model, None
            settings = config.with_options(given)
        elif options or isinstance(model, (str, os.PathLike)):
            raise InputError("give Engine.open either Settings or a folder and keywords, not both")
        return super().open(settings, model, clock, executor)

    def upsert(
        self,
        keys: Sequence[Key],
        embeddings: ArrayLike,
        times: ArrayLike | None = None,
        payloads: Sequence[Any] | None = None,
        positions: Mapping[str, bytes] | None = None,
    ) -> Applied:
        """Insert items, or give known keys another vector; the last of equal keys counts.

        `embeddings` (n, d) float. `times` (n,), now by default: datetime64, datetime, ISO 8601, or numbers
        since 1970 in s, ms, us or ns, by their magnitude. `payloads`: n JSON-able values, or JSON as bytes.
        Raises InputError, naming the row, if anything cannot be used.
        """
        self._check_process()
        limits, dim, now_ms = self.settings.limits, self.dim, self._now_ms()
        columns = arguments.columns_of(keys, embeddings, times, payloads)
        batch = arguments.batch_of(columns, limits, dim, now_ms)
        return self.apply(replace(batch, positions=arguments.positions_of(positions)))

    def delete(self, keys: Sequence[Key], positions: Mapping[str, bytes] | None = None) -> Applied:
        """Remove items; unknown keys are counted and change nothing. Raises InputError as `upsert`."""
        return self.apply_deletes(
            arguments.keys_of(keys, self.settings.limits), arguments.positions_of(positions)
        )

    def assign(self, embeddings: ArrayLike) -> list[Answer]:
        """Return the cluster that each vector would join: that of its most probable linkage above tau.

        `embeddings` (m, d) float. Changes nothing. Raises InputError as `upsert`.
        """
        return self.assign_grid(self.on_grid(embeddings))[1]

    def on_grid(self, embeddings: ArrayLike) -> Int16:
        """Convert vectors to the grid, int16 (m, d), for `assign_grid`. Raises InputError."""
        self._check_process()
        return arguments.grid_of(embeddings, self.dim)

    def labels(self, level: int | str | None = None) -> tuple[list[str], Int64]:
        """Return all keys and the ids of their clusters, (n,) int64, in no particular order.

        `level`: 0 is the finest, None the final clusters; "+1", "+2" ... themes, each known by its smallest
        cluster. Raises InputError: there is no such level, or too many clusters to be grouped into themes.
        """
        level = checked(level, read_level)
        with self._running() as state:
            if state is None:
                return [], np.empty(0, np.int64)
            rows = state.items.all_rows()
            keys = [key.decode() for key in state.items.named(rows)]
            if isinstance(level, int):
                return keys, state.clusters_at(rows, level)
            final = state.final_clusters(rows)
            return keys, self._themes_of(final, step_of(level)) if level else final

    def _themes_of(self, final: Int64, step: int) -> Int64:
        """Return the themes of final clusters, int64 (n,), `step` levels above them."""
        check_step(step, len(self.settings.model.coarser))
        found = self.prepare_themes()()
        keys: Int64 = found.keys[step - 1][np.searchsorted(found.clusters, final)]
        return keys

    def __contains__(self, key: object) -> bool:
        try:
            name = self._key(key)  # type: ignore[arg-type]
        except InputError:
            return False
        with self._running() as state:
            return state is not None and name in state.items.row_of

    def __iter__(self) -> Iterator[str]:
        return iter(self.labels()[0])

    def __getitem__(self, key: Key) -> Item:
        """Return an item. Raises NotFound, which is a KeyError."""
        name = self._key(key)
        return self._view(lambda view: items.item_of(view.item(name)))

    def get(self, key: Key, default: T | None = None) -> Item | T | None:
        """Return an item, or `default` where there is none."""
        try:
            return self[key]
        except NotFound:
            return default

    def members(self, cluster: int) -> list[str]:
        """Return the keys of a cluster's items, of any level. Raises NotFound, InputError: no number."""
        if isinstance(cluster, bool) or not isinstance(cluster, SupportsIndex):
            raise InputError(f"a cluster is named by its number, not by {cluster!r}")
        number = index(cluster)

        def read(view: View) -> list[str]:
            keys: list[str] = []
            cursor = None
            while True:
                page = view.members(number, cursor, MAX_PAGE)
                keys += [item["key"] for item in page["items"]]
                cursor = page["cursor"]
                if cursor is None:
                    return keys

        return self._view(read)

    def changes(self, after: str | None = None, limit: int = 1000) -> list[EventRow]:
        """Return events behind the one with this `event-id`, oldest first: of items and of final clusters.

        Raises InputError: there is no such id, or events behind it were forgotten.
        """
        place = None if after is None else _place(after)
        found = self._view(lambda view: view.changes(place, limit))
        if found["gap"]:
            raise InputError(f"events behind {after} are no longer in the log: begin with changes()")
        return found["changes"]

    def to_arrow(self) -> pa.Table:
        """Return all items: `key`, `cluster`, `path`, `time`, `payload` (JSON), `updated`, a row each."""
        with self._running():
            return items.table_of(self.store.load())

    def to_pandas(self) -> pd.DataFrame:
        """Return `to_arrow` as a frame. Raises ImportError without pandas, which Shoal does not install."""
        return self.to_arrow().to_pandas()

    def _view(self, read: Callable[[View], T]) -> T:
        """Read what is committed; no batch is, meanwhile."""
        with self._running(), View.beside(self.store) as view:
            return read(view)


def _place(event_id: str) -> EventId:
    try:
        return read_event_id(str(event_id))
    except ValueError:
        raise InputError(f"after is the event-id of an event, like '12-0', not {event_id!r}") from None
