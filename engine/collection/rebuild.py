"""A new generation: all items clustered from scratch, with new settings, model and calibration.

`Engine.rebuild` makes it beside the live state, which goes on meanwhile:

    all items as they are now -> clustered in a state of its own
    what has changed since, again and again until it is little -> a batch for the new state
    the last of it, with the old state standing still -> names after the old ones, one transaction

`rebuild_store` makes one of a store that nobody has open.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.clustering import pipeline
from engine.clustering.state import State
from engine.collection.build import empty_state, index_of, load_model, shape_of, store_config
from engine.collection.snapshots import Snapshots
from engine.config import Settings
from engine.errors import InputError
from engine.model.linkage import LinkageModel
from engine.storage.store import Store
from engine.system.stopwatch import Stopwatch
from engine.types import Bool, Change, Int16, Int32, Int64
from engine.vectors import hash_keys


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild made."""

    version: int
    items: int
    clusters: int


@dataclass(frozen=True, slots=True)
class Difference:
    """The items that the new state lacks, and the rows of it that hold none any more."""

    keys: list[bytes]
    ids: Int64
    versions: Int64
    times: Int64
    vectors: Int16
    gone: Int32

    def __len__(self) -> int:
        return len(self.keys) + len(self.gone)


class Generation:
    """A state beside the live one. `difference` and `finish` read the live state: let no batch run meanwhile.

    `take` may run beside batches.
    """

    def __init__(self, settings: Settings, model: LinkageModel, dim: int) -> None:
        self.settings, self.model = settings, model
        self.state = empty_state(settings, model, dim)
        self._begun = False

    def difference(self, live: State) -> Difference:
        """Compare by item and version of its vector; event times follow their items."""
        state = self.state
        theirs, mine = live.hierarchy.base.nodes, state.hierarchy.base.nodes
        rows, own = theirs.all_rows(), mine.all_rows()
        wanted = np.stack([live.ids[rows], live.versions[rows]], axis=1)
        held = np.stack([state.ids[own], state.versions[own]], axis=1)
        known, stays = _shared(wanted, held)
        order = np.argsort(live.ids[rows[known]])
        state.times[own[stays][np.argsort(state.ids[own[stays]])]] = live.times[rows[known][order]]
        rows = rows[~known]
        return Difference(
            [live.keys[row] for row in rows.tolist()],
            live.ids[rows],
            live.versions[rows],
            live.times[rows],
            theirs.vectors[rows],
            own[~stays],
        )

    def take(self, change: Difference) -> None:
        """Apply a difference as a batch. The first one also fixes the epoch."""
        state, gone, first = self.state, change.gone, not self._begun
        base, calibration = state.hierarchy.base, state.calibration
        if not len(change) and not first:
            return
        calibration.add(base.nodes.vectors[gone], sign=-1)
        base.nodes.remove(gone)
        state.leave(gone)
        rows = base.add(change.vectors, hash_keys(change.keys))
        calibration.add(change.vectors)
        if first:
            calibration.begin()
        state.place(rows, change.keys, change.ids, change.versions, change.times)
        state.hierarchy.update(rows, gone, calibration.epoch, False, Stopwatch())
        self._begun = True

    def finish(self, live: State, now_ms: int) -> Change:
        """Take the last difference and name clusters after the live ones; return what that alters."""
        self.take(self.difference(live))
        state = self.state
        state.version, state.trees, state.clusters = live.version, live.trees, live.clusters
        state.next_item, state.next_tree = live.next_item, live.next_tree
        state.next_cluster = live.next_cluster
        return pipeline.regenerate(state, self._places(live), now_ms)

    def _places(self, live: State) -> Int64:
        """Return the old tree of each live row of the new state."""
        state = self.state
        rows = state.hierarchy.base.nodes.all_rows()
        old = np.array([live.row_of[state.keys[row]] for row in rows.tolist()], np.int32)
        return live.handles[live.hierarchy.base.root[old]]


def _shared(one: Int64, other: Int64) -> tuple[Bool, Bool]:
    """Return which rows of two tables (n, 2), (m, 2) are in the other one, too."""
    pairs, place = np.unique(np.concatenate([one, other]), axis=0, return_inverse=True)
    twice = np.bincount(place.ravel(), minlength=len(pairs)) > 1
    both = twice[place.ravel()]
    return both[: len(one)], both[len(one) :]


def rebuild_store(
    settings: Settings, model: LinkageModel | None = None, clock: Callable[[], float] = time.time
) -> Rebuilt:
    """Cluster a store's items from scratch with the settings' model, calibration and index.

    One version puts the new generation in place of the old; ids follow their members and what
    changed is in the event log. Raises StoreError and InputError.
    """
    model = model or load_model(settings)
    with Store.open(settings.store.path, None, map_bytes=settings.bounds.map_size_bytes) as store:
        store.retain_from_version = 0  # what is published is not known here
        loaded = store.load_to_rebuild()
        dim = store.config["dim"]
        if dim is None:
            raise nothing_to_rebuild(settings)
        shape = shape_of(settings, model, dim)
        state = State.of(loaded, shape, model, model.default_epoch, index_of(settings))
        state.calibration.card = model.default_epoch
        state.calibration.begin()
        rows = state.hierarchy.base.nodes.all_rows()
        state.hierarchy.update(rows, rows[:0], state.calibration.epoch, False, Stopwatch())
        change = pipeline.regenerate(state, loaded.places, int(clock() * 1000))
        store.replace(change, {**store_config(settings, model), "dim": dim})
        Snapshots(store.path).begin(state, model)
        return rebuilt(state, change)


def rebuilt(state: State, change: Change) -> Rebuilt:
    """Count what a rebuild made."""
    clusters = len(np.unique(state.trees.paths[:, -1]))
    return Rebuilt(change.version, state.hierarchy.base.nodes.live, clusters)


def nothing_to_rebuild(settings: Settings) -> InputError:
    return InputError(f"{settings.store.path} is empty: there is nothing to rebuild")
