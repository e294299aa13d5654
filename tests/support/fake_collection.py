"""A toy collection for tests of the store: changes that hang together, and what must be stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.clustering import lineage
from engine.clustering.lineage import Atoms
from engine.types import NO_CLUSTERS, NO_TREES, Assignment, Change, Epoch, Int64, Items, Lists, Loaded

ROOT = Path(__file__).resolve().parents[2]
DIM = 6
WIDTH = 4


class Toy:
    """Random upserts and deletes; clusters are drawn at random too, two or three levels of them."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.version = self.time_ms = 0
        self.epoch = Epoch(0.0, 0.0, 0)
        self.counters: dict[str, int] = {}
        self.positions: dict[str, bytes] = {}
        self.rows: dict[int, tuple[bytes, Int64, int, bytes, int]] = {}  # key, vector, time, payload, version
        self.lists: dict[int, tuple[Int64, Int64]] = {}
        self.place: dict[int, int] = {}
        self.trees, self.clusters = NO_TREES, NO_CLUSTERS
        self.ended: set[tuple[int, int]] = set()
        self.next_item = self.next_tree = self.next_cluster = 1

    def step(self, items: int = 8) -> Change:
        """The next version: some items come, some change, some go."""
        rng = self.rng
        self._tick()
        old = rng.permutation(sorted(self.rows))
        removed = sorted((int(i), self.rows[int(i)][0]) for i in old[: len(old) // 6])
        for item, _ in removed:
            del self.rows[item], self.lists[item]
        changed = [int(i) for i in old[len(old) // 6 : len(old) // 3]]
        fresh = list(range(self.next_item, self.next_item + int(rng.integers(1, items + 1))))
        self.next_item += len(fresh)
        for item in rng.permutation([*changed, *fresh]).tolist():
            key = self.rows[item][0] if item in self.rows else f"{rng.integers(1 << 30):x}:{item}".encode()
            payload = b'{"n":%d}' % item * int(rng.integers(2))
            vector = rng.integers(-(2**14), 2**14, DIM).astype(np.int16)
            self.rows[item] = (key, vector, int(rng.integers(1 << 40)), payload, self.version)
        listed = sorted({*changed, *fresh, *rng.permutation(sorted(self.rows))[:5].tolist()})
        self._relist(listed)
        levels = int(rng.integers(2, 4))
        return self._change([*changed, *fresh], removed, listed, self._draw(levels), whole=False)

    def rebuild(self) -> Change:
        """A new generation: the same items, other lists and trees, complete."""
        self._tick()
        listed = sorted(self.rows)
        self._relist(listed)
        return self._change([], [], listed, self._draw(3), whole=True)

    def loaded(self) -> Loaded:
        """What the store must give back."""
        ids = sorted(self.rows)
        clusters = self.clusters
        return Loaded(
            self.version,
            self.time_ms,
            self.epoch,
            self.counters,
            self.positions,
            self._items(ids),
            self._lists(ids),
            np.array([self.place[i] for i in ids], np.int64),
            self.trees,
            clusters,
        )

    def derived(self) -> dict[str, set[tuple[int, ...]]]:
        """The tables that answer queries."""
        final = self.clusters.parent == 0
        sizes = zip(self.clusters.size[final].tolist(), self.clusters.ids[final].tolist(), strict=True)
        paths = zip(self.trees.handles.tolist(), self.trees.paths.tolist(), strict=True)
        return {
            "members": {(tree, item) for item, tree in self.place.items()},
            "cluster_trees": {(cluster, tree) for tree, path in paths for cluster in path},
            "sizes": set(sizes),
            "endings": self.ended,
        }

    def _tick(self) -> None:
        self.version += 1
        self.time_ms = 1_000 * self.version
        self.epoch = Epoch(float(self.rng.normal()), float(self.rng.random()), len(self.rows))
        self.positions["file"] = self.rng.bytes(5)

    def _relist(self, ids: list[int]) -> None:
        for item in ids:
            neighbors = self.rng.choice([-1, *self.rows], WIDTH)
            self.lists[item] = neighbors, self.rng.integers(-(2**28), 2**28, WIDTH).astype(np.int32)

    def _draw(self, levels: int) -> dict[int, list[int]]:
        """item -> peak at each level; most items stay where they are."""
        peaks: dict[int, list[int]] = {}
        for item in sorted(self.rows):
            tree = self.place.get(item, 0)
            base = tree if tree and self.rng.random() < 0.9 else int(self.rng.integers(1, 12))
            path = [base, base % 6, base % 2]  # nested
            peaks[item] = [path[min(level, 2)] for level in range(levels)]
        return peaks

    def _change(
        self,
        upserted: list[int],
        removed: list[tuple[int, bytes]],
        listed: list[int],
        labels: dict[int, list[int]],
        whole: bool,
    ) -> Change:
        ids = sorted(labels)
        groups = np.array([labels[i] for i in ids], np.int64).reshape(len(ids), -1)
        _, first, number = np.unique(groups[:, 0], return_index=True, return_inverse=True)
        up = groups[first] + 100
        up[:, 0] = np.arange(len(first))
        peaks = np.zeros_like(up)
        for level in range(up.shape[1]):
            for row, label in enumerate(groups[first, level]):
                peaks[row, level] = ids[int(np.flatnonzero(groups[:, level] == label)[0])]
        moves = {i: (self.place.get(i, 0), int(t)) for i, t in zip(ids, number, strict=True)}
        moves |= {i: (self.place[i], -1) for i, _ in removed}
        kinds, count = np.unique(np.array(sorted(moves.values()), np.int64), axis=0, return_counts=True)
        found = lineage.follow(
            self.trees,
            self.clusters,
            Atoms(kinds[:, 0], kinds[:, 1], count),
            up,
            peaks,
            self.version,
            self.next_tree,
            self.next_cluster,
        )
        places = {i: (before, int(found.handles[t]) if t >= 0 else 0) for i, (before, t) in moves.items()}
        moved = [(i, 0 if whole else a, b) for i, (a, b) in places.items() if whole or a != b]
        trees = found.changed_trees
        if whole:
            packed = lineage.distinct(found.trees.paths).tolist()
            trees = {int(h): tuple(filter(None, p)) for h, p in zip(found.trees.handles, packed, strict=True)}
        self.place = {i: after for i, (_, after) in places.items() if after}
        self.trees, self.clusters = found.trees, found.clusters
        self.next_tree, self.next_cluster = found.next_tree, found.next_cluster
        self.ended |= {(c.ended, c.id) for c in found.changed_clusters if c.ended}
        counters = {
            "next_item": self.next_item,
            "next_tree": self.next_tree,
            "next_cluster": self.next_cluster,
        }
        self.counters = counters | {"levels": up.shape[1]}
        gone = [Assignment(key, 0, 1, ()) for _, key in removed]
        here = [Assignment(self.rows[i][0], 7, 0, (7, 3)) for i in upserted]
        return Change(
            self.version,
            self.time_ms,
            self.epoch,
            self.counters,
            self.positions,
            self._items(upserted),
            removed,
            self._lists(listed),
            tuple(np.array(moved, np.int64).reshape(-1, 3).T),
            trees,
            found.changed_clusters,
            [*found.events, *gone, *here],
        )

    def _items(self, ids: list[int]) -> Items:
        rows = [self.rows[i] for i in ids]
        vectors = np.array([row[1] for row in rows], np.int16).reshape(len(ids), DIM if ids else 0)
        times, versions = (np.array([row[c] for row in rows], np.int64) for c in (2, 4))
        return Items(
            np.array(ids, np.int64), [r[0] for r in rows], vectors, times, [r[3] for r in rows], versions
        )

    def _lists(self, ids: list[int]) -> Lists:
        neighbors = np.array([self.lists[i][0] for i in ids], np.int64).reshape(len(ids), WIDTH if ids else 0)
        dots = np.array([self.lists[i][1] for i in ids], np.int32).reshape(neighbors.shape)
        return Lists(np.array(ids, np.int64), neighbors, dots)
