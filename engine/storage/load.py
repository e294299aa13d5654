"""Reads a whole version of a store into memory, as the clustering resumes from it."""

from __future__ import annotations

import numpy as np

from engine.errors import CorruptStore
from engine.storage.tables import Tables
from engine.types import NO_TREES, Clusters, Int64, Lists, Loaded, Trees


def load(tables: Tables) -> Loaded:
    """Return everything but history. Raises CorruptStore where tables contradict each other."""
    state, items, lists = tables.meta.state, tables.items.columns(), tables.lists.columns()
    levels = state.levels
    if not np.array_equal(lists.ids, items.ids):
        raise CorruptStore("the tables items and lists do not hold the same items; restore a backup")
    placed, places = tables.places.columns()
    if not np.array_equal(placed, items.ids):
        raise CorruptStore("the tables items and places do not hold the same items; `shoal rebuild` mends it")
    clusters = _clusters(tables, levels)
    trees = _trees(tables, clusters, levels)
    if not np.array_equal(np.unique(places), trees.handles):
        raise CorruptStore("the tables places and trees do not hold the same trees; `shoal rebuild` mends it")
    positions = dict(tables.positions.rows())
    return Loaded(
        state.version, state.time_ms, state.epoch, state.counters, positions,
        items, lists, places, trees, clusters,
    )  # fmt: skip


def load_to_rebuild(tables: Tables) -> Loaded:
    """As `load`; where derived tables contradict each other, load items as if new, without their trees.

    Raises CorruptStore where values are damaged.
    """
    try:
        return load(tables)
    except CorruptStore:
        state, items = tables.meta.state, tables.items.columns()
        count = len(items.ids)
        lists = Lists(items.ids, np.full((count, 0), -1, np.int64), np.zeros((count, 0), np.int32))
        return Loaded(
            state.version, state.time_ms, state.epoch, state.counters, {},
            items, lists, np.zeros(count, np.int64), NO_TREES, _clusters(tables, state.levels),
        )  # fmt: skip


def _clusters(tables: Tables, levels: int) -> Clusters:
    clusters = tables.clusters.living()
    final = clusters.parent == 0  # not rewritten when the number of levels changes
    clusters.coarsest[final] = levels - 1
    return clusters


def _trees(tables: Tables, clusters: Clusters, levels: int) -> Trees:
    """Expand distinct ids to paths by level: a level has the coarsest cluster that reaches down to it."""
    rows = list(tables.trees.rows())
    packed = np.zeros((len(rows), levels), np.int64)
    for row, (tree, path) in enumerate(rows):
        if len(path) > levels:
            raise CorruptStore(f"table trees, key {tree}: too long a path")
        packed[row, : len(path)] = path
    at = np.minimum(np.searchsorted(clusters.ids, packed), max(len(clusters.ids) - 1, 0))
    if len(rows) and not ((clusters.ids[at] == packed) | (packed == 0)).all():
        raise CorruptStore("the table trees names clusters that are not there; `shoal rebuild` mends it")
    finest = np.where(packed > 0, clusters.finest[at], -1) if len(rows) else packed
    each = np.arange(len(rows))
    paths = np.stack([packed[each, _reach(finest, level)] for level in range(levels)], axis=1)
    return Trees(np.array([tree for tree, _ in rows], np.int64), paths)


def _reach(finest: Int64, level: int) -> Int64:
    index: Int64 = np.minimum((finest > level).sum(axis=1), finest.shape[1] - 1)
    return index
