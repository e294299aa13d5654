"""The in-memory state of one collection: `pipeline` steps it, a store restores it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from engine import vectors
from engine.clustering.calibration import Calibration
from engine.clustering.distinct import Distinct
from engine.clustering.hierarchy import Hierarchy
from engine.clustering.level import Model, Shape
from engine.clustering.lineage import NO_NAMES, Names, final_of
from engine.config import Settings
from engine.index.base import ExactIndex
from engine.index.columns import Nodes, Table
from engine.index.hnsw import HnswIndex
from engine.types import NO_ROWS, Batch, Epoch, Int16, Int32, Int64, Loaded

IndexFactory = Callable[[Nodes], ExactIndex | HnswIndex]


class ItemTable(Table):
    """A table of items; any number of them may share a node."""

    ids: Int64
    versions: Int64  # of the vector
    times: Int64  # of the event
    nodes: Int32  # row of level 0, -1: no item

    def __init__(self) -> None:
        super().__init__(
            {
                "ids": (np.int64, 0, ()),
                "versions": (np.int64, 0, ()),
                "times": (np.int64, 0, ()),
                "nodes": (np.int32, -1, ()),
            }
        )
        self.keys: list[bytes] = []  # by row; b"" where free
        self.row_of: dict[bytes, int] = {}

    def find(self, keys: Sequence[bytes]) -> Int32:
        """Return the row of each key, int32 (n,); -1: there is no such item."""
        get = self.row_of.get
        return np.fromiter((get(key, -1) for key in keys), np.int32, len(keys))

    def add(self, keys: Sequence[bytes]) -> Int32:
        """Allocate rows for new keys; return them, int32 (n,)."""
        rows = self.take(len(keys))
        self.keys.extend([b""] * (self.capacity - len(self.keys)))
        for row, key in zip(rows.tolist(), keys, strict=True):
            self.keys[row] = key
            self.row_of[key] = row
        return rows

    def fill(self, rows: Int32, ids: Int64, versions: Int64, times: Int64, nodes: Int32) -> None:
        """Set all columns of `rows` (m,); `times` in ms, `nodes`: rows of level 0."""
        self.ids[rows], self.versions[rows] = ids, versions
        self.times[rows], self.nodes[rows] = times, nodes

    def drop(self, rows: Int32) -> None:
        """Delete the items in `rows` (m,); their rows may be reused by the next `add`."""
        for row in rows.tolist():
            del self.row_of[self.keys[row]]
            self.keys[row] = b""
        self.nodes[rows] = -1
        self.remove(rows)
        self.release(rows)

    def of_nodes(self, nodes: Int32, capacity: int) -> Int32:
        """Return the items of some nodes, by rising row, int32. `capacity`: of the table of nodes."""
        wanted = np.zeros(capacity + 1, np.bool_)  # the last for -1
        wanted[nodes] = True
        held = np.flatnonzero(wanted[self.nodes[: self.rows]])
        return held.astype(np.int32)

    def named(self, rows: Int32) -> list[bytes]:
        """Return the keys of rows."""
        return [self.keys[row] for row in rows.tolist()]


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Inserted items, and known items with another vector."""

    rows: Int32  # (n,), of known items, -1: the item is new
    keys: Sequence[bytes]
    vectors: Int16  # (n, d)
    ids: Int64
    versions: Int64
    times: Int64


@dataclass(frozen=True, slots=True)
class Turnover:
    """Inserted and deleted rows, of items and of nodes."""

    items: Int32  # (n,), rows of the arrivals
    before: Int32  # (n,), the node that each had, -1: the item is new
    left: Int32  # the nodes of the items that are gone
    new: Int32  # nodes
    gone: Int32  # nodes
    replaced: Int32  # of the gone ones, those that continue in another row, under another hash
    replacing: Int32  # these rows


@dataclass(slots=True)
class State:
    """The state that a step modifies. Identical vectors are one node of level 0; items point to it."""

    hierarchy: Hierarchy
    calibration: Calibration
    version: int = 0
    next_item: int = 1
    next_node: int = 1
    names: Names = NO_NAMES
    items: ItemTable = field(default_factory=ItemTable)
    node_ids: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))  # by row of level 0
    copies: Int32 = field(default_factory=lambda: np.zeros(0, np.int32))  # by row of level 0: its items
    handles: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))  # by row of a tree's root
    distinct: Distinct = field(init=False)

    def __post_init__(self) -> None:
        self.distinct = Distinct(self.hierarchy.base.nodes)

    @classmethod
    def empty(cls, shape: Shape, model: Model, card: Epoch, index: IndexFactory) -> State:
        """Return a state without items. `card`: the model card's epoch, used until one is measured."""
        return cls(Hierarchy(shape, model, index), Calibration(shape.dim, card))

    @classmethod
    def of(cls, loaded: Loaded, shape: Shape, model: Model, card: Epoch, index: IndexFactory) -> State:
        """Restore the items and names of a store; item and node rows are 0, 1, ... by rising id.

        Nothing is clustered yet, and the neighbour lists are empty.
        """
        state = cls.empty(shape, model, card, index)
        counters, items = loaded.counters, loaded.items
        state.version = loaded.version
        state.names = Names(
            loaded.trees, loaded.clusters, counters.get("next_tree", 1), counters.get("next_cluster", 1)
        )
        state.next_item = counters.get("next_item", 1)
        state.next_node = counters.get("next_node", 1)
        if loaded.version:
            state.calibration.epoch = loaded.epoch
            state.calibration.checked = counters.get("calibrated_items", 0)
        if not len(items.ids):
            return state
        grid = loaded.vectors.vectors
        nodes = state.hierarchy.base.add(grid, vectors.hash_vectors(grid))
        state._reserve()
        state.distinct.adopt(nodes)
        state._settle_hashes(nodes)
        state.node_ids[nodes] = loaded.vectors.ids
        state.calibration.add(grid)
        rows = state.items.add(items.keys)
        of_item = np.searchsorted(loaded.vectors.ids, items.nodes).astype(np.int32)
        state.items.fill(rows, items.ids, items.versions, items.times, of_item)
        np.add.at(state.copies, of_item, 1)
        return state

    def count_on_from(self, old: State) -> None:
        """Continue the numbering of items, nodes, trees and clusters of a state that this one replaces."""
        self.next_item, self.next_node = old.next_item, old.next_node
        self.names = replace(self.names, next_tree=old.names.next_tree, next_cluster=old.names.next_cluster)

    def restore_lists(self, loaded: Loaded) -> None:
        """Restore the stored neighbour lists."""
        ids, lists = loaded.vectors.ids, loaded.lists
        assert np.array_equal(ids, lists.ids)
        known = lists.neighbors >= 0
        neighbors = np.where(known, np.searchsorted(ids, lists.neighbors), -1).astype(np.int32)
        rows = np.arange(len(ids), dtype=np.int32)
        self.hierarchy.base.lists.restore(rows, neighbors, lists.dots)

    def take(self, arrivals: Arrivals, leaving: Int32) -> Turnover:
        """Insert or move items and delete others (`leaving`: rows); create and remove nodes accordingly.

        The caller must update the hierarchy next.
        """
        items, nodes = self.items, self.hierarchy.base.nodes
        rows = arrivals.rows.copy()
        known = rows >= 0
        before = np.full(len(rows), -1, np.int32)
        before[known] = items.nodes[rows[known]]
        left = items.nodes[leaving]
        nodes_now, new = self.distinct.find_or_add(arrivals.vectors)
        self.hierarchy.base.prepare(new)
        self._reserve()
        self.node_ids[new] = np.arange(self.next_node, self.next_node + len(new))
        self.next_node += len(new)
        self.copies[new] = 0
        items.drop(leaving)
        rows[~known] = items.add([arrivals.keys[at] for at in np.flatnonzero(~known).tolist()])
        items.fill(rows, arrivals.ids, arrivals.versions, arrivals.times, nodes_now)
        np.add.at(self.copies, nodes_now, 1)
        losing = np.concatenate([left, before[known]])
        np.subtract.at(self.copies, losing, 1)
        losing = np.unique(losing)
        gone = losing[self.copies[losing] == 0]
        self.distinct.remove(gone)
        replaced, replacing = self._settle_hashes(new)
        self.calibration.add(nodes.vectors[gone], sign=-1)
        self.calibration.add(nodes.vectors[new])
        new, gone = np.concatenate([new, replacing]), np.concatenate([gone, replaced])
        nodes.remove(gone)
        return Turnover(rows, before, left, new, gone, replaced, replacing)

    def recluster_all(self) -> None:
        """Cluster all nodes from scratch, after `of`."""
        rows = self.hierarchy.base.nodes.all_rows()
        self.hierarchy.update(rows, NO_ROWS, self.calibration.epoch)

    def _reserve(self) -> None:
        more = self.hierarchy.base.capacity - len(self.node_ids)
        if more > 0:
            self.node_ids = np.concatenate([self.node_ids, np.zeros(more, np.int64)])
            self.copies = np.concatenate([self.copies, np.zeros(more, np.int32)])
            self.handles = np.concatenate([self.handles, np.zeros(more, np.int64)])

    def _settle_hashes(self, new: Int32) -> tuple[Int32, Int32]:
        """Give nodes the hashes that follow from the current set of vectors.

        A node that is not `new` moves to another row: wherever hashes break ties it is a different node.
        Return such rows, before and after.
        """
        nodes = self.hierarchy.base.nodes
        rows, hashes = self.distinct.settle()
        if not len(rows):
            return NO_ROWS, NO_ROWS
        old = ~np.isin(rows, new)
        nodes.hashes[rows[~old]] = hashes[~old]
        replaced = rows[old]
        replacing = self.hierarchy.base.add(nodes.vectors[replaced], hashes[old])
        self._reserve()
        self.distinct.replace(replacing)
        self.node_ids[replacing], self.copies[replacing] = self.node_ids[replaced], self.copies[replaced]
        for before, after in zip(replaced.tolist(), replacing.tolist(), strict=True):
            self.items.nodes[self.items.nodes == before] = after
        return replaced, replacing

    @property
    def counters(self) -> dict[str, int]:
        """Return the counters that a store keeps with a version."""
        return {
            "next_item": self.next_item,
            "next_node": self.next_node,
            "next_tree": self.names.next_tree,
            "next_cluster": self.names.next_cluster,
            "calibrated_items": self.calibration.checked,
            "levels": len(self.hierarchy.levels),
        }

    def final_clusters(self, items: Int32) -> Int64:
        """Return the final cluster id of items, by row, int64."""
        return self.final_of_nodes(self.items.nodes[items])

    def clusters_at(self, items: Int32, level: int) -> Int64:
        """Return the cluster id of items, by row, int64, at a level: 0 is the finest, or the top one."""
        trees = self.names.trees
        handles = self.handles[self.hierarchy.base.root[self.items.nodes[items]]]
        column = min(level, trees.paths.shape[1] - 1)
        found: Int64 = trees.paths[np.searchsorted(trees.handles, handles), column]
        return found

    def final_of_nodes(self, nodes: Int32) -> Int64:
        """Return the final cluster id of nodes, by row of level 0, int64."""
        return final_of(self.names.trees, self.handles[self.hierarchy.base.root[nodes]])

    def nodes_since(self, version: int) -> int:
        """Count the nodes of items whose vectors came after a version: an upper bound of the new nodes."""
        items = self.items
        rows = items.all_rows()
        return len(np.unique(items.nodes[rows[items.versions[rows] > version]]))

    def representatives(self, nodes: Int32) -> list[bytes]:
        """Return the key of each node's oldest item. `nodes`: rows of level 0."""
        items = self.items
        rows = items.of_nodes(nodes, self.hierarchy.base.capacity)
        rows = rows[np.argsort(-items.ids[rows])]  # the last one written is the oldest
        key_of = dict(zip(items.nodes[rows].tolist(), items.named(rows), strict=True))
        return [key_of[node] for node in nodes.tolist()]

    def due(self, settings: Settings, now_ms: int, batch: Batch) -> list[bytes]:
        """Return keys that retention deletes together with a batch; none of them occurs in the batch.

        They depend on the state and the clock alone: the oldest events first, a bounded number at a time.
        """
        kept, items = settings.retention, self.items
        if kept.max_age_s is None and kept.max_items is None:
            return []
        rows = np.setdiff1d(items.all_rows(), items.find([*batch.keys, *batch.deletes]))
        rows = rows[np.lexsort((items.ids[rows], items.times[rows]))]  # then by first sight of the key
        count = 0
        if kept.max_age_s is not None:
            count = int(np.searchsorted(items.times[rows], now_ms - int(kept.max_age_s * 1000)))
        if kept.max_items is not None:
            count = max(count, len(rows) + len(batch.keys) - kept.max_items)
        most = max(settings.limits.expire_items, 2 * len(batch.keys))
        return items.named(rows[: min(count, most)])

    def roots(self) -> Int32:
        """Return the peaks of level 0, int32, rising."""
        base = self.hierarchy.base
        alive = base.nodes.all_rows()
        roots: Int32 = alive[base.root[alive] == alive]
        return roots

    def settle(self, places: Int64) -> bool:
        """Assign handles to the level-0 trees: `places` (n,), of all items, by rising row.

        Return whether the items of each tree share one handle and no two trees do; otherwise the handles
        belong to another partition.
        """
        root = self.hierarchy.base.root[self.items.nodes[self.items.all_rows()]]
        self.handles[root] = places
        handles = self.handles[self.roots()]
        one_each = bool((self.handles[root] == places).all())
        return one_each and np.array_equal(np.sort(handles), self.names.trees.handles)
