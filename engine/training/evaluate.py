"""How good the clusters of a labelled set are: in bulk, and streamed in micro-batches.

A labelled set is any file that can be ingested, if its records have labels. Figures are those
of the final clusters of the whole engine, store included.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from connectors.files import labelled as files
from engine.clustering import pipeline
from engine.clustering.state import State
from engine.collection.build import shape_of
from engine.collection.collection import Engine
from engine.config import STREAM_BATCH, Settings, StoreSettings
from engine.index.base import ExactIndex
from engine.training import scores
from engine.types import Int64

CHURN_ITEMS = 256  # churn is measured every so many items


@dataclass(frozen=True, slots=True)
class Labelled:
    keys: Sequence[str]
    emb: NDArray[Any]  # (n, d)
    labels: Int64  # (n,)
    times: NDArray[Any]  # (n,), zeros where the set has none
    timed: bool
    left_out: int = 0  # records of the file that cannot be used


@dataclass(frozen=True, slots=True)
class Figures:
    """Against labels: Fp, Fb, NMI. None: not measured."""

    items: int
    Fp: float
    Fb: float
    NMI: float
    ARI: float | None  # against the exact rebuild of the same items at the same calibration
    clusters: int
    singletons: int
    churn: float | None  # items that change their final cluster per inserted one, second half
    seconds: float  # of clustering and storing


def read_labelled(path: Path) -> Labelled:
    """Read a labelled set. Raises InputError where the file is none."""
    found = files.read_labelled(path)
    _, classes = np.unique(list(map(str, found.labels)), return_inverse=True)
    keys = [str(row) for row in range(len(found.emb))]
    times = np.zeros(len(keys)) if found.times is None else found.times
    timed, left_out = found.times is not None, len(found.left_out)
    return Labelled(keys, found.emb, classes.astype(np.int64), times, timed, left_out)


def stream_order(labelled: Labelled, seed: int) -> Int64:
    """By time, shuffled where times are equal or there are none."""
    shuffled = np.random.default_rng(seed).permutation(len(labelled.keys))
    return shuffled[np.argsort(labelled.times[shuffled], kind="stable")]


def in_bulk(settings: Settings, labelled: Labelled) -> Figures:
    """Everything in one batch."""
    with _temporary(settings) as engine:
        start = time.perf_counter()
        engine.upsert(labelled.keys, labelled.emb)
        seconds = time.perf_counter() - start
        return measure(labelled.labels, clusters_by_number(engine.state), seconds)


def streamed(
    settings: Settings,
    labelled: Labelled,
    order: Int64,
    report: Callable[[int], None] = lambda done: None,
) -> Figures:
    """In micro-batches; then compared with the exact rebuild. `report` is told the items done."""
    size = settings.batch.size or STREAM_BATCH
    churn = Churn(len(order))
    seconds = 0.0
    with _temporary(settings) as engine:
        for first in range(0, len(order), size):
            rows = order[first : first + size]
            start = time.perf_counter()
            engine.upsert([labelled.keys[row] for row in rows], labelled.emb[rows])
            seconds += time.perf_counter() - start
            churn.observe(engine)
            if (first // size) % 10 == 9:
                report(first + len(rows))
        clusters = clusters_by_number(engine.state)
        ari = scores.ari(rebuilt_clusters(engine), clusters)
        return measure(labelled.labels, clusters, seconds, ari, churn.rate)


def measure(
    labels: Int64, clusters: Int64, seconds: float, ari: float | None = None, churn: float | None = None
) -> Figures:
    """All figures of a partition (n,) against labels (n,)."""
    sizes = np.unique(clusters, return_counts=True)[1]
    return Figures(
        items=len(labels),
        Fp=scores.pairwise_f(labels, clusters),
        Fb=scores.bcubed_f(labels, clusters),
        NMI=scores.nmi(labels, clusters),
        ARI=ari,
        clusters=len(sizes),
        singletons=int((sizes == 1).sum()),
        churn=churn,
        seconds=seconds,
    )


def rebuilt_clusters(engine: Engine) -> Int64:
    """The final clusters of `exact_rebuild`, as `clusters_by_number`."""
    return clusters_by_number(exact_rebuild(engine))


def clusters_by_number(state: State) -> Int64:
    """The final cluster of each item (n,); keys must be the numbers 0 .. n-1."""
    keys = [b"%d" % number for number in range(state.items.live)]
    return state.final_clusters(state.items.find(keys))


def exact_rebuild(engine: Engine) -> State:
    """The engine's items clustered from scratch: exact lists, the store's own calibration."""
    loaded = engine.store.load()
    shape = shape_of(engine.settings, engine.model, engine.state.hierarchy.shape.dim)
    state = State.of(loaded, shape, engine.model, engine.model.default_epoch, ExactIndex)
    state.recluster_all()
    pipeline.regenerate(state, loaded.places, loaded.time_ms)
    return state


class Churn:
    """Existing items whose final cluster changes, per inserted item, in the second half of a stream.

    Looks every 256 items, whatever the batches. Keys must be the numbers 0 .. n-1.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._known = np.zeros(total, np.int64)  # cluster by key when last looked, 0: not there
        self._items = self._changed = self._inserted = 0

    def observe(self, engine: Engine) -> None:
        """After each batch."""
        if len(engine) < self._items + CHURN_ITEMS and len(engine) < self._total:
            return
        keys, clusters = engine.labels()
        current = np.zeros(self._total, np.int64)
        current[np.array([int(key) for key in keys], np.int64)] = clusters
        if self._items >= self._total / 2:
            self._changed += int(((current != self._known) & (self._known != 0)).sum())
            self._inserted += len(keys) - self._items
        self._known, self._items = current, len(keys)

    @property
    def rate(self) -> float | None:
        """None: the stream was too short."""
        return self._changed / self._inserted if self._inserted else None


@contextmanager
def _temporary(settings: Settings) -> Iterator[Engine]:
    """An engine on a store that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="shoal-evaluate-") as folder:
        chosen = settings.model_copy(update={"store": StoreSettings(path=Path(folder))})
        with Engine.open(chosen) as engine:
            yield engine
