"""The engine as a library: a collection in a store, changed in batches, asked at any moment."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from engine import vectors
from engine.clustering import explain, pipeline, retention
from engine.clustering.hierarchy import Shape
from engine.clustering.resume import resume
from engine.clustering.state import State
from engine.collection import assign, derived, snapshot
from engine.collection.assign import Answer
from engine.collection.saver import Saver, depends
from engine.config import MAX_DIM, Settings
from engine.errors import CorruptStore, InputError, NotFound, StoreError
from engine.index.base import ExactIndex
from engine.index.columns import Nodes
from engine.index.hnsw import HnswIndex
from engine.model.linkage import LinkageModel
from engine.storage.compaction import Compacted
from engine.storage.store import Store
from engine.system import determinism
from engine.system.stopwatch import Stopwatch
from engine.types import Applied, Batch, Change, Int16, Int64, Loaded

Key = str | bytes
SNAPSHOT_SHARE = 12  # of the items: a snapshot costs as much as they are many, and a restart what came since


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
        self.snapshots = Saver(store.path, executor, settings.bounds.free_disk_min_bytes)
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
                store.keep_from = 0  # until the publisher tells what is out
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
        now = int(self._clock() * 1000)
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
            now_ms = int(self._clock() * 1000)
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
            if not self._state or not retention.due(
                self._state, self.settings, int(self._clock() * 1000), nothing
            ):
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
        """`assign`, and the version of the answers; a batch that another thread applies is not waited for."""
        return assign.assign(self.store, self._state, self.model, grid)

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

    def now(self) -> float:
        """Seconds since 1970 by the engine's clock."""
        return self._clock()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[State | None]:
        """The state, and no batch meanwhile; None: there is none yet."""
        with self._lock:
            self._check_usable()
            yield self._state

    def adopt(self, state: State, change: Change, settings: Settings, model: LinkageModel) -> None:
        """A new generation takes the place of the old one, in one transaction. Within `exclusive`.

        Raises StoreFull before anything has changed.
        """
        self.store.check_room(change)
        self._broken = "a rebuild was cut short"
        dim = state.hierarchy.shape.dim
        self.store.replace(change, {**store_config(settings, model), "dim": dim})
        self._state, self.settings, self.model = state, settings, model
        self._broken = ""
        self.save()

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

    def _shape(self, dim: int) -> Shape:
        return shape_of(self.settings, self.model, dim)

    def _index(self, nodes: Nodes) -> ExactIndex | HnswIndex:
        return index_of(self.settings, nodes)

    def _begin(self, dim: int, decides: bool) -> State:
        """The state of a collection without items."""
        state = State.empty(self._shape(self.dim or dim), self.model, self.model.default_epoch, self._index)
        state.version = self.store.version
        if decides:
            self._state = state
        return state

    def _restore(self) -> None:
        loaded = self.store.load()
        dim = self.store.config["dim"]
        if dim is None:
            return
        state = State.of(loaded, self._shape(dim), self.model, self.model.default_epoch, self._index)
        self._state = state
        if not len(loaded.items.ids):
            return
        state.restore_lists(loaded)
        base = state.hierarchy.base
        rows = base.nodes.all_rows()
        if isinstance(base.lists.index, HnswIndex):
            known = snapshot.load(
                self.store.path, state.version, base.lists.index, state.ids, state.versions, rows
            )
        else:
            base.lists.index.insert(rows)
            known = True
        saved = derived.load(self.store.path, state.version, depends(state, self.model))
        newest = derived.newest(self.store.path, state.version) if known and saved else 0
        self._since_snapshot = int(np.count_nonzero(state.versions[rows] > newest))
        resume(state.hierarchy, state.contents(), saved, state.calibration.epoch, Stopwatch())
        self._settle(state, loaded)

    def _settle(self, state: State, loaded: Loaded) -> None:
        """The restored partition takes the stored names."""
        if self.store.stale:
            self.store.commit(pipeline.regenerate(state, loaded.places, int(self._clock() * 1000)))
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


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What `rebuild` made."""

    version: int
    items: int
    clusters: int


def rebuild(
    settings: Settings, model: LinkageModel | None = None, clock: Callable[[], float] = time.time
) -> Rebuilt:
    """Cluster a store's items anew with the settings' model, calibration and index.

    One version puts the new generation in place of the old; ids follow their members and what
    changed is in the event log. Raises StoreError and InputError.
    """
    model = model or load_model(settings)
    with Store.open(settings.store.path, None, map_bytes=settings.bounds.map_size_bytes) as store:
        store.keep_from = 0  # nobody tells here what is published
        loaded = store.load_to_rebuild()
        dim = store.config["dim"]
        if dim is None:
            raise InputError(f"{settings.store.path} is empty: there is nothing to rebuild")
        shape = shape_of(settings, model, dim)
        state = State.of(loaded, shape, model, model.default_epoch, lambda nodes: index_of(settings, nodes))
        state.calibration.card = model.default_epoch
        state.calibration.begin()
        rows = state.hierarchy.base.nodes.all_rows()
        state.hierarchy.update(rows, rows[:0], state.calibration.epoch, False, Stopwatch())
        change = pipeline.regenerate(state, loaded.places, int(clock() * 1000))
        store.replace(change, {**store_config(settings, model), "dim": dim})
        Saver(store.path).begin(state, model)
        return Rebuilt(change.version, len(rows), len(np.unique(state.trees.paths[:, -1])))


def load_model(settings: Settings) -> LinkageModel:
    """The settings' model, or the one that ships with Shoal. Raises InputError."""
    return LinkageModel.load(settings.model.path) if settings.model.path else LinkageModel.load()


def shape_of(settings: Settings, model: LinkageModel, dim: int) -> Shape:
    """The clustering's configuration: settings, and the model card where they are silent."""
    chosen = settings.model
    return Shape(
        dim=dim,
        k=model.k,
        tau=model.tau if chosen.tau is None else chosen.tau,
        max_levels=chosen.max_levels or model.max_levels,
        base_width=model.k + settings.bounds.slack,
        peak_width=max(32, 2 * model.k),
        search_width=settings.bounds.search_width,
        holders_max=settings.bounds.holders_max,
    )


def store_config(settings: Settings, model: LinkageModel) -> dict[str, Any]:
    """What the stored clusters depend on, as the store compares it."""
    shape = shape_of(settings, model, 1)
    return {
        "collection": settings.collection.name,
        "dim": settings.collection.dim,
        "model": model.sha256,
        "k": shape.k,
        "tau": shape.tau,
        "max_levels": shape.max_levels,
        "arithmetic": determinism.fingerprint(),
    }


def index_of(settings: Settings, nodes: Nodes) -> ExactIndex | HnswIndex:
    chosen = settings.index
    if chosen.kind == "exact":
        return ExactIndex(nodes)
    return HnswIndex(nodes, M=chosen.M, ef_construction=chosen.ef_construction, ef=chosen.ef)


def _encode(key: Key, row: int) -> bytes:
    encoded = key.encode() if isinstance(key, str) else key
    if not 1 <= len(encoded) <= 511:
        raise InputError(f"row {row}: a key has 1 to 511 bytes, this one {len(encoded)}")
    return encoded


def _wrong_dimension(found: int, wanted: int) -> str:
    return f"the vectors have {found} dimensions, the collection {wanted}"
