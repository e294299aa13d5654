"""What a change of the partition touches: only that is named anew, all other clusters keep their names.

A final cluster is *untouched* if its members, its trees at every level and their peaks are what they were.
Overlaps never lead from an untouched cluster to another one, so `lineage.follow` gives the same names and
tells the same differences whether it sees the untouched ones or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.clustering import lineage
from engine.clustering.lineage import Atoms, Lineage
from engine.types import Bool, Clusters, Int64, Trees


@dataclass(frozen=True, slots=True)
class _Links:
    """The atoms whose items were there before and are there now: a row each."""

    old_tree: Int64  # (a,), place in the old table of trees
    new_tree: Int64  # (a,)
    old: Int64  # (a, levels), place in the old table of clusters
    new: Int64  # (a, levels), dense labels


def follow(
    old_trees: Trees,
    old: Clusters,
    atoms: Atoms,
    up: Int64,
    peaks: Int64,
    version: int,
    next_tree: int,
    next_cluster: int,
) -> Lineage:
    """As `lineage.follow`, at the cost of what is touched and a few passes over the tables."""
    if old_trees.paths.shape[1] != up.shape[1] or not len(old_trees.handles) or not len(up):
        return lineage.follow(old_trees, old, atoms, up, peaks, version, next_tree, next_cluster)
    known = atoms.before > 0
    row = np.full(len(known), -1, np.int64)
    row[known] = np.searchsorted(old_trees.handles, atoms.before[known])
    assert np.array_equal(old_trees.handles[row[known]], atoms.before[known]), "an atom's old tree is unknown"
    place = np.searchsorted(old.ids, old_trees.paths)
    labels = np.stack([_dense(up[:, level]) for level in range(up.shape[1])], axis=1)

    old_final, new_final = _touched(old, place, row, atoms.after, labels, peaks)
    trees_before, trees_now = old_final[place[:, -1]], new_final[labels[:, -1]]
    table = np.zeros(len(old.ids), np.bool_)
    table[place[trees_before].ravel()] = True
    part = (known & trees_before[row]) | ((atoms.after >= 0) & trees_now[atoms.after])
    number = np.full(len(up) + 1, -1, np.int64)  # the last: of items that are gone
    number[:-1][trees_now] = np.arange(np.count_nonzero(trees_now))
    found = lineage.follow(
        Trees(old_trees.handles[trees_before], old_trees.paths[trees_before]),
        _pick(old, table),
        Atoms(atoms.before[part], number[atoms.after[part]], atoms.count[part]),
        up[trees_now],
        peaks[trees_now],
        version,
        next_tree,
        next_cluster,
    )

    handles, paths = np.zeros(len(up), np.int64), np.zeros_like(up)
    handles[atoms.after[~part]] = atoms.before[~part]
    paths[atoms.after[~part]] = old_trees.paths[row[~part]]
    handles[trees_now], paths[trees_now] = found.handles, found.paths
    previous, current = old_trees.paths[row, -1], old_trees.paths[row, -1]
    previous[part], current[part] = found.previous, found.current
    return Lineage(
        _joined_trees(old_trees, ~trees_before, found.trees),
        _joined(_pick(old, ~table), found.clusters),
        handles,
        paths,
        previous,
        current,
        found.changed_trees,
        found.changed_clusters,
        found.events,
        found.next_tree,
        found.next_cluster,
    )


def _touched(
    old: Clusters, place: Int64, row: Int64, after: Int64, labels: Int64, peaks: Int64
) -> tuple[Bool, Bool]:
    """Which final clusters are touched: old ones by their place, new ones by their label."""
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
    """Some of the pairs of each set that has parts in several others: at least all but one partner's."""
    return _several(old, new) | _several(new, old)


def _several(whole: Int64, part: Int64) -> Bool:
    last = np.empty(whole.max(initial=-1) + 1, np.int64)
    last[whole] = part
    other: Bool = last[whole] != part
    return other


def _dense(labels: Int64) -> Int64:
    """The rank of each label among the distinct ones."""
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
    """Two tables without a common id."""
    order = np.argsort(np.concatenate([one.ids, other.ids]), kind="stable")  # linear for two sorted runs
    pairs = zip(_columns(one), _columns(other), strict=True)
    return Clusters(*(np.concatenate(pair)[order] for pair in pairs))


def _joined_trees(old: Trees, kept: Bool, found: Trees) -> Trees:
    handles = np.concatenate([old.handles[kept], found.handles])
    order = np.argsort(handles, kind="stable")
    return Trees(handles[order], np.concatenate([old.paths[kept], found.paths])[order])
