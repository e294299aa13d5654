"""A store as dictionaries, kept by nothing but the changes it is sent; it checks each against the last."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from engine.clustering.pipeline import State
from engine.types import Assignment, Change, Cluster, Int64
from tests.support.sequences import partition


@dataclass
class Replica:
    items: dict[int, tuple[bytes, bytes, int]] = field(default_factory=dict)  # id -> key, vector, version
    lists: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # id -> (neighbour id, dot)
    places: dict[int, int] = field(default_factory=dict)  # id -> level-0 tree
    paths: dict[int, tuple[int, ...]] = field(default_factory=dict)  # tree -> clusters, final first
    clusters: dict[int, Cluster] = field(default_factory=dict)
    final: dict[bytes, int] = field(default_factory=dict)  # key -> cluster, from the events
    version: int = 0

    def apply(self, change: Change) -> None:
        assert change.version == self.version + 1
        self.version = change.version
        self._take_items(change)
        self._take_moves(*change.moved)
        self.paths.update(change.trees)
        self.paths = {tree: path for tree, path in self.paths.items() if path}
        for record in change.clusters:
            self.clusters[record.id] = record
        self.clusters = {name: record for name, record in self.clusters.items() if not record.ended}
        ids = {key: item for item, (key, _, _) in self.items.items()}
        for event in change.events:
            if isinstance(event, Assignment):
                self._assign(event, ids.get(event.key))

    def _take_items(self, change: Change) -> None:
        for item, key in change.removed:
            assert self.items.pop(item)[0] == key
            del self.lists[item]
        new = change.upserts
        columns = (new.ids.tolist(), new.keys, new.vectors, new.versions.tolist())
        for item, key, vector, version in zip(*columns, strict=True):
            old = self.items.get(item)
            assert old is None or old[0] == key, "an id changed its key"
            moved = old is None or old[1] != vector.tobytes()
            assert version == (change.version if moved else old[2]), "the version is not its vector's"
            self.items[item] = (key, vector.tobytes(), version)
        assert (np.diff(change.lists.ids) > 0).all()
        columns = (change.lists.ids.tolist(), change.lists.neighbors.tolist(), change.lists.dots.tolist())
        for item, row, dots in zip(*columns, strict=True):
            self.lists[item] = [pair for pair in zip(row, dots, strict=True) if pair[0] >= 0]

    def _take_moves(self, ids: Int64, before: Int64, after: Int64) -> None:
        assert len(np.unique(ids)) == len(ids)
        for item, old, new in zip(ids.tolist(), before.tolist(), after.tolist(), strict=True):
            assert self.places.get(item, 0) == old != new
            self.places[item] = new
        self.places = {item: tree for item, tree in self.places.items() if tree}

    def _assign(self, event: Assignment, item: int | None) -> None:
        assert self.final.pop(event.key, 0) == event.previous != event.cluster, event
        if event.cluster:
            assert item is not None
            assert event.path == self.paths[self.places[item]], event
            self.final[event.key] = event.cluster
        else:
            assert item is None, event

    def check(self, state: State) -> None:
        """It holds what the state holds, and the clusters' records describe the items' paths."""
        nodes, lists = state.hierarchy.base.nodes, state.hierarchy.base.lists
        assert len(self.items) == len(state.row_of) == nodes.live
        for item, (key, vector, version) in self.items.items():
            row = state.row_of[key]
            assert state.keys[row] == key
            assert (state.ids[row], state.versions[row]) == (item, version)
            assert nodes.vectors[row].tobytes() == vector
            own = slice(0, lists.lengths[row])
            neighbors, dots = state.ids[lists.neighbors[row, own]].tolist(), lists.dots[row, own].tolist()
            assert self.lists[item] == list(zip(neighbors, dots, strict=True))
        assert self.places.keys() == self.items.keys()
        assert set(self.places.values()) == self.paths.keys()
        assert self.final == {
            key: self.paths[self.places[item]][0] for item, (key, _, _) in self.items.items()
        }
        sizes = Counter(name for tree in self.places.values() for name in self.paths[tree])
        assert sizes == {name: record.size for name, record in self.clusters.items()}
        for path in self.paths.values():
            for name, coarser in zip(path, (0, *path), strict=False):
                assert self.clusters[name].parent == coarser
        self._check_levels(state)

    def _check_levels(self, state: State) -> None:
        """At each level a tree is one id and an id one tree, and its record knows level and peak."""
        handles, paths = state.trees.handles, state.trees.paths
        assert handles.tolist() == sorted(self.paths)
        _, peaks = partition(state.hierarchy)
        assert paths.shape[1] == peaks.shape[1]
        nodes = state.hierarchy.base.nodes
        rows = nodes.all_rows()
        rows = rows[np.argsort(nodes.hashes[rows])]
        item_of = dict(zip(nodes.hashes[rows].tolist(), state.ids[rows].tolist(), strict=True))
        places = np.array([self.places[item] for item in state.ids[rows].tolist()], np.int64)
        ids = paths[np.searchsorted(handles, places)]
        last = peaks.shape[1] - 1
        for at in range(last + 1):
            both = set(zip(peaks[:, at].tolist(), ids[:, at].tolist(), strict=True))
            assert len(both) == len({peak for peak, _ in both}) == len({name for _, name in both})
            for peak, name in both:
                record = self.clusters[name]
                assert record.finest <= at <= (record.coarsest if record.parent else last)
                if at == (record.coarsest if record.parent else last):
                    assert record.peak == item_of[peak]
