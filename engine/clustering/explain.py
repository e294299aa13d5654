"""Explains why an item is in its cluster: the links followed at each level, and the links refused.

Reads the live state between two batches, which is the state of the last commit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.clustering.decode import ROOT
from engine.clustering.level import Level
from engine.clustering.state import State
from engine.errors import NotFound
from engine.vectors import DOT_SCALE

CHAIN_MAX = 100  # links shown of a chain; its last one always is
PARENT, LESS_PROBABLE, BELOW_TAU, LOWER_DENSITY = "parent", "less-probable", "below-tau", "lower-density"

Answer = dict[str, Any]


def explain(state: State, key: bytes, level: int | None = None) -> Answer:
    """Return an item's neighbours, linkage and links at each level up to `level`, finest first. JSON-ready.

    At level 0 a node is a vector, above it a supernode, named by its peak; `key` is that of one of the
    `copies` items with the vector, `size` counts different vectors. `verdict` of a neighbour: the
    `parent` that the node links to; `less-probable` than the parent; `below-tau`: the linkage does not exceed
    tau; `lower-density`: links lead to denser nodes only (equal densities go by the vectors' hash).
    `chain` leads from the node to the level's peak, which is the node of the next level; `refused`: the most
    probable neighbour that tau or density kept it from. Raises NotFound.
    """
    item = state.items.row_of.get(key)
    if item is None:
        raise NotFound(f"no item has the key {key.decode(errors='backslashreplace')!r}")
    row = int(state.items.nodes[item])
    handle = state.handles[state.hierarchy.base.root[row]]
    trees = state.names.trees
    path = trees.paths[np.searchsorted(trees.handles, handle)].tolist()
    own, levels = {row: key.decode()}, []
    for at, found in enumerate(state.hierarchy.levels):
        levels.append({"level": at, "cluster": path[at], **_at_level(state, at, row, own)})
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


def _at_level(state: State, at: int, row: int, own: dict[int, str]) -> Answer:
    """`own`: the requested item's key, by its node's row at level 0; it represents that node."""
    level = state.hierarchy.levels[at]
    near = level.lists.neighbors[row, : _degree(level, row)].tolist()
    chain = _chain(level, row)
    shown = chain if len(chain) <= CHAIN_MAX else [*chain[: CHAIN_MAX - 1], chain[-1]]
    nodes = _nodes(state, at, [row, *near, *shown], own)
    neighbors = [
        {**nodes[other], **_link(level, row, rank), "verdict": _verdict(level, row, other, rank)}
        for rank, other in enumerate(near)
    ]
    finals = state.final_of_nodes(np.array([_base_row(state, at, other) for other in near], np.int32))
    for neighbor, final in zip(neighbors, finals.tolist(), strict=True):
        neighbor["cluster"] = final
    refused = [n for n in neighbors if n["verdict"] in (BELOW_TAU, LOWER_DENSITY)]
    return {
        **nodes[row],
        "tau": float(level.tau),
        "neighbors": neighbors,
        "refused": max(refused, key=lambda n: n["linkage"], default=None),
        "chain": [{**nodes[node], **_link_up(level, node)} for node in shown],
        "chain_links": len(chain) - 1,
    }


def _nodes(state: State, at: int, rows: list[int], own: dict[int, str]) -> dict[int, Answer]:
    """Describe nodes, by row."""
    level = state.hierarchy.levels[at]
    base_rows = [_base_row(state, at, row) for row in rows]
    keys = state.representatives(np.array(base_rows, np.int32))
    return {
        row: {
            "key": own.get(base, key.decode()),
            "copies": int(state.copies[base]),
            "size": int(level.sizes[row]),
            "density": float(level.density[row]),
        }
        for row, base, key in zip(rows, base_rows, keys, strict=True)
    }


def _link(level: Level, row: int, rank: int) -> Answer:
    similarity = float(level.lists.dots[row, rank] / DOT_SCALE)
    return {"similarity": similarity, "linkage": float(level.linkage[row, rank])}


def _link_up(level: Level, row: int) -> Answer:
    """Return the link from a node to its parent; a peak has none."""
    parent = level.parent[row]
    if parent == ROOT:
        return {"similarity": None, "linkage": None}
    ranks = np.flatnonzero(level.lists.neighbors[row, : _degree(level, row)] == parent)
    return _link(level, row, int(ranks[0]))


def _verdict(level: Level, row: int, other: int, rank: int) -> str:
    """Apply the rule of `decode.parents`."""
    if level.parent[row] == other:
        return PARENT
    if level.linkage[row, rank] <= level.tau:
        return BELOW_TAU
    hashes, density = level.nodes.hashes, level.density
    if (density[other], hashes[other]) <= (density[row], hashes[row]):
        return LOWER_DENSITY
    return LESS_PROBABLE


def _chain(level: Level, row: int) -> list[int]:
    """Return the nodes from `row` to its peak."""
    rows = [row]
    while level.parent[rows[-1]] != ROOT:
        rows.append(int(level.parent[rows[-1]]))
    return rows


def _degree(level: Level, row: int) -> int:
    return int(min(level.lists.lengths[row], level.shape.k))


def _base_row(state: State, at: int, row: int) -> int:
    """Return the level-0 row of a node's peak."""
    for level in state.hierarchy.levels[at:0:-1]:
        row = int(level.below[row])
    return row
