"""A new generation: all items clustered from scratch, with new settings, model and calibration.

`Engine.rebuild` makes it while the live state keeps taking batches:

    all items as they are now -> clustered in a state of its own
    what has changed since, again and again until it is little -> a batch for the new state
    the last of it, with the old state standing still -> names after the old ones, one transaction

`rebuild_store` makes one of a store that no process has open.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from engine.clustering import pipeline
from engine.clustering.state import Arrivals, State
from engine.collection.build import empty_state, index_of, load_adapter, load_model, shape_of, store_config
from engine.collection.snapshots import Snapshots
from engine.collection.space import incoming_of, moved_to, number_nodes, renumbered, space_dim
from engine.config import Settings
from engine.errors import InputError
from engine.model.adapter import Adapter
from engine.model.trained import Trained, check_dim
from engine.storage import schema
from engine.storage.store import Store, changes
from engine.types import Change, Int16, Int32, Int64, Renumbered


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild made."""

    version: int
    items: int
    clusters: int
    changed: tuple[str, ...]  # settings: `tau 0.6 -> 0.42`


@dataclass(frozen=True, slots=True)
class Difference:
    """The items that the new state lacks or has with another vector, and the rows of those that are gone."""

    arrivals: Arrivals  # with vectors of `Spaces.vectors_of`
    gone: Int32

    def __len__(self) -> int:
        return len(self.arrivals.keys) + len(self.gone)


@dataclass(frozen=True, slots=True)
class Spaces:
    """The adapter of a live state and that of the state to come; None: none."""

    store: Store
    dim: int  # of incoming vectors
    before: Adapter | None
    after: Adapter | None

    @property
    def differ(self) -> bool:
        return (self.before and self.before.sha256) != (self.after and self.after.sha256)

    def vectors_of(self, live: State, items: Int32) -> Int16:
        """Return the items' vectors, by row: incoming ones where the spaces differ."""
        if self.differ:
            return incoming_of(live, items, self.before, self.store)
        return live.hierarchy.base.nodes.vectors[live.items.nodes[items]]

    def mapped(self, arrivals: Arrivals) -> Arrivals:
        """Return arrivals with vectors of the new space in the place of `vectors_of`."""
        if self.after is None or not self.differ:
            return arrivals
        return replace(arrivals, vectors=self.after.apply(arrivals.vectors))


class Generation:
    """A second state. `difference` and `finish` read the live one: let no batch run meanwhile.

    `take` may run during batches.
    """

    def __init__(self, settings: Settings, model: Trained, spaces: Spaces) -> None:
        self.settings, self.model, self.spaces = settings, model, spaces
        self.state = empty_state(settings, model, space_dim(spaces.after, spaces.dim))
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
            rows=at[~same],
            keys=theirs.named(rows),
            vectors=self.spaces.vectors_of(live, rows),
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
        turnover = state.take(self.spaces.mapped(change.arrivals), change.gone)
        if first:
            state.calibration.begin()
        state.hierarchy.update(turnover.new, turnover.gone, state.calibration.epoch)
        self._begun = True

    def finish(self, live: State, now_ms: int) -> Change:
        """Take the last difference and name clusters after the live ones; return what that alters."""
        self.take(self.difference(live))
        state = self.state
        state.names, state.version = live.names, live.version
        state.next_item, state.next_node = live.next_item, live.next_node
        if self.spaces.differ:
            state.next_node = number_nodes(state, live.next_node)
        else:
            rows = state.hierarchy.base.nodes.all_rows()
            state.node_ids[rows] = live.node_ids[live.distinct.find(state.hierarchy.base.nodes.vectors[rows])]
        return pipeline.regenerate(state, self._places(live), now_ms)

    def renumbered(self) -> Renumbered | None:
        """Return the items' new nodes after `finish`; None: they have the nodes that they had."""
        return renumbered(self.state, self.spaces.after is not None) if self.spaces.differ else None

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
    changed is in the event log. The store keeps its name unless the settings set one. Raises StoreError and
    InputError.
    """
    model = model or load_model(settings)
    with Store.open(settings.store.path, None, map_bytes=settings.limits.map_size_bytes) as store:
        store.retain_from_version = 0  # what is published is not known here
        loaded = store.load_to_rebuild()
        dim = store.config["dim"]
        if dim is None:
            raise nothing_to_rebuild(settings)
        adapter, moved = load_adapter(settings), None
        check_dim(model, space_dim(adapter, dim))
        shape = shape_of(settings, model, space_dim(adapter, dim))
        if (held := store.config.get("adapter")) != (adapter and adapter.sha256):
            of_item = np.searchsorted(loaded.vectors.ids, loaded.items.nodes)
            incoming = store.incoming() if held else loaded.vectors.vectors[of_item]
            loaded, moved = moved_to(adapter, loaded, incoming)
        state = State.of(loaded, shape, model, model.default_epoch, index_of(settings))
        state.calibration.card = model.default_epoch
        state.calibration.begin()
        state.recluster_all()
        change = pipeline.regenerate(state, loaded.places, int(clock() * 1000))
        snapshots = Snapshots(store.path)
        if store.format == schema.REBUILT_FROM:
            snapshots.clear()  # they are of items, no snapshots of nodes
        config = {**store_config(settings, model, adapter), "dim": dim}
        if "name" not in settings.collection.model_fields_set:
            config["collection"] = store.config["collection"]
        changed = changes(store.config, config)
        store.commit(change, config, moved)
        snapshots.begin(state, model)
        return rebuilt(state, change, changed)


def rebuilt(state: State, change: Change, changed: tuple[str, ...]) -> Rebuilt:
    """Count what a rebuild made."""
    clusters = len(np.unique(state.names.trees.paths[:, -1]))
    return Rebuilt(change.version, state.items.live, clusters, changed)


def nothing_to_rebuild(settings: Settings) -> InputError:
    return InputError(f"{settings.store.path} is empty: there is nothing to rebuild")
