"""The whole way of a batch, on one page: items in, the change of the stored state out.

    batch -> items that are new, moved, gone   (`_sort_out`)
          -> rows of level 0, calibration      (`step`)
          -> lists, linkage, density, parents, roots, level by level   (`engine.clustering.hierarchy`)
          -> stable ids, events                (`engine.clustering.lineage`)
          -> one `Change` for the store        (`step` again)

`step` alters the state in memory. If the change cannot be committed, the state must be thrown away
and loaded again: the store is the truth.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine import vectors
from engine.clustering import lineage, touched
from engine.clustering.lineage import Atoms, Lineage
from engine.clustering.state import State, final_of
from engine.system.stopwatch import Stopwatch
from engine.types import (
    Applied,
    Assignment,
    Batch,
    Bool,
    Change,
    Int32,
    Int64,
    Items,
    Lists,
)

_NO_IDS = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a batch means for the items there are."""

    held: Int32  # (n,), the row that an upsert's key has, -1: the key is new
    fresh: Bool  # (n,), the key is new
    moving: Int64  # upserts that give a known key another vector
    gone: Int32  # rows of deleted keys
    unknown: int  # deletes of unknown keys
    moved_from: Int32  # rows that the moving keys leave


def step(state: State, batch: Batch, now_ms: int, watch: Stopwatch) -> tuple[Change, Applied]:
    """Take a batch: returns what the store has to commit and what came of it."""
    base, calibration = state.hierarchy.base, state.calibration
    version = state.version + 1
    plan = _sort_out(state, batch)

    gone = np.concatenate([plan.gone, plan.moved_from])
    arrivals = np.concatenate([np.flatnonzero(plan.fresh), plan.moving])
    calibration.add(base.nodes.vectors[gone], sign=-1)
    base.nodes.remove(gone)
    rows = base.add(batch.vectors[arrivals], vectors.hash_keys([batch.keys[i] for i in arrivals]))
    calibration.add(batch.vectors[arrivals])
    removed = [(int(state.ids[row]), state.keys[row]) for row in plan.gone.tolist()]
    upserts = _register(state, batch, plan, rows, version)
    recalibrated = calibration.advance()
    watch.lap("vectors")

    moves, work = state.hierarchy.update(rows, gone, calibration.epoch, recalibrated, watch)
    before = np.zeros(base.capacity, np.int64)  # by row: the handle of the item's tree until now
    had = moves.before >= 0
    before[moves.rows[had]] = state.handles[moves.before[had]]
    before[rows[len(rows) - len(plan.moving) :]] = before[plan.moved_from]
    named, moved, assignments = _name(
        state, moves.rows[moves.after >= 0], before, plan.gone, removed, version
    )
    watch.lap("lineage")

    change = Change(
        version=version,
        time_ms=now_ms,
        epoch=calibration.epoch,
        counters=_adopt(state, named, version),
        positions=batch.positions,
        upserts=upserts,
        removed=removed,
        lists=_lists(state, base.rewritten),
        moved=moved,
        trees=named.changed_trees,
        clusters=named.changed_clusters,
        events=[*named.events, *assignments, *batch.rejected],
    )
    watch.lap("change")
    return change, Applied(
        version=version,
        inserted=int(plan.fresh.sum()),
        moved=len(plan.moving),
        unchanged=len(batch.keys) - len(arrivals),
        deleted=len(plan.gone),
        unknown=plan.unknown,
        rejected=len(batch.rejected),
        stats={"work": work, "recalibrated": recalibrated, "seconds": watch.seconds},
    )


def regenerate(state: State, places: Int64, now_ms: int) -> Change:
    """The change that puts a collection clustered anew in the place of what a store has.

    `state` holds the store's items (rows 0, 1, ...) and names, clustered with another model, epoch
    or arithmetic; `places` (n,): the stored level-0 tree of each item. The change's lists, moved
    items and trees are complete, and its ids follow the members.
    """
    base = state.hierarchy.base
    rows = base.nodes.all_rows()
    before = np.zeros(base.capacity, np.int64)
    before[rows] = places
    version = state.version + 1
    named, _, assignments = _name(state, rows, before, rows[:0], [], version)
    paths = lineage.distinct(named.trees.paths).tolist()
    none = np.empty((0, state.hierarchy.shape.dim), np.int16)
    return Change(
        version=version,
        time_ms=now_ms,
        epoch=state.calibration.epoch,
        counters=_adopt(state, named, version),
        positions={},
        upserts=Items(_NO_IDS, [], none, _NO_IDS, [], _NO_IDS),
        removed=[],
        lists=_lists(state, rows),
        moved=(state.ids[rows], np.zeros(len(rows), np.int64), state.handles[base.root[rows]]),
        trees={
            handle: tuple(i for i in path if i)
            for handle, path in zip(named.trees.handles.tolist(), paths, strict=True)
        },
        clusters=named.changed_clusters,
        events=[*named.events, *assignments],
    )


def _sort_out(state: State, batch: Batch) -> _Plan:
    held = np.fromiter((state.row_of.get(key, -1) for key in batch.keys), np.int32, len(batch.keys))
    old = np.flatnonzero(held >= 0)
    same = (state.hierarchy.base.nodes.vectors[held[old]] == batch.vectors[old]).all(axis=1)
    moving = old[~same]
    deleted = [state.row_of[key] for key in batch.deletes if key in state.row_of]
    return _Plan(
        held=held,
        fresh=held < 0,
        moving=moving,
        gone=np.array(deleted, np.int32),
        unknown=len(batch.deletes) - len(deleted),
        moved_from=held[moving],
    )


def _register(state: State, batch: Batch, plan: _Plan, rows: Int32, version: int) -> Items:
    """Give the arrivals their rows and ids; returns the item rows to write, by rising id."""
    new = np.flatnonzero(plan.fresh)
    known = ~plan.fresh
    ids = np.zeros(len(batch.keys), np.int64)
    versions = np.full(len(batch.keys), version, np.int64)
    ids[new] = np.arange(state.next_item, state.next_item + len(new))
    state.next_item += len(new)
    ids[known], versions[known] = state.ids[plan.held[known]], state.versions[plan.held[known]]
    versions[plan.moving] = version
    for row in plan.gone.tolist():
        del state.row_of[state.keys[row]]
    for row in [*plan.gone.tolist(), *plan.moved_from.tolist()]:
        state.keys[row] = b""
    arrivals = np.concatenate([new, plan.moving])
    state.place(
        rows, [batch.keys[i] for i in arrivals], ids[arrivals], versions[arrivals], batch.times[arrivals]
    )
    unchanged = np.setdiff1d(np.flatnonzero(known), plan.moving)
    state.times[plan.held[unchanged]] = batch.times[unchanged]
    order = np.argsort(ids)
    return Items(
        ids=ids[order],
        keys=[batch.keys[i] for i in order],
        vectors=batch.vectors[order],
        times=batch.times[order],
        payloads=[batch.payloads[i] for i in order],
        versions=versions[order],
    )


def _name(
    state: State, moved: Int32, before: Int64, gone: Int32, removed: Sequence[tuple[int, bytes]], version: int
) -> tuple[Lineage, tuple[Int64, Int64, Int64], list[Assignment]]:
    """Match the new partition with the old: ids, the items' new trees, assignments of items.

    `moved`: rows whose tree may be another; `before`: by row, the old handle of those and of `gone`.
    Alters `before` and the handles of the state.
    """
    base = state.hierarchy.base
    roots = state.roots()
    number = np.full(base.capacity, -1, np.int64)  # by root's row: the tree's number
    number[roots] = np.arange(len(roots))
    stay = _tree_sizes(state, roots) - np.bincount(number[base.root[moved]], minlength=len(roots))
    stays = np.flatnonzero(stay)  # trees with members that did not move
    old_handles = state.handles[roots[stays]]
    atoms = Atoms(
        np.concatenate([before[moved], before[gone], old_handles]),
        np.concatenate([number[base.root[moved]], np.full(len(gone), -1), stays]),
        np.concatenate([np.ones(len(moved) + len(gone), np.int64), stay[stays]]),
    )
    up, peaks = _ancestors(state, roots)
    named = touched.follow(
        state.trees, state.clusters, atoms, up, peaks, version, state.next_tree, state.next_cluster
    )
    old_final = named.previous[len(moved) + len(gone) :]
    renamed = (named.handles[stays] != old_handles) | (named.paths[stays, -1] != old_final)
    settled = _members(state, roots[stays[renamed]], moved)
    before[settled] = state.handles[base.root[settled]]
    seen = np.concatenate([moved, settled])
    trees = number[base.root[seen]]
    state.handles[roots] = named.handles
    assignments = _assignments(state, named, seen, before[seen], trees)
    last = final_of(state.trees, before[gone]).tolist()
    assignments += [Assignment(key, 0, old, ()) for (_, key), old in zip(removed, last, strict=True)]
    return named, _places(state, seen, gone, before, named.handles[trees]), assignments


def _members(state: State, roots: Int32, moved: Int32) -> Int32:
    """The rows of these trees, but for those that moved."""
    base = state.hierarchy.base
    if not len(roots):
        return roots
    wanted = np.zeros(base.capacity, np.bool_)
    wanted[roots] = True
    member = base.nodes.alive & wanted[base.root]
    member[moved] = False
    return np.flatnonzero(member).astype(np.int32)


def _places(
    state: State, seen: Int32, gone: Int32, before: Int64, after: Int64
) -> tuple[Int64, Int64, Int64]:
    """Items whose tree has another handle now: ids, handle before, handle after (0: gone)."""
    differs = before[seen] != after
    return (
        np.concatenate([state.ids[seen[differs]], state.ids[gone]]),
        np.concatenate([before[seen[differs]], before[gone]]),
        np.concatenate([after[differs], np.zeros(len(gone), np.int64)]),
    )


def _assignments(state: State, named: Lineage, rows: Int32, before: Int64, trees: Int64) -> list[Assignment]:
    """Of these rows, now in `trees`, before in the tree with handle `before`."""
    previous = final_of(state.trees, before)
    current = named.paths[trees, -1]
    changed = np.flatnonzero(previous != current)
    # By item id: rows are numbered otherwise after a restart, and events must come in the same order.
    changed = changed[np.argsort(state.ids[rows[changed]])]
    concerned, which = np.unique(trees[changed], return_inverse=True)
    paths = [tuple(i for i in path if i) for path in lineage.distinct(named.paths[concerned]).tolist()]
    columns = (rows[changed], current[changed], previous[changed], which)
    return [
        Assignment(state.keys[row], cluster, old, paths[tree])
        for row, cluster, old, tree in zip(*(c.tolist() for c in columns), strict=True)
    ]


def _ancestors(state: State, roots: Int32) -> tuple[Int64, Int64]:
    """For each level-0 tree the tree that holds it at each level, and that tree's peak's item id.

    Returns labels and peaks, int64 (t, levels).
    """
    levels = state.hierarchy.levels
    labels = [np.arange(len(roots), dtype=np.int64)]
    peaks = [state.ids[roots]]
    item = np.arange(levels[0].capacity, dtype=np.int32)  # row of the level -> row of its peak's item
    at = roots
    for lower, level in itertools.pairwise(levels):
        item = np.where(level.below >= 0, item[level.below], -1)
        at = level.root[lower.above[at]]
        labels.append(at.astype(np.int64))
        peaks.append(state.ids[item[at]])
    return np.stack(labels, axis=1), np.stack(peaks, axis=1)


def _tree_sizes(state: State, roots: Int32) -> Int64:
    levels = state.hierarchy.levels
    if len(levels) == 1:
        base = levels[0]
        return np.bincount(base.root[base.nodes.all_rows()], minlength=base.capacity)[roots]
    return levels[1].sizes[levels[0].above[roots]]


def _lists(state: State, rows: Int32) -> Lists:
    """The lists of these rows as the store keeps them, by rising item id."""
    lists = state.hierarchy.base.lists
    rows = rows[np.argsort(state.ids[rows])]
    neighbors = lists.neighbors[rows]
    return Lists(
        ids=state.ids[rows],
        neighbors=np.where(neighbors >= 0, state.ids[neighbors], -1),
        dots=lists.dots[rows],
    )


def _adopt(state: State, named: Lineage, version: int) -> dict[str, int]:
    """The state goes over to the new version; returns its counters."""
    state.version = version
    state.trees, state.clusters = named.trees, named.clusters
    state.next_tree, state.next_cluster = named.next_tree, named.next_cluster
    return state.counters
