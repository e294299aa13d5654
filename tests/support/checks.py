"""What must hold of a state at any time, each against plain counting."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np

from engine.clustering.decode import ROOT
from engine.clustering.distinct import distinct_hashes
from engine.clustering.evidence import gather
from engine.clustering.hierarchy import Hierarchy
from engine.clustering.level import Level
from engine.clustering.neighborhood import Neighborhood
from engine.clustering.state import State
from engine.types import Int32
from tests.support import reference
from tests.support.sequences import World, content, partition


def check_state(state: State, world: World) -> None:
    """Items are the survivors, nodes their distinct vectors; levels, supernodes and lists are consistent."""
    items, base = state.items, state.hierarchy.base.nodes
    assert items.row_of.keys() == world.live.keys()
    assert items.live == len(world.live)
    keys = list(world.live)
    rows = items.find(keys)
    assert items.named(rows) == keys
    assert np.array_equal(np.sort(items.all_rows()), np.sort(rows))
    free = np.setdiff1d(np.arange(items.rows), rows)
    assert sorted(items._free) == free.tolist(), "an item's row is lost or free twice"
    assert (items.nodes[free] == -1).all()
    held = Counter(vector.tobytes() for vector in world.live.values())
    alive = base.all_rows()
    assert {base.vectors[row].tobytes(): int(state.copies[row]) for row in alive.tolist()} == held
    assert len(alive) == len(held), "two nodes have one vector"
    assert np.array_equal(base.hashes[alive], distinct_hashes(base.vectors[alive]))
    assert state.distinct.claims == {int(base.hashes[row]): row for row in alive.tolist()}
    if keys:
        assert np.array_equal(base.vectors[items.nodes[rows]], np.stack([world.live[key] for key in keys]))
        assert len(np.unique(state.node_ids[alive])) == len(alive)
    for level in state.hierarchy.levels:
        check_level(level)
    for lower, upper in pairwise(state.hierarchy.levels):
        check_link(lower, upper)
        check_evidence(lower, upper)
    check_supernodes(state.hierarchy)


def check_level(level: Level) -> None:
    nodes = level.nodes
    rows = nodes.all_rows()
    dead = np.setdiff1d(np.arange(nodes.rows), rows)
    assert nodes.live == len(rows)
    assert sorted(nodes._free) == dead.tolist(), "a row is lost or free twice"
    assert level.peaks == np.count_nonzero(level.root[rows] == rows)
    assert level.peaks == np.count_nonzero(level.parent[rows] == ROOT)
    parent, root = level.parent[: nodes.rows], level.root[: nodes.rows]
    top = np.where(parent[rows] < 0, rows, parent[rows])
    while (parent[top] >= 0).any():
        top = np.where(parent[top] < 0, top, parent[top])
    assert np.array_equal(root[rows], top)
    check_lists(level.lists, rows, dead)


def check_lists(lists: Neighborhood, rows: Int32, dead: Int32) -> None:
    """Chains lead to exactly the cells that name a node; what is not alive is nowhere; no mark is left."""
    assert not lists.marks.any()
    width, used = lists.width, lists.neighbors >= 0
    assert np.array_equal(used.sum(axis=1), lists.lengths)
    assert not lists.lengths[dead].any()
    assert (lists.heads[dead] == -1).all()
    holders, places = np.nonzero(used)
    cells: dict[int, set[int]] = {}
    for cell, target in zip((holders * width + places).tolist(), lists.neighbors[used].tolist(), strict=True):
        cells.setdefault(target, set()).add(cell)
    for row in rows.tolist():
        cell, before, chain = int(lists.heads[row]), -1, set()
        while cell >= 0:
            chain.add(cell)
            after, back = lists.links[cell // width, cell % width].tolist()
            assert back == before
            cell, before = after, cell
        assert chain == cells.pop(row, set())
    assert not cells


def check_link(lower: Level, upper: Level) -> None:
    """The upper level's nodes are the lower one's peaks, with the same vectors and hashes."""
    rows = lower.nodes.all_rows()
    peaks = rows[lower.parent[rows] == ROOT]
    assert (lower.above[np.setdiff1d(np.arange(lower.capacity), peaks)] == -1).all()
    above = lower.above[peaks]
    assert np.array_equal(np.sort(above), upper.nodes.all_rows())
    assert np.array_equal(upper.below[above], peaks)
    assert np.array_equal(upper.nodes.vectors[above], lower.nodes.vectors[peaks])
    assert np.array_equal(upper.nodes.hashes[above], lower.nodes.hashes[peaks])


def check_evidence(lower: Level, upper: Level) -> None:
    """Entries are those computed anew from the level below; in the pool each row has a place of its own."""
    rows = upper.nodes.all_rows()
    fresh = gather(rows, lower.trees(), lower.sources(), upper.capacity)
    held = upper.evidence.arrays
    assert np.array_equal(held.counts[rows], fresh.counts)
    assert np.array_equal(held.totals[rows], fresh.totals)
    begins = held.starts[rows]
    at = np.repeat(begins - (np.cumsum(fresh.counts) - fresh.counts), fresh.counts) + np.arange(
        len(fresh.partners)
    )
    assert np.array_equal(held.partners[at], fresh.partners)
    assert np.array_equal(held.sums[at], fresh.sums)
    assert len(np.unique(at)) == len(at), "two rows share an entry"
    dead = np.setdiff1d(np.arange(upper.nodes.rows), rows)
    assert not held.counts[dead].any()


def check_supernodes(hierarchy: Hierarchy) -> None:
    """Sizes, sums and rounded means are those of the distinct vectors, counted anew."""
    _, peaks = partition(hierarchy)
    vectors = content(hierarchy.base)["vector"]
    for at, level in enumerate(hierarchy.levels[1:]):
        held = content(level)
        names, place = np.unique(peaks[:, at], return_inverse=True)
        assert np.array_equal(held["hash"], names)
        for node in range(len(names)):
            own = vectors[place == node]
            assert held["size"][node] == len(own)
            assert np.array_equal(held["sum"][node], own.sum(axis=0, dtype=np.int64))
            assert held["mean"][node].tolist() == reference.rounded_mean(own)


def check_calibration(state: State, other: State) -> None:
    """The running sums are a function of the distinct vectors."""
    mine, theirs = state.calibration, other.calibration
    assert mine.items == theirs.items == state.hierarchy.base.nodes.live
    for calibration in (mine, theirs):
        calibration.add_up()
    assert np.array_equal(mine._total, theirs._total)
    assert np.array_equal(mine._gram, theirs._gram)
    assert (mine._excess, mine._excess_squared) == (theirs._excess, theirs._excess_squared)
    if mine.items > 1:
        assert mine.measure() == theirs.measure()


def check_plain_code(state: State, world: World, model: Any) -> None:
    """Every level equals what the plain code makes of the distinct vectors; known neighbours are certain."""
    held = [content(level) for level in state.hierarchy.levels]
    grid = np.unique(np.array([*world.live.values()], np.int16).reshape(-1, world.shape.dim), axis=0)
    plain = reference.cluster(grid, distinct_hashes(grid), model, world.shape, state.calibration.epoch)
    assert len(plain) == len(held) or (len(plain) == len(held) - 1 and state.hierarchy.levels[-2].links == 0)
    for at, (mine, level) in enumerate(zip(held, plain, strict=True)):
        names = level.hashes
        assert np.array_equal(mine["hash"], names), f"level {at}"
        named = np.where(level.graph.neighbors >= 0, names[level.graph.neighbors], 0)
        assert np.array_equal(mine["neighbors"], named), f"level {at}"
        assert np.array_equal(mine["hidden"], level.hidden.view(np.int32)), f"level {at}"
        assert np.array_equal(mine["linkage"], level.linkage.view(np.int32)), f"level {at}"
        assert mine["density"].tobytes() == np.array(level.density, np.float32).tobytes(), f"level {at}"
        parents = [names[parent] if parent >= 0 else 0 for parent in level.parents]
        assert mine["parent"].tolist() == parents, f"level {at}"
        assert mine["root"].tolist() == names[level.roots].tolist(), f"level {at}"
        assert mine["size"].tolist() == [len(own) for own in level.items], f"level {at}"
    for level in state.hierarchy.levels:
        rows = level.nodes.all_rows()
        vectors, hashes = level.nodes.vectors[rows], level.nodes.hashes[rows]
        nearest, dots = reference.nearest(vectors, hashes, level.lists.width)
        nearest = np.where(nearest >= 0, rows[nearest], -1) if len(rows) else nearest
        beyond = np.arange(level.lists.width) >= level.lists.lengths[rows][:, None]
        nearest[beyond], dots[beyond] = -1, -1
        assert np.array_equal(level.lists.neighbors[rows], nearest)
        assert np.array_equal(level.lists.dots[rows], dots)
