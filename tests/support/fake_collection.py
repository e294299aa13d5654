"""A toy collection for tests of the store: changes that hang together, and what must be stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from engine.clustering import lineage
from engine.clustering.lineage import NO_NAMES, Lineage, Partition, Transfers
from engine.types import (
    Assignment,
    Change,
    Clusters,
    Epoch,
    Int16,
    Int64,
    Items,
    Lists,
    Loaded,
    Shift,
    Trees,
    Vectors,
)

ROOT = Path(__file__).resolve().parents[2]
DIM = 6
CONFIG = {"collection": "toy", "dim": None}  # of its store; the first vector decides
WIDTH = 4

Labels = dict[int, list[int]]  # node -> peak at each level


class Toy:
    """Random upserts and deletes, copies among them; clusters are drawn at random too, in 2 or 3 levels."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.version = self.time_ms = 0
        self.epoch = Epoch(0.0, 0.0, 0)
        self.counters: dict[str, int] = {}
        self.positions: dict[str, bytes] = {}
        self.rows: dict[int, tuple[bytes, Int16, int, bytes, int]] = {}  # key, vector, time, payload, version
        self.node: dict[int, int] = {}  # item -> node
        self.vectors: dict[int, Int16] = {}  # node -> vector
        self.lists: dict[int, tuple[Int64, Int64]] = {}  # by node
        self.tree: dict[int, int] = {}  # node -> level-0 tree
        self.names = NO_NAMES
        self.ended: set[tuple[int, int]] = set()
        self.next_item = self.next_node = 1

    @property
    def place(self) -> dict[int, int]:
        """item -> level-0 tree."""
        return {item: self.tree[node] for item, node in self.node.items()}

    @property
    def trees(self) -> Trees:
        return self.names.trees

    @property
    def clusters(self) -> Clusters:
        return self.names.clusters

    def step(self, items: int = 8) -> Change:
        """The next version: some items come, some change, some go."""
        rng = self.rng
        self._tick()
        nodes, places = dict(self.node), self.place
        old = rng.permutation(sorted(self.rows))
        removed = sorted((int(i), self.rows[int(i)][0]) for i in old[: len(old) // 6])
        for item, _ in removed:
            del self.rows[item], self.node[item]
        changed = [int(i) for i in old[len(old) // 6 : len(old) // 3]]
        fresh = list(range(self.next_item, self.next_item + int(rng.integers(1, items + 1))))
        self.next_item += len(fresh)
        known = set(self.vectors)
        for item in rng.permutation([*changed, *fresh]).tolist():
            key = self.rows[item][0] if item in self.rows else f"{rng.integers(1 << 30):x}:{item}".encode()
            payload = b'{"n":%d}' % item * int(rng.integers(2))
            self.node[item] = self._node()
            vector = self.vectors[self.node[item]]
            self.rows[item] = (key, vector, int(rng.integers(1 << 40)), payload, self.version)
        held = set(self.node.values())
        gone = {node: self.tree.pop(node) for node in sorted(known - held)}
        self.vectors = {node: vector for node, vector in self.vectors.items() if node in held}
        self.lists = {node: row for node, row in self.lists.items() if node in held}
        new = sorted(held - known)
        listed = sorted({*new, *rng.permutation(sorted(held))[:5].tolist()})
        self._relist(listed)
        found, shift = self._name(self._draw(int(rng.integers(2, 4))), places, gone)
        upserts = self._items([*changed, *fresh])
        kept = {item: node for item, node in self.node.items() if nodes.get(item) != node}
        moves = [(item, nodes.get(item, 0), node) for item, node in kept.items()]
        moves += [(item, nodes[item], 0) for item, _ in removed]
        gone_events = [Assignment(key, 0, 1, ()) for _, key in removed]
        here = [Assignment(self.rows[i][0], 7, 0, (7, 3)) for i in [*changed, *fresh]]
        return self._change(
            found, shift, listed, upserts=upserts, removed=removed, copies=_shift(moves),
            vectors=self._vectors(new), events=[*found.events, *gone_events, *here],
            incoming=self._incoming([*changed, *fresh]),
        )  # fmt: skip

    def rebuild(self) -> Change:
        """A new generation: the same items, other lists and trees, complete."""
        self._tick()
        listed = sorted(self.vectors)
        self._relist(listed)
        found, _ = self._name(self._draw(3), self.place, {})
        trees = found.names.trees
        whole = dict(zip(trees.handles.tolist(), lineage.listed(trees.paths), strict=True))
        shift = _shift((node, 0, tree) for node, tree in self.tree.items())
        return self._change(found, shift, listed, trees=whole)

    def loaded(self) -> Loaded:
        """What the store must give back."""
        ids, nodes = sorted(self.rows), sorted(self.vectors)
        return Loaded(
            self.version,
            self.time_ms,
            self.epoch,
            self.counters,
            self.positions,
            self._items(ids),
            self._vectors(nodes),
            self._lists(nodes),
            np.array([self.place[i] for i in ids], np.int64),
            self.trees,
            self.clusters,
        )

    def derived(self) -> dict[str, set[tuple[int, ...]]]:
        """The tables that answer queries."""
        final = self.clusters.parent == 0
        sizes = zip(self.clusters.size[final].tolist(), self.clusters.ids[final].tolist(), strict=True)
        paths = zip(self.trees.handles.tolist(), self.trees.paths.tolist(), strict=True)
        return {
            "copies": {(node, item) for item, node in self.node.items()},
            "members": {(tree, node) for node, tree in self.tree.items()},
            "cluster_trees": {(cluster, tree) for tree, path in paths for cluster in path},
            "sizes": set(sizes),
            "endings": self.ended,
        }

    def _tick(self) -> None:
        self.version += 1
        self.time_ms = 1_000 * self.version
        self.epoch = Epoch(float(self.rng.normal()), float(self.rng.random()), len(self.rows))
        self.positions["file"] = self.rng.bytes(5)

    def _node(self) -> int:
        """The node of a vector that is new, or of one that others have."""
        if self.vectors and self.rng.random() < 0.3:
            return int(self.rng.choice(sorted(self.vectors)))
        vector = self.rng.integers(-(2**14), 2**14, DIM).astype(np.int16)
        self.vectors[self.next_node] = vector
        self.next_node += 1
        return self.next_node - 1

    def _relist(self, ids: list[int]) -> None:
        for node in ids:
            neighbors = self.rng.choice([-1, *self.vectors], WIDTH)
            self.lists[node] = neighbors, self.rng.integers(-(2**28), 2**28, WIDTH).astype(np.int32)

    def _draw(self, levels: int) -> Labels:
        """Most nodes stay where they are."""
        peaks: Labels = {}
        for node in sorted(self.vectors):
            tree = self.tree.get(node, 0)
            base = tree if tree and self.rng.random() < 0.9 else int(self.rng.integers(1, 12))
            path = [base, base % 6, base % 2]  # nested
            peaks[node] = [path[min(level, 2)] for level in range(levels)]
        return peaks

    def _name(self, labels: Labels, places: dict[int, int], gone: dict[int, int]) -> tuple[Lineage, Shift]:
        """`places`: of the items before; `gone`: nodes and the trees that they had."""
        ids = sorted(labels)
        groups = np.array([labels[i] for i in ids], np.int64).reshape(len(ids), -1)
        _, first, number = np.unique(groups[:, 0], return_index=True, return_inverse=True)
        up = groups[first] + 100
        up[:, 0] = np.arange(len(first))
        peaks = np.zeros_like(up)
        for level in range(up.shape[1]):
            for row, label in enumerate(groups[first, level]):
                peaks[row, level] = ids[int(np.flatnonzero(groups[:, level] == label)[0])]
        tree_of = dict(zip(ids, number.tolist(), strict=True))
        count = Counter(
            (places.get(item, 0), tree_of[self.node[item]] if item in self.node else -1)
            for item in {*places, *self.node}
        )
        columns = np.array([(*key, n) for key, n in sorted(count.items())], np.int64).reshape(-1, 3).T
        found = lineage.follow_all(self.names, Partition(up, peaks), Transfers(*columns), self.version)
        now = {node: int(found.handles[tree]) for node, tree in tree_of.items()}
        shifts = [(node, self.tree.get(node, 0), tree) for node, tree in now.items()]
        shifts = [shift for shift in shifts if shift[1] != shift[2]]
        self.tree, self.names = now, found.names
        self.ended |= {(c.ended, c.id) for c in found.changed_clusters if c.ended}
        self.counters = {
            "next_item": self.next_item,
            "next_node": self.next_node,
            "next_tree": self.names.next_tree,
            "next_cluster": self.names.next_cluster,
            "levels": up.shape[1],
        }
        return found, _shift([*shifts, *((node, tree, 0) for node, tree in gone.items())])

    def _change(self, found: Lineage, places: Shift, listed: list[int], **fields: object) -> Change:
        nothing = {
            "upserts": self._items([]),
            "removed": [],
            "copies": _shift([]),
            "vectors": self._vectors([]),
            "trees": found.changed_trees,
            "events": found.events,
        }
        return Change(
            version=self.version,
            time_ms=self.time_ms,
            epoch=self.epoch,
            counters=self.counters,
            positions=self.positions,
            lists=self._lists(listed),
            places=places,
            clusters=found.changed_clusters,
            **{**nothing, **fields},
        )

    def _items(self, ids: list[int]) -> Items:
        rows = [self.rows[i] for i in ids]
        nodes = np.array([self.node[i] for i in ids], np.int64)
        times, versions = (np.array([row[c] for row in rows], np.int64) for c in (2, 4))
        return Items(
            np.array(ids, np.int64), [r[0] for r in rows], nodes, times, [r[3] for r in rows], versions
        )

    def _vectors(self, nodes: list[int]) -> Vectors:
        grid = np.array([self.vectors[node] for node in nodes], np.int16)
        return Vectors(np.array(nodes, np.int64), grid.reshape(len(nodes), DIM if nodes else 0))

    def _incoming(self, items: list[int]) -> Vectors:
        """As if an adapter had turned them round."""
        return Vectors(np.array(items, np.int64), np.array([self.rows[item][1][::-1] for item in items]))

    def _lists(self, ids: list[int]) -> Lists:
        neighbors = np.array([self.lists[i][0] for i in ids], np.int64).reshape(len(ids), WIDTH if ids else 0)
        dots = np.array([self.lists[i][1] for i in ids], np.int32).reshape(neighbors.shape)
        return Lists(np.array(ids, np.int64), neighbors, dots)


def _shift(rows: Iterable[tuple[int, int, int]]) -> Shift:
    return Shift(*np.array([*rows], np.int64).reshape(-1, 3).T)
