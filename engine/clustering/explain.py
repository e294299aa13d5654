"""Why is an item where it is? The links it follows from level to level, and what it did not follow.

Read from the live state between two batches: everything here is what the last commit was made of.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.clustering.decode import ROOT
from engine.clustering.hierarchy import Level
from engine.clustering.state import State
from engine.errors import NotFound
from engine.vectors import DOT_SCALE

CHAIN_MAX = 100  # links shown of a chain; its last one always is
PARENT, LESS_PROBABLE, BELOW_TAU, LOWER_DENSITY = "parent", "less-probable", "below-tau", "lower-density"

Answer = dict[str, Any]


def explain(state: State, key: bytes, level: int | None = None) -> Answer:
    """An item's neighbours, linkage and links at each level, up to `level`, from the finest. JSON-ready.

    At level 0 a node is an item, above it a supernode, named by its peak. `verdict` of a neighbour: the
    `parent` that the node links to; `less-probable` than the parent; `below-tau`: the linkage does not exceed
    tau; `lower-density`: links lead to denser nodes only (equal densities go by the keys' hash).
    `chain` leads from the node to the level's peak, which is the node of the next level; `refused`: the most
    probable neighbour that tau or density kept it from. Raises NotFound.
    """
    row = state.row_of.get(key)
    if row is None:
        raise NotFound(f"no item has the key {key.decode(errors='backslashreplace')!r}")
    handle = state.handles[state.hierarchy.base.root[row]]
    path = state.trees.paths[np.searchsorted(state.trees.handles, handle)].tolist()
    levels = []
    for at, found in enumerate(state.hierarchy.levels):
        levels.append({"level": at, "cluster": path[at], **_at_level(state, at, row)})
        row = int(found.above[found.root[row]])
        if row < 0 or at == level:
            break
    return {
        "version": state.version,
        "key": key.decode(),
        "cluster": path[-1],
        "path": list(dict.fromkeys(reversed(path))),
        "tau": state.hierarchy.shape.tau,
        "levels": levels,
    }


def _at_level(state: State, at: int, row: int) -> Answer:
    level = state.hierarchy.levels[at]
    neighbors = [_neighbor(state, at, row, rank) for rank in range(_degree(level, row))]
    refused = [n for n in neighbors if n["verdict"] in (BELOW_TAU, LOWER_DENSITY)]
    chain, length = _chain(state, at, row)
    return {
        **_node(state, at, row),
        "neighbors": neighbors,
        "refused": max(refused, key=lambda n: n["linkage"], default=None),
        "chain": chain,
        "chain_links": length,
    }


def _node(state: State, at: int, row: int) -> Answer:
    level = state.hierarchy.levels[at]
    return {
        "key": state.keys[_item(state, at, row)].decode(),
        "size": int(level.sizes[row]),
        "density": float(level.density[row]),
    }


def _neighbor(state: State, at: int, row: int, rank: int) -> Answer:
    level = state.hierarchy.levels[at]
    other = int(level.lists.neighbors[row, rank])
    item = np.array([_item(state, at, other)], np.int32)
    return {
        **_node(state, at, other),
        **_link(level, row, rank),
        "cluster": int(state.final_clusters(item)[0]),
        "verdict": _verdict(level, row, other, level.linkage[row, rank]),
    }


def _link(level: Level, row: int, rank: int) -> Answer:
    similarity = float(level.lists.dots[row, rank] / DOT_SCALE)
    return {"similarity": similarity, "linkage": float(level.linkage[row, rank])}


def _verdict(level: Level, row: int, other: int, linkage: np.float32) -> str:
    """The rule of `decode.parents`."""
    if level.parent[row] == other:
        return PARENT
    if linkage <= np.float32(level.shape.tau):
        return BELOW_TAU
    hashes, density = level.nodes.hashes, level.density
    if (density[other], hashes[other]) <= (density[row], hashes[row]):
        return LOWER_DENSITY
    return LESS_PROBABLE


def _chain(state: State, at: int, row: int) -> tuple[list[Answer], int]:
    """The nodes from `row` to its peak, each with the link to the next one, and how many links there are."""
    level = state.hierarchy.levels[at]
    rows = [row]
    while level.parent[rows[-1]] != ROOT:
        rows.append(int(level.parent[rows[-1]]))
    shown = rows if len(rows) <= CHAIN_MAX else [*rows[: CHAIN_MAX - 1], rows[-1]]
    chain = []
    for node in shown:
        parent, link = level.parent[node], {"similarity": None, "linkage": None}
        if parent != ROOT:
            ranks = np.flatnonzero(level.lists.neighbors[node, : _degree(level, node)] == parent)
            link = _link(level, node, int(ranks[0]))
        chain.append({**_node(state, at, node), **link})
    return chain, len(rows) - 1


def _degree(level: Level, row: int) -> int:
    return int(min(level.lists.lengths[row], level.shape.k))


def _item(state: State, at: int, row: int) -> int:
    """The level-0 row of a node's peak."""
    for level in state.hierarchy.levels[at:0:-1]:
        row = int(level.below[row])
    return row
