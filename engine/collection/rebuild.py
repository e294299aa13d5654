"""A new generation of a live collection: clustered anew beside the old one, which goes on meanwhile.

    all items as they are now -> clustered in a state of its own, with the new settings, model and epoch
    what has changed since, again and again until it is little -> a batch for the new state
    the last of it, with the old state standing still -> names after the old ones, one transaction

The engine's lock is held while items are copied, and in the last step; queries never wait.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.clustering import pipeline
from engine.clustering.state import State
from engine.collection.collection import Engine, Rebuilt, index_of, load_model, shape_of
from engine.config import Settings
from engine.errors import InputError
from engine.model.linkage import LinkageModel
from engine.system.stopwatch import Stopwatch
from engine.types import Bool, Int16, Int32, Int64
from engine.vectors import hash_keys

_ROUNDS = 8  # of catching up beside the old generation, at most
_FEW = 512  # changes that are taken while it stands still


@dataclass(frozen=True, slots=True)
class _Difference:
    """What the new state lacks, and the rows of it that are no more."""

    keys: list[bytes]
    ids: Int64
    versions: Int64
    times: Int64
    vectors: Int16
    gone: Int32

    def __len__(self) -> int:
        return len(self.keys) + len(self.gone)


def rebuild(engine: Engine, settings: Settings, model: LinkageModel | None = None) -> Rebuilt:
    """Cluster the items of an open engine anew; it goes over to the new settings and model.

    Batches may be applied from other threads meanwhile. `model`: none that another thread uses.
    Raises InputError (it is empty), StoreError.
    """
    model = model or load_model(settings)
    with engine.exclusive() as live:
        if live is None:
            raise InputError(f"{engine.store.path} is empty: there is nothing to rebuild")
        dim = live.hierarchy.shape.dim
        shape = shape_of(settings, model, dim)
        state = State.empty(shape, model, model.default_epoch, lambda nodes: index_of(settings, nodes))
        first = _difference(live, state)
    _take(state, first, begins=True)
    for _ in range(_ROUNDS):
        with engine.exclusive() as live:
            assert live is not None
            more = _difference(live, state)
        if len(more) <= _FEW:
            break
        _take(state, more)
    with engine.exclusive() as live:
        assert live is not None
        _take(state, _difference(live, state))
        _adopt_names(state, live)
        change = pipeline.regenerate(state, _places(state, live), int(engine.now() * 1000))
        engine.adopt(state, change, settings, model)
    base = state.hierarchy.base
    return Rebuilt(change.version, base.nodes.live, len(np.unique(state.trees.paths[:, -1])))


def _difference(live: State, state: State) -> _Difference:
    """By item and version of its vector; events' times follow with the items."""
    theirs, mine = live.hierarchy.base.nodes, state.hierarchy.base.nodes
    rows, own = theirs.all_rows(), mine.all_rows()
    wanted = np.stack([live.ids[rows], live.versions[rows]], axis=1)
    held = np.stack([state.ids[own], state.versions[own]], axis=1)
    known, stays = _shared(wanted, held)
    order = np.argsort(live.ids[rows[known]])
    state.times[own[stays][np.argsort(state.ids[own[stays]])]] = live.times[rows[known][order]]
    rows = rows[~known]
    return _Difference(
        [live.keys[row] for row in rows.tolist()],
        live.ids[rows],
        live.versions[rows],
        live.times[rows],
        theirs.vectors[rows],
        own[~stays],
    )


def _shared(one: Int64, other: Int64) -> tuple[Bool, Bool]:
    """Which rows of two tables (n, 2), (m, 2) are in the other one, too."""
    pairs, place = np.unique(np.concatenate([one, other]), axis=0, return_inverse=True)
    twice = np.bincount(place.ravel(), minlength=len(pairs)) > 1
    both = twice[place.ravel()]
    return both[: len(one)], both[len(one) :]


def _take(state: State, change: _Difference, begins: bool = False) -> None:
    """A batch for the new state. `begins`: the first one, which also fixes the epoch."""
    base, calibration, gone = state.hierarchy.base, state.calibration, change.gone
    if not len(change) and not begins:
        return
    calibration.add(base.nodes.vectors[gone], sign=-1)
    base.nodes.remove(gone)
    state.leave(gone)
    rows = base.add(change.vectors, hash_keys(change.keys))
    calibration.add(change.vectors)
    if begins:
        calibration.begin()
    state.place(rows, change.keys, change.ids, change.versions, change.times)
    state.hierarchy.update(rows, gone, calibration.epoch, False, Stopwatch())


def _adopt_names(state: State, live: State) -> None:
    state.version, state.trees, state.clusters = live.version, live.trees, live.clusters
    state.next_item, state.next_tree, state.next_cluster = live.next_item, live.next_tree, live.next_cluster


def _places(state: State, live: State) -> Int64:
    """The old tree of each live row of the new state."""
    rows = state.hierarchy.base.nodes.all_rows()
    old = np.array([live.row_of[state.keys[row]] for row in rows.tolist()], np.int32)
    return live.handles[live.hierarchy.base.root[old]]
