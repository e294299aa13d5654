"""Evaluates the engine on a labelled set, in bulk or streamed in micro-batches.

A labelled set is any file that can be ingested, if its records have labels. Figures are of the final
clusters of the whole engine, store included.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from connectors.chunks import Remark
from connectors.files import labelled as files
from engine.clustering import pipeline
from engine.clustering.state import State
from engine.collection.build import load_adapter, load_model, shape_of
from engine.collection.collection import Engine
from engine.collection.space import space_dim
from engine.config import STREAM_BATCH, Settings
from engine.evaluation import scores
from engine.evaluation.bulk import BulkClustering, partitions
from engine.index.base import ExactIndex
from engine.model.trained import check_dim
from engine.types import Int64, Loaded

CHURN_ITEMS = 256  # items between two measurements of churn
WARM_UP = 64  # items that are clustered before time counts
BACK_WITHIN = 5  # observations within which a change that is reverted counts as flapping


@dataclass(frozen=True, slots=True)
class Labelled:
    """A labelled set of n items."""

    keys: Sequence[str]
    emb: NDArray[Any]  # (n, d)
    labels: Int64  # (n,)
    times: NDArray[Any]  # (n,) event times; zeros where the set has none
    timed: bool  # whether it has event times
    left_out: Sequence[Remark] = ()  # on records of the file that cannot be used
    superseded: int = 0  # records that a later one of the same key replaced
    names: Sequence[str] = ()  # of the classes, by label


@dataclass(frozen=True, slots=True)
class Figures:
    """Scores against the labels; `ARI` compares with an exact rebuild. None: not measured."""

    items: int
    Fp: float
    Fp_precision: float
    Fp_recall: float
    Fb: float
    Fb_precision: float
    Fb_recall: float
    NMI: float
    ARI_labels: float
    ARI: float | None  # against the exact rebuild of the same items at the same calibration
    clusters: int
    singletons: int
    churn: float | None  # items that change their final cluster per inserted item, in the second half
    flapping: float | None  # share of these changes that are reverted within five observations
    seconds: float  # of clustering and storing


@dataclass(frozen=True, slots=True)
class Run:
    """One clustering of a labelled set."""

    tau: float
    figures: Figures
    levels: Sequence[Figures]  # after each level, finest first; the last are the final clusters
    clusters: Int64  # (n,) the final ones
    churn: Sequence[
        tuple[int, float]
    ] = ()  # items so far, changes per inserted item since the last observation


def read_labelled(path: Path) -> Labelled:
    """Read a labelled set. Raises InputError where the file is none."""
    found = files.read_labelled(path)
    names, classes = found.classes()
    keys = [str(row) for row in range(len(found.emb))]
    times = np.zeros(len(keys)) if found.times is None else found.times
    return Labelled(
        keys,
        found.emb,
        classes,
        times,
        timed=found.times is not None,
        left_out=found.left_out,
        superseded=found.superseded,
        names=names,
    )


def stream_order(labelled: Labelled, seed: int) -> Int64:
    """Return the rows (n,) by time, shuffled where times are equal or missing."""
    shuffled = np.random.default_rng(seed).permutation(len(labelled.keys))
    return shuffled[np.argsort(labelled.times[shuffled], kind="stable")]


def in_bulk(settings: Settings, labelled: Labelled) -> Figures:
    """Cluster everything in one batch; return the figures."""
    return run_in_bulk(settings, labelled, [None])[0].figures


def run_in_bulk(settings: Settings, labelled: Labelled, taus: Sequence[float | None]) -> list[Run]:
    """Cluster everything in one batch, once for each tau; None: the settings' or the model's.

    Neighbour lists do not depend on tau and are computed once.
    """
    runs: list[Run] = []
    with _temporary(_at(settings, taus[0])) as engine:
        start = time.perf_counter()
        engine.upsert(labelled.keys, labelled.emb)
        runs.append(_run(engine.state, labelled, time.perf_counter() - start))
        for tau in taus[1:]:
            start = time.perf_counter()
            state = _clustered_again(engine, tau)
            runs.append(_run(state, labelled, time.perf_counter() - start))
    return runs


def warm_up(settings: Settings, labelled: Labelled) -> None:
    """Compile and load what the first clustering needs, which its seconds are not to count.

    Raises InputError where the model or its adapter takes embeddings of other dimensions.
    """
    check_dim(load_model(settings), space_dim(load_adapter(settings), labelled.emb.shape[1]))
    with _temporary(settings) as engine:
        engine.upsert(labelled.keys[:WARM_UP], labelled.emb[:WARM_UP])


def run_streamed(
    settings: Settings,
    labelled: Labelled,
    order: Int64,
    report: Callable[[int], None] = lambda done: None,
    tau: float | None = None,
) -> Run:
    """Cluster in micro-batches, in the order of the rows `order` (n,), and compare with the exact rebuild.

    `report` is called with the items done. `tau`: None: the settings' or the model's.
    """
    size = settings.batch.size or STREAM_BATCH
    churn = Churn(len(order))
    seconds = 0.0
    with _temporary(_at(settings, tau)) as engine:
        for first in range(0, len(order), size):
            rows = order[first : first + size]
            start = time.perf_counter()
            engine.upsert([labelled.keys[row] for row in rows], labelled.emb[rows])
            seconds += time.perf_counter() - start
            churn.observe(engine)
            if (first // size) % 10 == 9:
                report(first + len(rows))
        ari = scores.ari(rebuilt_clusters(engine), clusters_by_number(engine.state))
        return _run(engine.state, labelled, seconds, ari, churn)


def _run(
    state: State, labelled: Labelled, seconds: float, ari: float | None = None, churn: Churn | None = None
) -> Run:
    found = clusters_by_level(state)
    parts = [measure(labelled.labels, part, seconds) for part in found]
    clusters = found[-1]
    rate, back = (churn.rate, churn.flapping) if churn else (None, None)
    figures = measure(labelled.labels, clusters, seconds, ari, rate, back)
    return Run(state.hierarchy.shape.tau, figures, parts, clusters, churn.curve if churn else ())


def _at(settings: Settings, tau: float | None) -> Settings:
    return settings if tau is None else settings.with_model(tau=tau)


def measure(
    labels: Int64,
    clusters: Int64,
    seconds: float,
    ari: float | None = None,
    churn: float | None = None,
    flapping: float | None = None,
) -> Figures:
    """Return all figures of a partition (n,) against labels (n,)."""
    sizes = np.unique(clusters, return_counts=True)[1]
    pairs, items = scores.pairwise(labels, clusters), scores.bcubed(labels, clusters)
    return Figures(
        items=len(labels),
        Fp=pairs.f,
        Fp_precision=pairs.precision,
        Fp_recall=pairs.recall,
        Fb=items.f,
        Fb_precision=items.precision,
        Fb_recall=items.recall,
        NMI=scores.nmi(labels, clusters),
        ARI_labels=scores.ari(labels, clusters),
        ARI=ari,
        clusters=len(sizes),
        singletons=int((sizes == 1).sum()),
        churn=churn,
        flapping=flapping,
        seconds=seconds,
    )


def rebuilt_clusters(engine: Engine) -> Int64:
    """Return the final clusters of `exact_rebuild`; keys must be the numbers 0 .. n-1."""
    return clusters_by_number(exact_rebuild(engine))


def clusters_by_number(state: State) -> Int64:
    """Return the final cluster of each item (n,); keys must be the numbers 0 .. n-1."""
    keys = [b"%d" % number for number in range(state.items.live)]
    return state.final_clusters(state.items.find(keys))


def clusters_by_level(state: State) -> list[Int64]:
    """Return the clusters (n,) after each level, finest first; keys must be the numbers 0 .. n-1."""
    keys = [b"%d" % number for number in range(state.items.live)]
    nodes = state.items.nodes[state.items.find(keys)].astype(np.int64)
    return partitions(BulkClustering(state.hierarchy.levels, nodes))


def _clustered_again(engine: Engine, tau: float | None) -> State:
    """Cluster the engine's items at another tau from its lists and calibration, without naming clusters."""
    state, loaded = _unclustered(engine, _at(engine.settings, tau))
    state.restore_lists(loaded)
    state.hierarchy.restore(state.calibration.epoch)
    return state


def exact_rebuild(engine: Engine) -> State:
    """Cluster the engine's items from scratch, with exact lists and the store's calibration."""
    state, loaded = _unclustered(engine, engine.settings)
    state.recluster_all()
    pipeline.regenerate(state, loaded.places, loaded.time_ms)
    return state


def _unclustered(engine: Engine, settings: Settings) -> tuple[State, Loaded]:
    """Load the engine's store into a state with these settings, without lists; return both."""
    loaded, model = engine.store.load(), engine.model
    shape = shape_of(settings, model, engine.state.hierarchy.shape.dim)
    return State.of(loaded, shape, model, model.default_epoch, ExactIndex), loaded


class Churn:
    """Churn: existing items whose final cluster changes, per inserted item, in the second half of a stream.

    Clusters are compared every 256 items, whatever the batches. Keys must be the numbers 0 .. n-1.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._known = np.zeros(total, np.int64)  # cluster by key at the last observation, 0: none
        self._items = self._changed = self._inserted = self._back = 0
        self._pending: deque[tuple[Int64, Int64]] = deque(maxlen=BACK_WITHIN)  # keys, clusters before
        self.curve: list[tuple[int, float]] = []  # see `Run.churn`

    def observe(self, engine: Engine) -> None:
        """Observe the clusters, where enough items have come since; call it after each batch."""
        if len(engine) < self._items + CHURN_ITEMS and len(engine) < self._total:
            return
        keys, clusters = engine.labels()
        current = np.zeros(self._total, np.int64)
        current[np.array([int(key) for key in keys], np.int64)] = clusters
        changed = np.flatnonzero((current != self._known) & (self._known != 0))
        inserted = len(keys) - self._items
        if self._items:
            self.curve.append((len(keys), len(changed) / max(inserted, 1)))
        if self._items >= self._total / 2:
            self._changed += len(changed)
            self._inserted += inserted
            self._take_back(current, changed)
        self._known, self._items = current, len(keys)

    def _take_back(self, current: Int64, changed: Int64) -> None:
        """Count the changes of the last observations that this one reverts, each once."""
        for at, (keys, before) in enumerate(self._pending):
            back = current[keys] == before
            self._back += int(back.sum())
            self._pending[at] = keys[~back], before[~back]
        self._pending.append((changed, self._known[changed]))

    @property
    def rate(self) -> float | None:
        """Changes per inserted item; None: the stream was too short."""
        return self._changed / self._inserted if self._inserted else None

    @property
    def flapping(self) -> float | None:
        """Share of the changes that were reverted within five observations; None: there were none."""
        return self._back / self._changed if self._changed else None


@contextmanager
def _temporary(settings: Settings) -> Iterator[Engine]:
    """Open an engine on a temporary store."""
    with (
        tempfile.TemporaryDirectory(prefix="shoal-evaluate-") as folder,
        Engine.open(settings.in_folder(Path(folder))) as engine,
    ):
        yield engine
