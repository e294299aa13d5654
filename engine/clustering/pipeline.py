"""Turns a batch into the change of the stored state, on one page.

    batch -> inserts, updates and deletes by key                       (`_sort_out`)
          -> items and nodes in memory, calibration                    (`State.take`)
          -> lists, linkage, density, parents, roots, level by level   (`Hierarchy.update`)
          -> stable ids, events                                        (`engine.clustering.lineage`)
          -> one `Change` for the store                                (`step`)

`step` modifies the state in memory. If the change cannot be committed, the state must be discarded and
loaded again from the store.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.clustering import lineage
from engine.clustering.level import Clustered, Moves
from engine.clustering.lineage import Lineage, Partition, Transfers, final_of
from engine.clustering.state import Arrivals, State, Turnover
from engine.system.stopwatch import Stopwatch
from engine.types import (
    NO_VECTORS,
    Applied,
    Assignment,
    Batch,
    Bool,
    Change,
    Int32,
    Int64,
    Items,
    Lists,
    Shift,
    Vectors,
)

_NO_IDS = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class _Plan:
    """A batch sorted by its effect on the existing items."""

    held: Int32  # (n,), the item row that an upsert's key has, -1: the key is new
    fresh: Bool  # (n,), the key is new
    moving: Int64  # upserts that give a known key another vector
    arriving: Int64  # the upserts of new keys, then the moving ones
    gone: Int32  # item rows of deleted keys
    unknown: int  # deletes of unknown keys


@dataclass(frozen=True, slots=True)
class _Trees:
    """The level-0 trees before and after a batch."""

    roots: Int32  # (t,), the peaks now, rising
    number: Int64  # by node: its tree now, a position in `roots`
    before: Int64  # by node: the handle of its tree until now, 0: none
    moved: Int32  # nodes in another tree
    stood: Int32  # peaks that did not move: their trees kept the rest of their nodes
    came_from: Int64  # (n,), the handle of each arrival's tree until now
    left: Int64  # handles of the trees that deleted items were in


@dataclass(frozen=True, slots=True)
class _Named:
    """A named partition, and the resulting changes of nodes and items."""

    found: Lineage
    places: Shift
    assignments: list[Assignment]


def step(
    state: State, batch: Batch, now_ms: int, watch: Stopwatch | None = None, expired: Sequence[bytes] = ()
) -> tuple[Change, Applied]:
    """Apply a batch to the state; return the change to commit and a summary.

    `expired`: keys that retention deletes together with it; none of them occurs in the batch.
    """
    version, watch = state.version + 1, watch or Stopwatch()
    plan = _sort_out(state, batch, [*batch.deletes, *expired])
    removed = list(zip(state.items.ids[plan.gone].tolist(), state.items.named(plan.gone), strict=True))
    arrivals = _arrivals(state, batch, plan, version)
    turnover = state.take(arrivals, plan.gone)
    recalibrated = state.calibration.advance()
    watch.lap("vectors")

    epoch = state.calibration.epoch
    clustered = state.hierarchy.update(turnover.new, turnover.gone, epoch, recalibrated, watch)
    named = _name(state, turnover, clustered, removed, version)
    state.names, state.version = named.found.names, version  # if the commit fails, the caller drops the state
    watch.lap("lineage")

    # A replacing row continues a node that the store has already: it is new to the lists, not to the table.
    new = turnover.new[~np.isin(turnover.new, turnover.replacing)]
    change = Change(
        version=version,
        time_ms=now_ms,
        epoch=epoch,
        counters=state.counters,
        positions=batch.positions,
        upserts=_upserts(state, batch, plan, turnover),
        removed=removed,
        copies=_copies(state, turnover, removed),
        vectors=Vectors(state.node_ids[new], state.hierarchy.base.nodes.vectors[new]),
        lists=_lists(state, clustered.rewritten),
        places=named.places,
        trees=named.found.changed_trees,
        clusters=named.found.changed_clusters,
        events=[*named.found.events, *named.assignments, *batch.rejected],
        incoming=Vectors(arrivals.ids, batch.incoming.vectors[plan.arriving])
        if batch.incoming
        else NO_VECTORS,
    )
    watch.lap("change")
    return change, Applied(
        version=version,
        inserted=int(plan.fresh.sum()),
        moved=len(plan.moving),
        unchanged=len(batch.keys) - len(plan.arriving),
        deleted=len(plan.gone) - len(expired),
        unknown=plan.unknown,
        rejected=len(batch.rejected),
        expired=len(expired),
        stats={
            "work": clustered.work,
            "nodes": len(turnover.new) + len(turnover.gone),
            "recalibrated": recalibrated,
            "seconds": watch.seconds,
        },
    )


def regenerate(state: State, places: Int64, now_ms: int) -> Change:
    """Return the change that replaces a store's clustering by that of `state`.

    `state` holds the store's items, nodes and names, clustered with another model, epoch or arithmetic;
    `places` (n,): the stored level-0 tree of each item, by rising row, 0: none. The change's lists, places
    and trees are complete, and its ids follow the members.
    """
    base, version = state.hierarchy.base, state.version + 1
    nodes = base.nodes.all_rows()
    found, assignments = _name_anew(state, state.items.all_rows(), places, version)
    state.names, state.version = found.names, version
    none = np.empty((0, state.hierarchy.shape.dim), np.int16)
    trees = found.names.trees
    return Change(
        version=version,
        time_ms=now_ms,
        epoch=state.calibration.epoch,
        counters=state.counters,
        positions={},
        upserts=Items(_NO_IDS, [], _NO_IDS, _NO_IDS, [], _NO_IDS),
        removed=[],
        copies=Shift(_NO_IDS, _NO_IDS, _NO_IDS),
        vectors=Vectors(_NO_IDS, none),
        lists=_lists(state, nodes),
        places=Shift(state.node_ids[nodes], np.zeros(len(nodes), np.int64), state.handles[base.root[nodes]]),
        trees=dict(zip(trees.handles.tolist(), lineage.listed(trees.paths), strict=True)),
        clusters=found.changed_clusters,
        events=[*found.events, *assignments],
    )


def _sort_out(state: State, batch: Batch, deletes: Sequence[bytes]) -> _Plan:
    items, nodes = state.items, state.hierarchy.base.nodes
    held = items.find(batch.keys)
    old = np.flatnonzero(held >= 0)
    same = (nodes.vectors[items.nodes[held[old]]] == batch.vectors[old]).all(axis=1)
    if batch.incoming:
        same &= ~batch.incoming.differs[old]
    deleted = items.find(deletes)
    fresh, moving = held < 0, old[~same]
    return _Plan(
        held=held,
        fresh=fresh,
        moving=moving,
        arriving=np.concatenate([np.flatnonzero(fresh), moving]),
        gone=deleted[deleted >= 0],
        unknown=int(np.count_nonzero(deleted < 0)),
    )


def _arrivals(state: State, batch: Batch, plan: _Plan, version: int) -> Arrivals:
    """Return inserted and moved items, with ids for new keys; update the event times of the others."""
    items, at = state.items, plan.arriving
    new = int(plan.fresh.sum())
    ids = np.concatenate(
        [np.arange(state.next_item, state.next_item + new), items.ids[plan.held[plan.moving]]]
    )
    state.next_item += new
    known = np.flatnonzero(~plan.fresh)
    items.times[plan.held[known]] = batch.times[known]
    return Arrivals(
        rows=plan.held[at],
        keys=[batch.keys[i] for i in at.tolist()],
        vectors=batch.vectors[at],
        ids=ids,
        versions=np.full(len(at), version, np.int64),
        times=batch.times[at],
    )


def _upserts(state: State, batch: Batch, plan: _Plan, turnover: Turnover) -> Items:
    """Return the item rows to write, by rising id."""
    items, rows = state.items, plan.held.copy()
    rows[plan.arriving] = turnover.items
    order = np.argsort(items.ids[rows])
    rows = rows[order]
    return Items(
        ids=items.ids[rows],
        keys=[batch.keys[i] for i in order.tolist()],
        nodes=state.node_ids[items.nodes[rows]],
        times=items.times[rows],
        payloads=[batch.payloads[i] for i in order.tolist()],
        versions=items.versions[rows],
    )


def _copies(state: State, turnover: Turnover, removed: Sequence[tuple[int, bytes]]) -> Shift:
    """Return the nodes of inserted, moved and deleted items before and after the batch, as ids."""
    rows, before = turnover.items, turnover.before
    ids = state.node_ids
    return Shift(
        np.concatenate([state.items.ids[rows], np.array([item for item, _ in removed], np.int64)]),
        np.concatenate([_at(ids, before), ids[turnover.left]]),
        np.concatenate([ids[state.items.nodes[rows]], np.zeros(len(removed), np.int64)]),
    )


def _name(
    state: State, turnover: Turnover, clustered: Clustered, removed: Sequence[tuple[int, bytes]], version: int
) -> _Named:
    """Name the partition after a batch by matching it with the previous one; update the state's handles."""
    trees = _trees(state, turnover, clustered.moves)
    transfers, partition = _transfers(state, turnover, trees), _partition(state, trees.roots)
    old = state.names.trees
    found = lineage.follow(state.names, partition, transfers, version)
    last = final_of(old, trees.left).tolist()
    state.handles[trees.roots] = found.handles
    seen = _seen(state, trees, found)
    elsewhere = seen[final_of(old, trees.before[seen]) != found.paths[trees.number[seen], -1]]
    others = np.setdiff1d(state.items.of_nodes(elsewhere, len(trees.before)), turnover.items)
    rows = np.concatenate([others, turnover.items])
    came_from = np.concatenate([trees.before[state.items.nodes[others]], trees.came_from])
    assignments = _assignments(state, found, trees.number, rows, final_of(old, came_from))
    assignments += [Assignment(key, 0, final, ()) for (_, key), final in zip(removed, last, strict=True)]
    return _Named(found, _places(state, turnover, trees, seen), assignments)


def _trees(state: State, turnover: Turnover, moves: Moves) -> _Trees:
    base, roots = state.hierarchy.base, state.roots()
    root_before = base.root.copy()
    root_before[moves.rows] = moves.before
    root_before[turnover.replacing] = root_before[turnover.replaced]
    before = _at(state.handles, root_before)
    moved = moves.rows[moves.after >= 0]
    return _Trees(
        roots,
        _tree_numbers(state, roots),
        before,
        moved,
        np.setdiff1d(roots, moved),
        _at(before, turnover.before),
        before[turnover.left],
    )


def _transfers(state: State, turnover: Turnover, trees: _Trees) -> Transfers:
    """Return how many items went from which old tree to which new one."""
    nodes, moved, number = state.items.nodes[turnover.items], trees.moved, trees.number
    came = np.bincount(nodes, minlength=len(number))[moved]
    part = Transfers(
        np.concatenate([trees.came_from, trees.left, trees.before[moved]]),
        np.concatenate([number[nodes], np.full(len(trees.left), -1), number[moved]]),
        np.concatenate([np.ones(len(nodes) + len(trees.left), np.int64), state.copies[moved] - came]),
    )
    stood = trees.before[trees.stood]
    stay = _staying(state, part)[np.searchsorted(state.names.trees.handles, stood)]
    count = np.concatenate([part.count, stay])
    some = count > 0
    return Transfers(
        np.concatenate([part.before, stood])[some],
        np.concatenate([part.after, number[trees.stood]])[some],
        count[some],
    )


def _seen(state: State, trees: _Trees, found: Lineage) -> Int32:
    """Return the nodes that moved, and those of trees with another handle or final cluster."""
    before, now = trees.before[trees.stood], trees.number[trees.stood]
    renamed = (found.handles[now] != before) | (
        found.paths[now, -1] != final_of(state.names.trees, before)
    )
    return np.concatenate([trees.moved, _members(state, trees.stood[renamed], trees.moved)])


def _places(state: State, turnover: Turnover, trees: _Trees, seen: Int32) -> Shift:
    """Return the nodes whose tree has another handle, and those that are gone, as ids."""
    now = state.handles[trees.roots]
    gone = np.setdiff1d(turnover.gone, turnover.replaced)
    differs = seen[trees.before[seen] != now[trees.number[seen]]]
    return Shift(
        np.concatenate([state.node_ids[differs], state.node_ids[gone]]),
        np.concatenate([trees.before[differs], trees.before[gone]]),
        np.concatenate([now[trees.number[differs]], np.zeros(len(gone), np.int64)]),
    )


def _name_anew(state: State, items: Int32, places: Int64, version: int) -> tuple[Lineage, list[Assignment]]:
    """Do what `_name` does where every node may differ and old sizes may be wrong.

    `places`: the old trees of all items.
    """
    roots = state.roots()
    trees = _tree_numbers(state, roots)
    transfers = Transfers(places, trees[state.items.nodes[items]], np.ones(len(items), np.int64))
    previous = final_of(state.names.trees, places)
    found = lineage.follow_all(state.names, _partition(state, roots), transfers, version)
    state.handles[roots] = found.handles
    return found, _assignments(state, found, trees, items, previous)


def _tree_numbers(state: State, roots: Int32) -> Int64:
    """Return the number of each live node's tree, by row: its root's position in `roots`."""
    base = state.hierarchy.base
    number = np.zeros(base.capacity + 1, np.int64)  # the last for -1: not alive
    number[roots] = np.arange(len(roots))
    return number[base.root]


def _staying(state: State, part: Transfers) -> Int64:
    """Count the items of each old tree that are in none of these transfers, (t,)."""
    trees, clusters = state.names.trees, state.names.clusters
    size = clusters.size[np.searchsorted(clusters.ids, trees.paths[:, 0])]
    known = part.before > 0
    row = np.searchsorted(trees.handles, part.before[known])
    out: Int64 = np.bincount(row, weights=part.count[known], minlength=len(size)).astype(np.int64)
    return size - out


def _at(values: Int64, rows: Int32) -> Int64:
    """Return the values of rows, 0 for -1."""
    if not len(values):
        return np.zeros(len(rows), np.int64)
    return np.where(rows >= 0, values[rows], 0)


def _members(state: State, roots: Int32, moved: Int32) -> Int32:
    """Return the nodes of these trees, except those that moved."""
    base = state.hierarchy.base
    if not len(roots):
        return roots
    wanted = np.zeros(base.capacity, np.bool_)
    wanted[roots] = True
    member = base.nodes.alive[: base.capacity] & wanted[base.root]
    member[moved] = False
    return np.flatnonzero(member).astype(np.int32)


def _assignments(
    state: State, found: Lineage, trees: Int64, rows: Int32, previous: Int64
) -> list[Assignment]:
    """Return an event for each item whose final cluster differs from `previous`, by rising item id.

    `trees`: of each node, as `_tree_numbers` has them.
    """
    items, trees = state.items, trees[state.items.nodes[rows]]
    current = found.paths[trees, -1]
    changed = np.flatnonzero(previous != current)
    # By item id: row numbers differ after a restart, and events must keep their order.
    changed = changed[np.argsort(items.ids[rows[changed]])]
    concerned, which = np.unique(trees[changed], return_inverse=True)
    paths = lineage.listed(found.paths[concerned])
    columns = (rows[changed], current[changed], previous[changed], which)
    return [
        Assignment(items.keys[row], cluster, old, paths[tree])
        for row, cluster, old, tree in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _partition(state: State, roots: Int32) -> Partition:
    """Return the ancestor of each level-0 tree at each level, and the node id of its peak."""
    levels = state.hierarchy.levels
    labels = [np.arange(len(roots), dtype=np.int64)]
    peaks = [state.node_ids[roots]]
    node = np.arange(levels[0].capacity, dtype=np.int32)  # row of the level -> row of its peak at level 0
    at = roots
    for lower, level in itertools.pairwise(levels):
        node = np.where(level.below >= 0, node[level.below], -1)
        at = level.root[lower.above[at]]
        labels.append(at.astype(np.int64))
        peaks.append(state.node_ids[node[at]])
    return Partition(np.stack(labels, axis=1), np.stack(peaks, axis=1))


def _lists(state: State, rows: Int32) -> Lists:
    """Return the lists of these rows with node ids in place of rows, by rising node id."""
    lists, ids = state.hierarchy.base.lists, state.node_ids
    rows = rows[np.argsort(ids[rows])]
    neighbors = lists.neighbors[rows]
    return Lists(
        ids=ids[rows],
        neighbors=np.where(neighbors >= 0, ids[neighbors], -1),
        dots=lists.dots[rows],
    )
