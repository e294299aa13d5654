"""Restricts naming to the clusters that a change touches; all others keep their names.

A final cluster is *untouched* if its members, its trees at every level and their peaks are what they were.
Overlaps never lead from an untouched cluster to another one, so `lineage.follow` gives the same names and
tells the same differences whether it sees the untouched ones or not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from engine.clustering import lineage
from engine.clustering.lineage import Lineage, Names, Partition, Transfers
from engine.types import Bool, Clusters, Int64, Trees


@dataclass(frozen=True, slots=True)
class _Links:
    """The transfers of items that existed before and still exist, a row each."""

    old_tree: Int64  # (a,), place in the old table of trees
    new_tree: Int64  # (a,)
    old: Int64  # (a, levels), place in the old table of clusters
    new: Int64  # (a, levels), dense labels


def follow(names: Names, partition: Partition, transfers: Transfers, version: int) -> Lineage:
    """Do what `lineage.follow` does, at the cost of the touched clusters and a few passes over the tables."""
    old_trees, old, ancestors = names.trees, names.clusters, partition.ancestors
    count, levels = ancestors.shape
    if old_trees.paths.shape[1] != levels or not len(old_trees.handles) or not count:
        return lineage.follow(names, partition, transfers, version)
    row = lineage.old_rows(old_trees, transfers)
    place = np.searchsorted(old.ids, old_trees.paths)
    labels = np.stack([_dense(ancestors[:, level]) for level in range(levels)], axis=1)

    old_final, new_final = _touched(old, place, row, transfers.after, labels, partition.peaks)
    trees_before, trees_now = old_final[place[:, -1]], new_final[labels[:, -1]]
    table = np.zeros(len(old.ids), np.bool_)
    table[place[trees_before].ravel()] = True
    part = ((row >= 0) & trees_before[row]) | ((transfers.after >= 0) & trees_now[transfers.after])
    number = np.full(count + 1, -1, np.int64)  # the last: of items that are gone
    number[:-1][trees_now] = np.arange(np.count_nonzero(trees_now))
    found = lineage.follow(
        replace(
            names,
            trees=Trees(old_trees.handles[trees_before], old_trees.paths[trees_before]),
            clusters=_pick(old, table),
        ),
        Partition(ancestors[trees_now], partition.peaks[trees_now]),
        Transfers(transfers.before[part], number[transfers.after[part]], transfers.count[part]),
        version,
    )

    handles, paths = np.zeros(count, np.int64), np.zeros_like(ancestors)
    handles[transfers.after[~part]] = transfers.before[~part]
    paths[transfers.after[~part]] = old_trees.paths[row[~part]]
    handles[trees_now], paths[trees_now] = found.handles, found.paths
    joined = replace(
        found.names,
        trees=_joined_trees(old_trees, ~trees_before, found.names.trees),
        clusters=_joined(_pick(old, ~table), found.names.clusters),
    )
    return replace(found, names=joined, handles=handles, paths=paths)


def _touched(
    old: Clusters, place: Int64, row: Int64, after: Int64, labels: Int64, peaks: Int64
) -> tuple[Bool, Bool]:
    """Return masks of the touched final clusters: old ones by position, new ones by label."""
    touched_old = np.zeros(len(old.ids), np.bool_)
    touched_new = np.zeros(labels[:, -1].max(initial=-1) + 1, np.bool_)
    touched_new[labels[after[(row < 0) & (after >= 0)], -1]] = True
    touched_old[place[row[(row >= 0) & (after < 0)], -1]] = True
    both = (row >= 0) & (after >= 0)
    links = _Links(row[both], after[both], place[row[both]], labels[after[both]])
    differs = (peaks[links.new_tree] != old.peak[links.old]).any(axis=1)
    differs |= _divided(links.old_tree, links.new_tree)
    for level in range(links.old.shape[1]):
        differs |= _divided(links.old[:, level], links.new[:, level])
    final_old, final_new = links.old[:, -1], links.new[:, -1]
    while True:
        touched_old[final_old[differs]] = touched_new[final_new[differs]] = True
        wider = touched_old[final_old] | touched_new[final_new]
        if np.array_equal(wider, differs):
            return touched_old, touched_new
        differs = wider


def _divided(old: Int64, new: Int64) -> Bool:
    """Mark pairs of sets that have parts in several others: those of all partners but at most one."""
    return _several(old, new) | _several(new, old)


def _several(whole: Int64, part: Int64) -> Bool:
    last = np.empty(whole.max(initial=-1) + 1, np.int64)
    last[whole] = part
    other: Bool = last[whole] != part
    return other


def _dense(labels: Int64) -> Int64:
    """Return the rank of each label among the distinct ones."""
    if not len(labels):
        return labels
    low = labels.min()
    seen = np.zeros(labels.max() - low + 1, np.int64)
    seen[labels - low] = 1
    ranks: Int64 = (np.cumsum(seen) - 1)[labels - low]
    return ranks


def _pick(clusters: Clusters, rows: Bool) -> Clusters:
    return Clusters(*(column[rows] for column in _columns(clusters)))


def _columns(clusters: Clusters) -> list[Int64]:
    return [getattr(clusters, name) for name in Clusters.__slots__]


def _joined(one: Clusters, other: Clusters) -> Clusters:
    """Merge two tables that have no id in common."""
    order = np.argsort(np.concatenate([one.ids, other.ids]), kind="stable")  # linear for two sorted runs
    pairs = zip(_columns(one), _columns(other), strict=True)
    return Clusters(*(np.concatenate(pair)[order] for pair in pairs))


def _joined_trees(old: Trees, kept: Bool, found: Trees) -> Trees:
    handles = np.concatenate([old.handles[kept], found.handles])
    order = np.argsort(handles, kind="stable")
    return Trees(handles[order], np.concatenate([old.paths[kept], found.paths])[order])
