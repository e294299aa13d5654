"""The in-memory state of one collection: `pipeline` steps it, a store restores it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from engine import vectors
from engine.clustering.calibration import Calibration
from engine.clustering.hierarchy import Hierarchy, Model, Shape
from engine.index.base import ExactIndex
from engine.index.columns import Nodes
from engine.index.hnsw import HnswIndex
from engine.types import NO_CLUSTERS, NO_TREES, Clusters, Epoch, Int32, Int64, Loaded, Trees, UInt64

IndexFactory = Callable[[Nodes], ExactIndex | HnswIndex]


@dataclass(slots=True)
class State:
    """All that a step works on. Rows are those of level 0."""

    hierarchy: Hierarchy
    calibration: Calibration
    version: int = 0
    next_item: int = 1
    next_tree: int = 1
    next_cluster: int = 1
    trees: Trees = NO_TREES
    clusters: Clusters = NO_CLUSTERS
    row_of: dict[bytes, int] = field(default_factory=dict)
    keys: list[bytes] = field(default_factory=list)  # by row; b"" where free
    ids: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))  # by row
    versions: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))  # by row, of the vector
    times: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))  # by row, of the event
    handles: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))  # by row of a tree's root

    @classmethod
    def empty(cls, shape: Shape, model: Model, card: Epoch, index: IndexFactory) -> State:
        return cls(Hierarchy(shape, model, index), Calibration(shape.dim, card))

    @classmethod
    def of(cls, loaded: Loaded, shape: Shape, model: Model, card: Epoch, index: IndexFactory) -> State:
        """The items and names of a store; its rows are 0, 1, ... by rising item id.

        Nothing is clustered yet, and the neighbour lists are empty.
        """
        state = cls.empty(shape, model, card, index)
        state.adopt(loaded)
        items = loaded.items
        if len(items.ids):
            rows = state.hierarchy.base.add(items.vectors, vectors.hash_keys(items.keys))
            state.calibration.add(items.vectors)
            state.place(rows, items.keys, items.ids, items.versions, items.times)
        return state

    def count_on_from(self, old: State) -> None:
        """Number items, trees and clusters behind those of a state that this one replaces."""
        self.next_item, self.next_tree, self.next_cluster = old.next_item, old.next_tree, old.next_cluster

    def adopt(self, loaded: Loaded) -> None:
        """Take over a store's version, names and counters."""
        counters = loaded.counters
        self.version = loaded.version
        self.trees, self.clusters = loaded.trees, loaded.clusters
        self.next_item = counters.get("next_item", 1)
        self.next_tree = counters.get("next_tree", 1)
        self.next_cluster = counters.get("next_cluster", 1)
        if loaded.version:
            self.calibration.epoch = loaded.epoch
            self.calibration.checked = counters.get("calibrated_items", 0)

    def restore_lists(self, loaded: Loaded) -> None:
        """The neighbour lists as they were stored."""
        items, lists = loaded.items, loaded.lists
        assert np.array_equal(items.ids, lists.ids)
        known = lists.neighbors >= 0
        neighbors = np.where(known, np.searchsorted(items.ids, lists.neighbors), -1).astype(np.int32)
        rows = np.arange(len(items.ids), dtype=np.int32)
        self.hierarchy.base.lists.restore(rows, neighbors, lists.dots)

    def place(self, rows: Int32, keys: Sequence[bytes], ids: Int64, versions: Int64, times: Int64) -> None:
        """These rows now hold these items, with vectors of these versions and events of these times."""
        more = self.hierarchy.base.capacity - len(self.ids)
        if more > 0:
            self.ids, self.versions, self.times, self.handles = (
                np.concatenate([column, np.zeros(more, np.int64)])
                for column in (self.ids, self.versions, self.times, self.handles)
            )
            self.keys.extend([b""] * more)
        self.ids[rows], self.versions[rows], self.times[rows] = ids, versions, times
        for row, key in zip(rows.tolist(), keys, strict=True):
            self.keys[row] = key
            self.row_of[key] = row

    def contents(self) -> UInt64:
        """What identifies each row's item: the hash of its key and vector, uint64 by row."""
        nodes = self.hierarchy.base.nodes
        rows = nodes.all_rows()
        out = np.zeros(nodes.capacity, np.uint64)
        out[rows] = vectors.hash_contents([self.keys[row] for row in rows.tolist()], nodes.vectors[rows])
        return out

    def leave(self, rows: Int32) -> None:
        """These rows hold no items any more."""
        for row in rows.tolist():
            if self.row_of.get(self.keys[row]) == row:
                del self.row_of[self.keys[row]]
            self.keys[row] = b""

    @property
    def counters(self) -> dict[str, int]:
        """What has to be stored beside the tables."""
        return {
            "next_item": self.next_item,
            "next_tree": self.next_tree,
            "next_cluster": self.next_cluster,
            "calibrated_items": self.calibration.checked,
            "levels": len(self.hierarchy.levels),
        }

    def final_clusters(self, rows: Int32) -> Int64:
        """The final cluster id of each row, int64."""
        base = self.hierarchy.base
        return final_of(self.trees, self.handles[base.root[rows]])

    def roots(self) -> Int32:
        """The peaks of level 0, int32, rising."""
        base = self.hierarchy.base
        alive = base.nodes.all_rows()
        roots: Int32 = alive[base.root[alive] == alive]
        return roots

    def settle(self, places: Int64) -> bool:
        """Give the level-0 trees their handles: `places` (n,), of the live rows in rising order.

        Returns whether the items of a tree have one handle, and no two trees the same: else the
        handles are of another partition.
        """
        base = self.hierarchy.base
        rows = base.nodes.all_rows()
        self.handles[base.root[rows]] = places
        handles = self.handles[self.roots()]
        one_each = bool((self.handles[base.root[rows]] == places).all())
        return one_each and np.array_equal(np.sort(handles), self.trees.handles)


def final_of(trees: Trees, handles: Int64) -> Int64:
    """The final cluster of each tree by handle, 0 for handle 0."""
    out = np.zeros(len(handles), np.int64)
    known = handles > 0
    out[known] = trees.paths[np.searchsorted(trees.handles, handles[known]), -1]
    return out
