"""A store as dictionaries, kept by nothing but the changes it is sent; it checks each against the last."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from engine.clustering.state import State
from engine.types import Assignment, Change, Cluster, Shift
from tests.support.sequences import partition


@dataclass
class Replica:
    items: dict[int, tuple[bytes, int, int]] = field(default_factory=dict)  # id -> key, node, version
    vectors: dict[int, bytes] = field(default_factory=dict)  # node id -> vector
    lists: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # node id -> (neighbour id, dot)
    places: dict[int, int] = field(default_factory=dict)  # node id -> level-0 tree
    paths: dict[int, tuple[int, ...]] = field(default_factory=dict)  # tree -> clusters, final first
    clusters: dict[int, Cluster] = field(default_factory=dict)
    final: dict[bytes, int] = field(default_factory=dict)  # key -> cluster, from the events
    version: int = 0

    def apply(self, change: Change) -> None:
        assert change.version == self.version + 1
        self.version = change.version
        self._take_nodes(change)
        self._take_items(change)
        self.paths.update(change.trees)
        self.paths = {tree: path for tree, path in self.paths.items() if path}
        for record in change.clusters:
            self.clusters[record.id] = record
        self.clusters = {name: record for name, record in self.clusters.items() if not record.ended}
        ids = {key: item for item, (key, _, _) in self.items.items()}
        for event in change.events:
            if isinstance(event, Assignment):
                self._assign(event, ids.get(event.key))

    def _take_nodes(self, change: Change) -> None:
        new = change.vectors
        for node, vector in zip(new.ids.tolist(), new.vectors, strict=True):
            assert node not in self.vectors
            self.vectors[node] = vector.tobytes()
        assert (np.diff(change.lists.ids) > 0).all()
        columns = (change.lists.ids.tolist(), change.lists.neighbors.tolist(), change.lists.dots.tolist())
        for node, row, dots in zip(*columns, strict=True):
            self.lists[node] = [pair for pair in zip(row, dots, strict=True) if pair[0] >= 0]
        for node, old, tree in shifts(change.places):
            assert self.places.get(node, 0) == old != tree
            self.places[node] = tree
            if not tree:
                del self.vectors[node], self.lists[node], self.places[node]

    def _take_items(self, change: Change) -> None:
        nodes = {item: (old, node) for item, old, node in shifts(change.copies)}
        for item, key in change.removed:
            known, node, _ = self.items.pop(item)
            assert known == key
            assert nodes.pop(item) == (node, 0)
        new = change.upserts
        columns = (new.ids.tolist(), new.keys, new.nodes.tolist(), new.versions.tolist())
        for item, key, node, version in zip(*columns, strict=True):
            known, before, since = self.items.get(item, (key, 0, 0))
            assert known == key, "an id changed its key"
            assert nodes.pop(item, (node, node)) == (before, node) or before == node, "a move is not told"
            assert version == (since if before == node else change.version), "the version is not its vector's"
            self.items[item] = (key, node, version)
        assert not nodes

    def _assign(self, event: Assignment, item: int | None) -> None:
        assert self.final.pop(event.key, 0) == event.previous != event.cluster, event
        if event.cluster:
            assert item is not None
            assert event.path == self.paths[self.place(item)], event
            self.final[event.key] = event.cluster
        else:
            assert item is None, event

    def place(self, item: int) -> int:
        """The level-0 tree of an item."""
        return self.places[self.items[item][1]]

    def check(self, state: State) -> None:
        """It holds what the state holds, and the clusters' records describe the items' paths."""
        base = state.hierarchy.base
        nodes, lists, items = base.nodes, base.lists, state.items
        assert len(self.items) == len(items.row_of) == items.live
        assert len(self.vectors) == nodes.live == len({*self.vectors.values()})
        for item, (key, node, version) in self.items.items():
            row = items.row_of[key]
            at = items.nodes[row]
            assert (items.ids[row], items.versions[row], state.node_ids[at]) == (item, version, node)
            assert nodes.vectors[at].tobytes() == self.vectors[node]
        for row in nodes.all_rows().tolist():
            own = slice(0, lists.lengths[row])
            neighbors = state.node_ids[lists.neighbors[row, own]].tolist()
            told = list(zip(neighbors, lists.dots[row, own].tolist(), strict=True))
            assert self.lists[int(state.node_ids[row])] == told
        assert self.places.keys() == self.lists.keys() == self.vectors.keys()
        assert self.places.keys() == {node for _, node, _ in self.items.values()}
        assert set(self.places.values()) == self.paths.keys()
        assert self.final == {key: self.paths[self.place(i)][0] for i, (key, _, _) in self.items.items()}
        sizes = Counter(name for item in self.items for name in self.paths[self.place(item)])
        assert sizes == {name: record.size for name, record in self.clusters.items()}
        for path in self.paths.values():
            for name, coarser in zip(path, (0, *path), strict=False):
                assert self.clusters[name].parent == coarser
        self._check_levels(state)

    def _check_levels(self, state: State) -> None:
        """At each level a tree is one id and an id one tree, and its record knows level and peak."""
        handles, paths = state.names.trees.handles, state.names.trees.paths
        assert handles.tolist() == sorted(self.paths)
        _, peaks = partition(state.hierarchy)
        assert paths.shape[1] == peaks.shape[1]
        nodes = state.hierarchy.base.nodes
        rows = nodes.all_rows()
        rows = rows[np.argsort(nodes.hashes[rows])]
        node_of = dict(zip(nodes.hashes[rows].tolist(), state.node_ids[rows].tolist(), strict=True))
        places = np.array([self.places[node] for node in state.node_ids[rows].tolist()], np.int64)
        ids = paths[np.searchsorted(handles, places)]
        last = peaks.shape[1] - 1
        for at in range(last + 1):
            both = set(zip(peaks[:, at].tolist(), ids[:, at].tolist(), strict=True))
            assert len(both) == len({peak for peak, _ in both}) == len({name for _, name in both})
            for peak, name in both:
                record = self.clusters[name]
                assert record.finest <= at <= (record.coarsest if record.parent else last)
                if at == (record.coarsest if record.parent else last):
                    assert record.peak == node_of[peak]


def shifts(shift: Shift) -> list[tuple[int, int, int]]:
    """(id, before, after) of each, none twice."""
    assert len(np.unique(shift.ids)) == len(shift.ids)
    return list(zip(shift.ids.tolist(), shift.before.tolist(), shift.after.tolist(), strict=True))
