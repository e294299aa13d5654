"""Reads a whole version of a store into memory, as the clustering resumes from it."""

from __future__ import annotations

import numpy as np

from engine.errors import CorruptStore
from engine.numbering import find
from engine.storage import schema, upgrade
from engine.storage.tables import Tables
from engine.types import NO_TREES, Clusters, Int64, Items, Lists, Loaded, Trees, Vectors


def load(tables: Tables) -> Loaded:
    """Return everything but history. Raises CorruptStore where tables contradict each other."""
    state, lists = tables.meta.state, tables.lists.columns()
    items, vectors, at = _items(tables)
    levels = state.levels
    if not np.array_equal(lists.ids, vectors.ids):
        raise CorruptStore("the tables nodes and lists do not hold the same nodes; restore a backup")
    placed, places = tables.places.columns()
    if not np.array_equal(placed, vectors.ids):
        raise CorruptStore(
            "the tables nodes and places do not hold the same nodes; run `shoal rebuild` to repair it"
        )
    clusters = _clusters(tables, levels)
    trees = _trees(tables, clusters, levels)
    if not np.array_equal(np.unique(places), trees.handles):
        raise CorruptStore(
            "the tables places and trees do not hold the same trees; run `shoal rebuild` to repair it"
        )
    positions = dict(tables.positions.rows())
    return Loaded(
        state.version, state.time_ms, state.epoch, state.counters, positions,
        items, vectors, lists, places[at], trees, clusters,
    )  # fmt: skip


def load_to_rebuild(tables: Tables) -> Loaded:
    """Load as `load`; where derived tables contradict each other, load items as if new, without trees.

    Raises CorruptStore where values are damaged.
    """
    if (tables.meta.config or {}).get("format") == schema.REBUILT_FROM:
        return _load_format_1(tables)
    try:
        return load(tables)
    except CorruptStore:
        state = tables.meta.state
        items, vectors, _ = _items(tables)
        places = np.zeros(len(items.ids), np.int64)
        return Loaded(
            state.version, state.time_ms, state.epoch, state.counters, {},
            items, vectors, _no_lists(vectors.ids), places, NO_TREES, _clusters(tables, state.levels),
        )  # fmt: skip


def _load_format_1(tables: Tables) -> Loaded:
    """Load a store whose items have a vector each: nodes are renumbered. The neighbour lists are invalid."""
    state = tables.meta.state
    items, vectors = upgrade.read_items(tables)
    placed, places = tables.places.columns()
    clusters = _clusters(tables, state.levels)
    trees = _trees(tables, clusters, state.levels)
    if not np.array_equal(placed, items.ids) or not np.array_equal(np.unique(places), trees.handles):
        places, trees = np.zeros(len(items.ids), np.int64), NO_TREES
    counters = {**state.counters, "next_node": len(vectors.ids) + 1}
    return Loaded(
        state.version, state.time_ms, state.epoch, counters, {},
        items, vectors, _no_lists(vectors.ids), places, trees, clusters,
    )  # fmt: skip


def _items(tables: Tables) -> tuple[Items, Vectors, Int64]:
    """Return items, nodes, and the row of each item's node among these, (n,). Raises CorruptStore."""
    items, vectors = tables.items.columns(), tables.nodes.columns()
    at = np.searchsorted(vectors.ids, items.nodes)
    if not np.array_equal(vectors.ids, np.unique(items.nodes)):
        raise CorruptStore("the tables items and nodes do not name the same nodes; restore a backup")
    return items, vectors, at


def _no_lists(ids: Int64) -> Lists:
    return Lists(ids, np.full((len(ids), 0), -1, np.int64), np.zeros((len(ids), 0), np.int32))


def _clusters(tables: Tables, levels: int) -> Clusters:
    clusters = tables.clusters.living()
    final = clusters.parent == 0  # not rewritten when the number of levels changes
    clusters.coarsest[final] = levels - 1
    return clusters


def _trees(tables: Tables, clusters: Clusters, levels: int) -> Trees:
    """Expand distinct ids to paths by level: a level has the coarsest cluster that reaches down to it."""
    ids, listed = tables.trees.columns()
    packed = np.zeros((len(ids), levels), np.int64)
    for row, path in enumerate(listed):
        if len(path) > levels:
            raise CorruptStore(f"table trees, key {ids[row]}: too long a path")
        packed[row, : len(path)] = path
    at, there = find(clusters.ids, packed)
    if not (there | (packed == 0)).all():
        raise CorruptStore("the table trees names missing clusters; run `shoal rebuild` to repair it")
    finest = np.where(packed > 0, clusters.finest[at], -1)
    each = np.arange(len(ids))
    paths = np.stack([packed[each, _reach(finest, level)] for level in range(levels)], axis=1)
    return Trees(ids, paths)


def _reach(finest: Int64, level: int) -> Int64:
    index: Int64 = np.minimum((finest > level).sum(axis=1), finest.shape[1] - 1)
    return index
