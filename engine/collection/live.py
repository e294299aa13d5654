"""A live collection: its state in memory, its store and snapshots on disk, changed in batches."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import numpy as np
from typing_extensions import Self

from engine.closing import Closing
from engine.clustering import explain, pipeline, themes
from engine.clustering.state import State
from engine.collection import assign, snapshots
from engine.collection.assign import Answer
from engine.collection.build import empty_state, index_of, load_adapter, load_model, shape_of, store_config
from engine.collection.erase import PUBLISH_WAIT_S, Erasure, FreshIndex, await_publisher
from engine.collection.rebuild import Generation, Rebuilt, Spaces, nothing_to_rebuild, rebuilt
from engine.collection.snapshots import Snapshots
from engine.collection.space import adapted, space_dim
from engine.config import Settings
from engine.errors import CorruptStore, Forked, InputError, NotFound, StoreError, Unusable, WriterBusy
from engine.index.hnsw import HnswIndex
from engine.levels import checked, read_finer
from engine.model.adapter import Adapter
from engine.model.trained import Trained, check_dim
from engine.records import read_key, wrong_dimension
from engine.storage.compaction import Compacted
from engine.storage.store import Store, changes
from engine.system import forks, kernel_cache
from engine.system.stopwatch import Stopwatch
from engine.types import Applied, Batch, Int16, Loaded, Themes

Key = str | bytes | int | UUID
SNAPSHOT_SHARE = 12  # a twelfth of the nodes changed: a snapshot costs by nodes, a restart by changes since
CATCH_UP_MAX = 8  # rounds in which a rebuild catches up with the live state
CLOSED = "the engine is closed"
FEW = 512  # changes that a rebuild takes while batches wait


class LiveCollection(Closing):
    """One collection, open for writing by this process.

    Methods may be called from several threads. One runs at a time, but for `assign_grid`, which waits for
    none. A forked copy of the object refuses to work.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        model: Trained,
        adapter: Adapter | None,
        clock: Callable[[], float],
        executor: Executor | None = None,
    ) -> None:
        self.settings, self.store, self.model, self.adapter = settings, store, model, adapter
        self.snapshots = Snapshots(store.path, executor, settings.limits.free_disk_min_bytes)
        self._clock = clock
        self._lock = threading.RLock()
        self._state: State | None = None  # None: the dimension is not known yet
        self._broken = ""
        self._since_snapshot = 0
        self._process = os.getpid()

    @classmethod
    def open(
        cls,
        settings: Settings,
        model: Trained | None = None,
        clock: Callable[[], float] = time.time,
        executor: Executor | None = None,
    ) -> Self:
        """Open or create the store of `settings`. `clock` gives seconds since 1970.

        `executor`: writes snapshots while batches continue; without one the batch that is due waits.

        Raises StoreError (locked, full, corrupt, made with other settings) and InputError (no model).
        """
        forks.check()
        kernel_cache.report()
        model, adapter = model or load_model(settings), load_adapter(settings)
        dim = adapter.dim_in if adapter else settings.collection.dim
        if dim:
            check_dim(model, space_dim(adapter, dim))
        store = Store.open(
            settings.store.path,
            store_config(settings, model, adapter),
            map_bytes=settings.limits.map_size_bytes,
            free_bytes=settings.limits.free_disk_min_bytes,
            events_max_bytes=settings.retention.events_max_bytes,
            events_max_age_ms=int(settings.retention.events_max_age_s * 1000),
        )
        try:
            if settings.source.publishes:
                store.retain_from_version = 0  # until the publisher reports what is published
            engine = cls(settings, store, model, adapter, clock, executor)
            engine._restore()
        except BaseException:
            store.close()
            raise
        return engine

    @property
    def version(self) -> int:
        """The last committed version; 0: nothing yet."""
        return self.store.version

    @property
    def dim(self) -> int | None:
        """Dimension of incoming vectors; None before the first one, and again when all items are gone.

        With an adapter, what it takes.
        """
        if self.adapter:
            return self.adapter.dim_in
        state = self._state
        return state.hierarchy.shape.dim if state and state.items.live else self._set_dim

    @property
    def _set_dim(self) -> int | None:
        """What the settings or the model say that it is."""
        return self.settings.collection.dim or self.model.dim

    @property
    def state(self) -> State:
        """The live state, to look at between batches. Raises InputError: there are no items yet."""
        with self._running() as state:
            if state is None:
                raise InputError(f"{self.store.path} is empty")
            return state

    def holds(self, key: bytes) -> bool:
        """Return whether an item has this key. For the thread that applies batches."""
        return self._state is not None and key in self._state.items.row_of

    def __len__(self) -> int:
        if self._broken == CLOSED:  # while a batch is in progress, the items so far count
            raise self._unusable()
        return self._state.items.live if self._state else 0

    def apply(self, batch: Batch) -> Applied:
        """Take a batch of incoming vectors; when this returns, it is durable.

        Raises StoreError; then open the store again.
        """
        with self._running():
            watch = Stopwatch()
            if self.adapter:
                batch = adapted(self.adapter, batch, self._state, self.store)
                watch.lap("adapter")
            dim, state = batch.vectors.shape[1], self._state
            anew = state is not None and bool(len(batch.keys)) and dim != state.hierarchy.shape.dim
            if state is None or anew:
                state = self._begin(dim, bool(len(batch.keys)))
            now_ms = self._now_ms()
            expired = state.due(self.settings, now_ms, batch)
            self._broken = "an earlier batch failed, so the in-memory state was discarded"
            change, applied = pipeline.step(state, batch, now_ms, watch, expired)
            config = store_config(self.settings, self.model, self.adapter) | {"dim": dim} if anew else None
            updated = self.store.commit(change, config)
            watch.lap("store")
            self._broken = ""
            self._since_snapshot += applied.stats["nodes"]
            nodes = state.hierarchy.base.nodes.live
            self._snapshot(least=max(self.settings.limits.snapshot_items, nodes // SNAPSHOT_SHARE))
            return replace(applied, unchanged=applied.unchanged - updated, updated=updated)

    def apply_deletes(self, keys: Sequence[bytes], positions: Mapping[str, bytes] | None = None) -> Applied:
        """Take a batch of deletes; unknown keys are counted and change nothing."""
        none = np.empty((0, self.dim or 1), np.int16)
        deletes = list(dict.fromkeys(keys))
        return self.apply(Batch([], none, np.empty(0, np.int64), [], deletes, dict(positions or {})))

    def expire(self) -> Applied | None:
        """Delete what is due by retention, at most `[limits] expire_items`; None: nothing is due."""
        with self._running():
            nothing = Batch([], np.empty((0, self.dim or 1), np.int16), np.empty(0, np.int64), [])
            if not self._state or not self._state.due(self.settings, self._now_ms(), nothing):
                return None
            return self.apply(nothing)

    def assign_grid(self, grid: Int16) -> tuple[int, list[Answer]]:
        """Return the version, and the cluster of each incoming grid vector (m, d), were it inserted.

        Does not wait for a batch that another thread applies. Raises WriterBusy where a rebuild takes longer
        than `[limits] switch_wait_s` to be put in place.
        """
        self._check_process()
        deadline = time.monotonic() + self.settings.limits.switch_wait_s
        while True:
            # A rebuild sets the state first and the adapter last: never is this one newer than the state.
            adapter = self.adapter
            vectors = adapter.apply(grid) if adapter else grid
            try:
                name = adapter.sha256 if adapter else None
                return assign.assign(self.store, self._state, self.model, vectors, name)
            except WriterBusy:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def explain(self, key: Key, level: int | None = None) -> dict[str, Any]:
        """Explain an item's cluster: see `engine.clustering.explain`. Raises NotFound, InputError."""
        level = checked(level, read_finer)
        with self._running() as state:
            name = self._key(key)
            if state is None:
                raise NotFound(f"no item has the key {name.decode()!r}")
            return explain.explain(state, name, level)

    def prepare_themes(self) -> Callable[[], Themes]:
        """Copy what the themes of this version follow from; return what computes them, once, in any thread.

        See `engine.clustering.themes`. Raises InputError: there are more final clusters than
        `[limits] theme_clusters`.
        """
        taus, most = self.settings.model.coarser, self.settings.limits.theme_clusters
        with self._running() as state:
            version, ground = self.version, themes.prepare(state, most) if state else None
        if ground is None:
            return lambda: themes.none(version, len(taus))
        return lambda: themes.grow(ground, taus)

    def compact(self) -> Compacted:
        """Rewrite the store's file without unused space. Raises StoreFull, CorruptStore."""
        with self._running():
            return self.store.compact()

    def rebuild(self, settings: Settings | None = None, model: Trained | None = None) -> Rebuilt:
        """Cluster all items from scratch, with new settings and model if given, and a new calibration.

        Batches may be applied from other threads meanwhile. `model`: one that no other thread uses.
        Raises InputError (the collection is empty) and StoreError.
        """
        settings = settings or self.settings
        model, adapter = model or load_model(settings), load_adapter(settings)
        with self._running() as live:
            if live is None:
                raise nothing_to_rebuild(self.settings)
            dim = self.adapter.dim_in if self.adapter else live.hierarchy.shape.dim
            generation = Generation(settings, model, Spaces(self.store, dim, self.adapter, adapter))
            first = generation.difference(live)
        generation.take(first)
        for _ in range(CATCH_UP_MAX):
            with self._running():
                more = generation.difference(self.state)
            if len(more) <= FEW:
                break
            generation.take(more)
        with self._running():
            change = generation.finish(self.state, self._now_ms())
            renumbered = generation.renumbered()
            self.store.check_room(change, renumbered is not None)  # raises before anything has changed
            self._broken = "a rebuild failed while switching over, so the in-memory state was discarded"
            config = store_config(settings, model, adapter) | {"dim": dim if adapter else self.dim}
            changed = changes(self.store.config, config)
            self.store.commit(change, config, renumbered)
            self._state, self.settings, self.model = generation.state, settings, model
            self.adapter = adapter  # last: see `assign_grid`
            self._broken = ""
            self.save()
        return rebuilt(generation.state, change, changed)

    def erase(
        self,
        key: Key,
        wait_s: float = PUBLISH_WAIT_S,
        between: Callable[[Callable[[], Any]], Any] = lambda work: work(),
    ) -> Erasure:
        """Remove an item and its traces. Batches may be applied from other threads meanwhile.

        `between` calls what must not meet a batch, in the thread that applies them if it is another. Where
        events are published, waits until the item's are. Raises InputError (no key) and StoreError (not
        published in time, the item came back, no room to compact): call it again to continue.
        """
        name = self._key(key)
        deleted = bool(between(lambda: self.apply_deletes([name])).deleted)
        await_publisher(self.store, self.version, wait_s)
        self._renew_index()
        mentions, size = between(lambda: self._forget(name))
        return Erasure(deleted, mentions, self.version, size)

    def _renew_index(self) -> None:
        with self._running() as state:
            if state is None or self.settings.index.kind != "hnsw":
                return
            fresh = FreshIndex(self.settings, state)
        fresh.build()
        with self._running():
            fresh.put_into(self.state)

    def _forget(self, key: bytes) -> tuple[int, int]:
        """Remove everything on disk that has the key; return the events that had it, and the file's bytes."""
        with self._running() as state:
            if state is not None and key in state.items.row_of:
                raise StoreError("the item came back meanwhile: stop its sender, then run it again")
            mentions = self.store.erase_mentions(key)
            self.snapshots.clear()
            compacted = self.compact()
            self.save()
            return mentions, compacted.after

    def save(self) -> None:
        """Write snapshots of the index and the derived columns, if the disk has room, before it returns."""
        with self._running():
            self._since_snapshot = max(1, self._since_snapshot)
            self._save_what_is_new()

    def close(self) -> None:
        """Save the index and close the store. Everything applied is durable already.

        In a forked process it does nothing: the store is its parent's.
        """
        if os.getpid() != self._process:
            return
        with self._lock:
            try:
                if self._broken:
                    self.snapshots.wait()
                else:
                    self._save_what_is_new()
            finally:
                self._broken = CLOSED
                self._state = None
                self.store.close()

    @contextmanager
    def _running(self) -> Iterator[State | None]:
        """Yield the state, without a batch meanwhile; None: no items yet. Raises StoreError, Forked."""
        self._check_process()
        with self._lock:
            if self._broken:
                raise self._unusable()
            yield self._state

    def _unusable(self) -> StoreError:
        return StoreError(f"{self.store.path}: {self._broken}; reopen the store")

    def _check_process(self) -> None:
        """Raise Forked in a forked child: it has none of its parent's threads, and shares its database."""
        if os.getpid() != self._process:
            raise Forked(
                f"this process was forked from the one that opened {self.store.path}: open it there or in "
                'a process that multiprocessing has started with the method "spawn", one at a time'
            )

    def _key(self, key: Key) -> bytes:
        try:
            return read_key(key, self.settings.limits)
        except Unusable as problem:
            raise InputError(str(problem)) from None

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _begin(self, dim: int, brings: bool) -> State:
        """Return the state of a collection without items, or whose items are gone. `dim`: of the batch.

        `brings`: the batch has vectors, so its dimension is the collection's from now on. Raises InputError:
        there are items, or the settings or the model name another dimension.
        """
        wanted = self.adapter.dim_out if self.adapter else self.dim
        if brings and wanted not in (None, dim):
            raise InputError(wrong_dimension(dim, wanted))
        state = empty_state(self.settings, self.model, wanted or dim)
        state.version = self.store.version
        if self._state:
            state.count_on_from(self._state)
        if brings:
            self._state = state
        return state

    def _restore(self) -> None:
        loaded = self.store.load()
        dim = self.store.config["dim"]
        if dim is None:
            return
        shape = shape_of(self.settings, self.model, space_dim(self.adapter, dim))
        state = State.of(loaded, shape, self.model, self.model.default_epoch, index_of(self.settings))
        self._state = state
        if not len(loaded.items.ids):
            return
        state.restore_lists(loaded)
        base = state.hierarchy.base
        rows = base.nodes.all_rows()
        if isinstance(base.lists.index, HnswIndex):
            known = snapshots.load_index(
                self.store.path, state.version, base.lists.index, state.node_ids, rows
            )
        else:
            base.lists.index.insert(rows)
            known = True
        resumed = snapshots.resume_levels(self.store.path, state, self.model.sha256)
        newest = snapshots.newest_levels(self.store.path, state.version) if known and resumed else 0
        self._since_snapshot = state.nodes_since(newest)
        self._settle(state, loaded)

    def _settle(self, state: State, loaded: Loaded) -> None:
        """Give the restored partition the stored names. Raises CorruptStore."""
        if self.store.stale:
            self.store.commit(pipeline.regenerate(state, loaded.places, self._now_ms()))
        elif not state.settle(loaded.places):
            raise CorruptStore(
                f"{self.store.path}: the stored clusters are not those of the stored lists; "
                "run `shoal rebuild` to repair it"
            )

    def _save_what_is_new(self) -> None:
        """Write a snapshot if anything changed since the last one, and wait until all writing is done."""
        self.snapshots.wait()
        self._snapshot(least=1)
        self.snapshots.wait()

    def _snapshot(self, least: int) -> None:
        state = self._state
        if state is None or self._since_snapshot < least:
            return
        if self.snapshots.begin(state, self.model):
            self._since_snapshot = 0
