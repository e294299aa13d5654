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
from engine.clustering.state import Arrivals, State
from engine.collection.build import empty_state, index_of, load_model, shape_of, store_config
from engine.collection.snapshots import Snapshots
from engine.config import Settings
from engine.errors import InputError
from engine.model.trained import Trained, check_dim
from engine.storage import schema
from engine.storage.store import Store
from engine.system.stopwatch import Stopwatch
from engine.types import Change, Int32, Int64


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild made."""

    version: int
    items: int
    clusters: int


@dataclass(frozen=True, slots=True)
class Difference:
    """The items that the new state lacks or has with another vector, and the rows of those that are gone."""

    arrivals: Arrivals
    gone: Int32

    def __len__(self) -> int:
        return len(self.arrivals.keys) + len(self.gone)


class Generation:
    """A state beside the live one. `difference` and `finish` read the live state: let no batch run meanwhile.

    `take` may run beside batches.
    """

    def __init__(self, settings: Settings, model: Trained, dim: int) -> None:
        self.settings, self.model = settings, model
        self.state = empty_state(settings, model, dim)
        self._begun = False

    def difference(self, live: State) -> Difference:
        """Compare by item and version of its vector; event times follow their items."""
        theirs, mine = live.items, self.state.items
        rows, own = theirs.all_rows(), mine.all_rows()
        at = mine.find(theirs.named(rows))
        held = at >= 0
        mine.times[at[held]] = theirs.times[rows[held]]
        same = np.zeros(len(rows), np.bool_)
        same[held] = (mine.ids[at[held]] == theirs.ids[rows[held]]) & (
            mine.versions[at[held]] == theirs.versions[rows[held]]
        )
        rows = rows[~same]
        arrivals = Arrivals(
            keys=theirs.named(rows),
            vectors=live.hierarchy.base.nodes.vectors[theirs.nodes[rows]],
            ids=theirs.ids[rows],
            versions=theirs.versions[rows],
            times=theirs.times[rows],
        )
        return Difference(arrivals, np.setdiff1d(own, at[held]))

    def take(self, change: Difference) -> None:
        """Apply a difference as a batch. The first one also fixes the epoch."""
        state, first = self.state, not self._begun
        if not len(change) and not first:
            return
        turnover = state.take(change.arrivals, change.gone)
        if first:
            state.calibration.begin()
        state.recluster(turnover, False, Stopwatch())
        self._begun = True

    def finish(self, live: State, now_ms: int) -> Change:
        """Take the last difference and name clusters after the live ones; return what that alters."""
        self.take(self.difference(live))
        state = self.state
        state.adopt(live.names, live.version)
        state.next_item, state.next_node = live.next_item, live.next_node
        rows = state.hierarchy.base.nodes.all_rows()
        state.node_ids[rows] = live.node_ids[live.distinct.find(state.hierarchy.base.nodes.vectors[rows])]
        return pipeline.regenerate(state, self._places(live), now_ms)

    def _places(self, live: State) -> Int64:
        """Return the old tree of each item of the new state."""
        items = self.state.items
        old = live.items.nodes[live.items.find(items.named(items.all_rows()))]
        return live.handles[live.hierarchy.base.root[old]]


def rebuild_store(
    settings: Settings, model: Trained | None = None, clock: Callable[[], float] = time.time
) -> Rebuilt:
    """Cluster a store's items from scratch with the settings' model, calibration and index.

    One version puts the new generation in place of the old; ids follow their members and what
    changed is in the event log. Raises StoreError and InputError.
    """
    model = model or load_model(settings)
    with Store.open(settings.store.path, None, map_bytes=settings.limits.map_size_bytes) as store:
        store.retain_from_version = 0  # what is published is not known here
        loaded = store.load_to_rebuild()
        dim = store.config["dim"]
        if dim is None:
            raise nothing_to_rebuild(settings)
        check_dim(model, dim)
        shape = shape_of(settings, model, dim)
        state = State.of(loaded, shape, model, model.default_epoch, index_of(settings))
        state.calibration.card = model.default_epoch
        state.calibration.begin()
        state.recluster_all()
        change = pipeline.regenerate(state, loaded.places, int(clock() * 1000))
        snapshots = Snapshots(store.path)
        if store.format == schema.REBUILT_FROM:
            snapshots.clear()  # they are of items, no snapshots of nodes
        store.replace(change, {**store_config(settings, model), "dim": dim})
        snapshots.begin(state, model)
        return rebuilt(state, change)


def rebuilt(state: State, change: Change) -> Rebuilt:
    """Count what a rebuild made."""
    clusters = len(np.unique(state.names.trees.paths[:, -1]))
    return Rebuilt(change.version, state.items.live, clusters)


def nothing_to_rebuild(settings: Settings) -> InputError:
    return InputError(f"{settings.store.path} is empty: there is nothing to rebuild")
