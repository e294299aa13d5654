"""The engine as a library: a collection in a store, changed in batches, queried at any moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from engine import vectors
from engine.clustering import explain, pipeline, retention
from engine.clustering.resume import resume
from engine.clustering.state import State
from engine.collection import assign, snapshots
from engine.collection.assign import Answer
from engine.collection.build import empty_state, index_of, load_model, shape_of, store_config
from engine.collection.erase import PUBLISH_WAIT_S, Erasure, FreshIndex, await_publisher
from engine.collection.rebuild import Generation, Rebuilt, nothing_to_rebuild, rebuilt
from engine.collection.snapshots import Snapshots
from engine.config import MAX_DIM, Settings
from engine.errors import CorruptStore, InputError, NotFound, StoreError, WriterBusy
from engine.index.hnsw import HnswIndex
from engine.model.linkage import LinkageModel
from engine.storage.compaction import Compacted
from engine.storage.store import Store
from engine.system.stopwatch import Stopwatch
from engine.types import Applied, Batch, Int16, Int64, Loaded

Key = str | bytes
SNAPSHOT_SHARE = 12  # a twelfth of the items changed: a snapshot costs by items, a restart by changes since
CATCH_UP_MAX = 8  # rounds in which a rebuild catches up beside the live state
SWITCH_WAIT_S = 2.0  # that `assign` waits for a rebuild to be put in place
FEW = 512  # changes that a rebuild takes while batches wait


class Engine:
    """One collection, open for writing. Methods may be called from several threads, one at a time runs.

    >>> with Engine.open(settings) as engine:
    ...     engine.upsert(["a", "b"], embeddings)
    ...     keys, clusters = engine.labels()
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        model: LinkageModel,
        clock: Callable[[], float],
        executor: Executor | None = None,
    ) -> None:
        self.settings, self.store, self.model = settings, store, model
        self.snapshots = Snapshots(store.path, executor, settings.bounds.free_disk_min_bytes)
        self._clock = clock
        self._lock = threading.RLock()
        self._state: State | None = None  # None: the dimension is not known yet
        self._broken = ""
        self._since_snapshot = 0

    @classmethod
    def open(
        cls,
        settings: Settings | None = None,
        model: LinkageModel | None = None,
        clock: Callable[[], float] = time.time,
        executor: Executor | None = None,
    ) -> Engine:
        """Open or create the store of `settings`. `clock` gives seconds since 1970.

        `executor`: writes snapshots out while batches go on; without one the batch that is due waits.

        Raises StoreError (locked, full, corrupt, made with other settings) and InputError (no model).
        """
        settings = settings or Settings()
        model = model or load_model(settings)
        store = Store.open(
            settings.store.path,
            store_config(settings, model),
            map_bytes=settings.bounds.map_size_bytes,
            free_bytes=settings.bounds.free_disk_min_bytes,
            events_max_bytes=settings.retention.events_max_bytes,
            events_max_age_ms=int(settings.retention.events_max_age_s * 1000),
        )
        try:
            if settings.source.publishes:
                store.retain_from_version = 0  # until the publisher tells what is out
            engine = cls(settings, store, model, clock, executor)
            engine._restore()
        except BaseException:
            store.close()
            raise
        return engine

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def version(self) -> int:
        """The last committed version; 0: nothing yet."""
        return self.store.version

    @property
    def dim(self) -> int | None:
        """Dimension of the vectors; None before the first one."""
        return self._state.hierarchy.shape.dim if self._state else self.settings.collection.dim

    @property
    def state(self) -> State:
        """The live state, to look at between batches."""
        self._check_usable()
        if self._state is None:
            raise InputError(f"{self.store.path} is empty")
        return self._state

    def holds(self, key: bytes) -> bool:
        """Whether an item has this key. For the thread that applies batches."""
        return self._state is not None and key in self._state.row_of

    def __len__(self) -> int:
        return self._state.hierarchy.base.nodes.live if self._state else 0

    def upsert(
        self,
        keys: Sequence[Key],
        embeddings: ArrayLike,
        times: ArrayLike | None = None,
        payloads: Sequence[bytes] | None = None,
        positions: Mapping[str, bytes] | None = None,
    ) -> Applied:
        """Insert items, or give known keys another vector; the last of equal keys counts.

        `embeddings` (n, d) float; `times` (n,) ms since 1970, now by default; `payloads` JSON documents.
        Raises InputError, naming the row, if anything cannot be used; then nothing has changed.
        """
        grid, bad = vectors.quantize(self._matrix(embeddings, len(keys)))
        for row, reason in bad.items():
            raise InputError(f"row {row} ({_encode(keys[row], row)!r}): {reason}; leave it out")
        now = self._now_ms()
        stamps = np.full(len(keys), now) if times is None else np.asarray(times, np.int64)
        for name, column in ("times", stamps), ("payloads", payloads or keys):
            if len(column) != len(keys):
                raise InputError(f"{name} must be as many as the keys, {len(keys)}, not {len(column)}")
        last = {_encode(key, row): row for row, key in enumerate(keys)}
        at = np.fromiter(last.values(), np.int64, len(last))
        return self.apply(
            Batch(
                keys=list(last),
                vectors=grid[at],
                times=stamps[at].astype(np.int64),
                payloads=[payloads[i] if payloads else b"" for i in at],
                positions=dict(positions or {}),
            )
        )

    def delete(self, keys: Sequence[Key], positions: Mapping[str, bytes] | None = None) -> Applied:
        """Remove items; unknown keys are counted and change nothing."""
        deletes = list(dict.fromkeys(_encode(key, row) for row, key in enumerate(keys)))
        none = np.empty((0, self.dim or 1), np.int16)
        return self.apply(Batch([], none, np.empty(0, np.int64), [], deletes, dict(positions or {})))

    def apply(self, batch: Batch) -> Applied:
        """Take a batch; when this returns, it is durable. Raises StoreError; then open the store again."""
        with self._lock:
            self._check_usable()
            watch = Stopwatch()
            state = self._state or self._begin(batch.vectors.shape[1], bool(len(batch.keys)))
            if len(batch.keys) and batch.vectors.shape[1] != state.hierarchy.shape.dim:
                raise InputError(_wrong_dimension(batch.vectors.shape[1], state.hierarchy.shape.dim))
            now_ms = self._now_ms()
            expired = retention.due(state, self.settings, now_ms, batch)
            self._broken = "a batch was cut short"
            change, applied = pipeline.step(
                state, replace(batch, deletes=[*batch.deletes, *expired]), now_ms, watch
            )
            self.store.commit(change)
            watch.lap("store")
            self._broken = ""
            self._since_snapshot += applied.inserted + applied.moved + applied.deleted
            self._snapshot(least=max(self.settings.bounds.snapshot_items, len(self) // SNAPSHOT_SHARE))
            return replace(applied, deleted=applied.deleted - len(expired), expired=len(expired))

    def expire(self) -> Applied | None:
        """A version of what retention deletes now, at most `[bounds] expire_items`; None: nothing is due."""
        with self._lock:
            self._check_usable()
            nothing = Batch([], np.empty((0, self.dim or 1), np.int16), np.empty(0, np.int64), [])
            if not self._state or not retention.due(self._state, self.settings, self._now_ms(), nothing):
                return None
            return self.apply(nothing)

    def assign(self, embeddings: ArrayLike) -> list[Answer]:
        """The cluster of each vector, were it inserted: that of its most probable linkage above tau.

        `embeddings` (m, d) float. Changes nothing. Raises InputError as `upsert`.
        """
        return self.probe(self.on_grid(embeddings))[1]

    def on_grid(self, embeddings: ArrayLike) -> Int16:
        """Vectors as `probe` takes them, (m, d). Raises InputError."""
        matrix = np.atleast_2d(np.asarray(embeddings))
        grid, bad = vectors.quantize(self._matrix(matrix, len(matrix)))
        for row, reason in bad.items():
            raise InputError(f"row {row}: {reason}")
        return grid

    def probe(self, grid: Int16) -> tuple[int, list[Answer]]:
        """`assign`, and the version of the answers. Does not wait for a batch that another thread applies.

        Raises WriterBusy while a rebuild is put in place, if that takes long.
        """
        deadline = time.monotonic() + SWITCH_WAIT_S
        while True:
            try:
                return assign.assign(self.store, self._state, self.model, grid)
            except WriterBusy:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def explain(self, key: Key, level: int | None = None) -> dict[str, Any]:
        """Why an item is where it is: see `engine.clustering.explain`. Raises NotFound."""
        with self._lock:
            self._check_usable()
            name = _encode(key, 0)
            if self._state is None:
                raise NotFound(f"no item has the key {name.decode(errors='backslashreplace')!r}")
            return explain.explain(self._state, name, level)

    def labels(self) -> tuple[list[bytes], Int64]:
        """All keys and the ids of their final clusters, (n,) int64, in no particular order."""
        with self._lock:
            self._check_usable()
            if not self._state:
                return [], np.empty(0, np.int64)
            rows = self._state.hierarchy.base.nodes.all_rows()
            return [self._state.keys[row] for row in rows.tolist()], self._state.final_clusters(rows)

    def compact(self) -> Compacted:
        """Write the store's file anew without what is not used. Raises StoreFull, CorruptStore."""
        with self._lock:
            self._check_usable()
            return self.store.compact()

    def rebuild(self, settings: Settings | None = None, model: LinkageModel | None = None) -> Rebuilt:
        """Cluster all items from scratch, with new settings and model if given, and a new calibration.

        Batches may be applied from other threads meanwhile. `model`: one that no other thread uses.
        Raises InputError (the collection is empty) and StoreError.
        """
        settings = settings or self.settings
        model = model or load_model(settings)
        with self._lock:
            self._check_usable()
            if self._state is None:
                raise nothing_to_rebuild(self.settings)
            generation = Generation(settings, model, self._state.hierarchy.shape.dim)
            first = generation.difference(self._state)
        generation.take(first)
        for _ in range(CATCH_UP_MAX):
            with self._lock:
                more = generation.difference(self.state)
            if len(more) <= FEW:
                break
            generation.take(more)
        with self._lock:
            change = generation.finish(self.state, self._now_ms())
            self.store.check_room(change)  # raises before anything has changed
            self._broken = "a rebuild was cut short"
            self.store.replace(change, {**store_config(settings, model), "dim": self.dim})
            self._state, self.settings, self.model = generation.state, settings, model
            self._broken = ""
            self.save()
        return rebuilt(generation.state, change)

    def erase(
        self,
        key: Key,
        wait_s: float = PUBLISH_WAIT_S,
        between: Callable[[Callable[[], Any]], Any] = lambda work: work(),
    ) -> Erasure:
        """Remove an item and its traces. Batches may be applied from other threads meanwhile.

        `between` calls what must not meet a batch, in the thread that applies them if it is another. Where
        events are published, waits until the item's are. Raises InputError (no key) and StoreError (not
        published in time, the item came back, no room to compact): the same call again goes on.
        """
        name = _encode(key, 0)
        deleted = bool(between(lambda: self.delete([name])).deleted)
        await_publisher(self.store, self.version, wait_s)
        self._renew_index()
        mentions, size = between(lambda: self._forget(name))
        return Erasure(deleted, mentions, self.version, size)

    def _renew_index(self) -> None:
        with self._lock:
            self._check_usable()
            if self._state is None or self.settings.index.kind != "hnsw":
                return
            fresh = FreshIndex(self.settings, self._state)
        fresh.build()
        with self._lock:
            fresh.put_into(self.state)

    def _forget(self, key: bytes) -> tuple[int, int]:
        """Remove everything on disk that has the key; return the events that had it, and the file's bytes."""
        with self._lock:
            self._check_usable()
            if self._state is not None and key in self._state.row_of:
                raise StoreError("the item came back meanwhile: stop what sends it, then run it again")
            mentions = self.store.erase_mentions(key)
            self.snapshots.clear()
            compacted = self.compact()
            self.save()
            return mentions, compacted.after

    def save(self) -> None:
        """Snapshots of the index and of what is derived: there when it returns, if the disk has room."""
        with self._lock:
            self._since_snapshot = max(1, self._since_snapshot)
            self._save_what_is_new()

    def close(self) -> None:
        """Save the index and let go of the store. Everything applied is durable already."""
        with self._lock:
            try:
                if self._broken:
                    self.snapshots.wait()
                else:
                    self._save_what_is_new()
            finally:
                self._broken = "the engine is closed"
                self._state = None
                self.store.close()

    def _check_usable(self) -> None:
        if self._broken:
            raise StoreError(f"{self.store.path}: {self._broken}; open it again")

    def _matrix(self, embeddings: ArrayLike, rows: int) -> Any:
        matrix = np.asarray(embeddings)
        if matrix.ndim != 2 or len(matrix) != rows or matrix.shape[1] == 0:
            raise InputError(f"embeddings must have the shape ({rows}, d), not {matrix.shape}")
        if self.dim is not None and matrix.shape[1] != self.dim:
            raise InputError(_wrong_dimension(matrix.shape[1], self.dim))
        if matrix.shape[1] > MAX_DIM:
            raise InputError(f"embeddings must have 1 to {MAX_DIM} dimensions, not {matrix.shape[1]}")
        return matrix

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _begin(self, dim: int, decides: bool) -> State:
        """The state of a collection without items."""
        state = empty_state(self.settings, self.model, self.dim or dim)
        state.version = self.store.version
        if decides:
            self._state = state
        return state

    def _restore(self) -> None:
        loaded = self.store.load()
        dim = self.store.config["dim"]
        if dim is None:
            return
        shape = shape_of(self.settings, self.model, dim)
        state = State.of(loaded, shape, self.model, self.model.default_epoch, index_of(self.settings))
        self._state = state
        if not len(loaded.items.ids):
            return
        state.restore_lists(loaded)
        base = state.hierarchy.base
        rows = base.nodes.all_rows()
        if isinstance(base.lists.index, HnswIndex):
            known = snapshots.load_index(
                self.store.path, state.version, base.lists.index, state.ids, state.versions, rows
            )
        else:
            base.lists.index.insert(rows)
            known = True
        basis = snapshots.dependencies(state, self.model)
        saved = snapshots.load_levels(self.store.path, state.version, basis)
        newest = snapshots.newest_levels(self.store.path, state.version) if known and saved else 0
        self._since_snapshot = int(np.count_nonzero(state.versions[rows] > newest))
        resume(state.hierarchy, state.contents(), saved, state.calibration.epoch, Stopwatch())
        self._settle(state, loaded)

    def _settle(self, state: State, loaded: Loaded) -> None:
        """The restored partition takes the stored names."""
        if self.store.stale:
            self.store.commit(pipeline.regenerate(state, loaded.places, self._now_ms()))
        elif not state.settle(loaded.places):
            raise CorruptStore(
                f"{self.store.path}: the stored clusters are not those of the stored lists; "
                "`shoal rebuild` makes them anew"
            )

    def _save_what_is_new(self) -> None:
        """A snapshot if anything changed since the last one; when it returns, nothing is being written."""
        self.snapshots.wait()
        self._snapshot(least=1)
        self.snapshots.wait()

    def _snapshot(self, least: int) -> None:
        state = self._state
        if state is None or self._since_snapshot < least:
            return
        if self.snapshots.begin(state, self.model):
            self._since_snapshot = 0


def _encode(key: Key, row: int) -> bytes:
    encoded = key.encode() if isinstance(key, str) else key
    if not 1 <= len(encoded) <= 511:
        raise InputError(f"row {row}: a key has 1 to 511 bytes, this one {len(encoded)}")
    return encoded


def _wrong_dimension(found: int, wanted: int) -> str:
    return f"the vectors have {found} dimensions, the collection {wanted}"
