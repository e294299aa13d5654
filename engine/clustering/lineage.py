"""Assigns stable ids to the clusters of a changing partition, and derives lineage events.

A cluster id names a *set of members*, not a place in the hierarchy: trees with equal members at
neighbouring levels share one id. Old and new trees are matched by members in common alone, the
coarsest level first, largest overlap first. Level-0 trees also have a *handle*, the name under which
the store keeps their members; handles are matched at level 0 alone, so that few items change theirs.

A final cluster is *untouched* if its members, its trees at every level and their peaks are what they were.
Overlaps never lead from an untouched cluster to another one, so the names and differences are the same
whether the untouched ones are looked at (`follow_all`) or not (`follow`).

Invariants of the result:
- one id is one set of members, and one set of members is one id;
- an id occurs at consecutive levels `finest` .. `coarsest`;
- it depends on content only: never on the numbering of trees or labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from engine.numbering import find
from engine.types import NO_CLUSTERS, NO_TREES, Bool, Cluster, Clusters, Int64, LineageEvent, Trees


@dataclass(frozen=True, slots=True)
class Names:
    """A partition's names: its level-0 trees, the clusters, and the first handle and id that are free."""

    trees: Trees
    clusters: Clusters
    next_tree: int
    next_cluster: int


NO_NAMES = Names(NO_TREES, NO_CLUSTERS, 1, 1)


@dataclass(frozen=True, slots=True)
class Partition:
    """A new partition, unnamed: for each level-0 tree 0, 1, ... the tree that contains it at each level."""

    ancestors: Int64  # (t, levels), labels that are arbitrary at each level; level 0 is the number itself
    peaks: Int64  # (t, levels), node id of that tree's peak: it decides ties


@dataclass(frozen=True, slots=True)
class Transfers:
    """How many items went from which old level-0 tree to which new one. Every item is in exactly one."""

    before: Int64  # (a,), handle of the old tree, 0: the items are new
    after: Int64  # (a,), number of the new tree, -1: the items are gone
    count: Int64  # (a,), items


@dataclass(frozen=True, slots=True)
class Lineage:
    """The new partition under stable names, and its differences from the old one."""

    names: Names
    handles: Int64  # (t,), of new tree number 0, 1, ...
    paths: Int64  # (t, levels), their cluster ids, finest level first
    changed_trees: dict[int, tuple[int, ...]]  # handle -> distinct ids, final first; (): gone
    changed_clusters: list[Cluster]
    events: list[LineageEvent]


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Non-empty intersections of old and new sets, each pair once."""

    old: Int64
    new: Int64
    overlap: Int64

    def where(self, mask: Bool) -> _Pairs:
        return _Pairs(self.old[mask], self.new[mask], self.overlap[mask])


@dataclass(frozen=True, slots=True)
class _Parts:
    """The transfers of items that existed before and still exist."""

    before: Int64  # row in the old table of trees
    after: Int64  # number of the new tree
    count: Int64


@dataclass(frozen=True, slots=True)
class _Level:
    """The trees of one level and the clusters they name; n trees."""

    label: Int64  # (t,), of each level-0 tree
    first: Int64  # (n,), one level-0 tree inside
    size: Int64  # (n,)
    peak: Int64  # (n,)
    pairs: _Pairs  # with the old clusters of the matching level (positions in the old table)
    ids: Int64  # (n,)
    overlap: Int64  # (n,), with the old cluster of the same id, 0: the id is new
    shared: Bool  # (n,), equal members at the next coarser level
    parent: Int64  # (n,), id of the next coarser level's tree, 0 at the top


@dataclass(frozen=True, slots=True)
class _Links:
    """The transfers of items that existed before and still exist, a row each."""

    old_tree: Int64  # (a,), place in the old table of trees
    new_tree: Int64  # (a,)
    old: Int64  # (a, levels), place in the old table of clusters
    new: Int64  # (a, levels), dense labels


def follow(names: Names, partition: Partition, transfers: Transfers, version: int) -> Lineage:
    """Name the trees of a new partition after those of the old one, and return the differences.

    `names`: the old partition's; `version`: of the change. The cost is that of the touched clusters, and of a
    few passes over the tables.
    """
    old_trees, old, ancestors = names.trees, names.clusters, partition.ancestors
    count, levels = ancestors.shape
    if old_trees.paths.shape[1] != levels or not len(old_trees.handles) or not count:
        return follow_all(names, partition, transfers, version)
    row = _old_rows(old_trees, transfers)
    place = np.searchsorted(old.ids, old_trees.paths)
    labels = np.stack([_dense(ancestors[:, level]) for level in range(levels)], axis=1)

    old_final, new_final = _touched(old, place, row, transfers.after, labels, partition.peaks)
    trees_before, trees_now = old_final[place[:, -1]], new_final[labels[:, -1]]
    table = np.zeros(len(old.ids), np.bool_)
    table[place[trees_before].ravel()] = True
    part = ((row >= 0) & trees_before[row]) | ((transfers.after >= 0) & trees_now[transfers.after])
    number = np.full(count + 1, -1, np.int64)  # the last: of items that are gone
    number[:-1][trees_now] = np.arange(np.count_nonzero(trees_now))
    found = follow_all(
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


def follow_all(names: Names, partition: Partition, transfers: Transfers, version: int) -> Lineage:
    """Do what `follow` does, looking at every cluster: also where the old sizes are wrong."""
    old_trees, old = names.trees, names.clusters
    ancestors, peaks = partition.ancestors, partition.peaks
    known, kept = transfers.before > 0, transfers.after >= 0
    row = _old_rows(old_trees, transfers)
    both = known & kept
    parts = _Parts(row[both], transfers.after[both], transfers.count[both])
    tree_size = _totals(transfers.after[kept], transfers.count[kept], len(ancestors))
    assert (tree_size > 0).all(), "a tree without items"

    handles = np.zeros(len(ancestors), np.int64)
    got, _ = _match(_overlaps(parts.before, parts.after, parts.count, len(ancestors)), peaks[:, 0])
    handles[got >= 0] = old_trees.handles[got[got >= 0]]
    next_tree = _mint(handles, peaks[:, 0], names.next_tree)

    levels, next_cluster = _name_levels(names, partition, tree_size, parts)
    paths = np.stack([found.ids[found.label] for found in levels], axis=1)
    clusters, record = _table(levels, old, version)
    order = np.argsort(handles)
    trees = Trees(handles[order], paths[order])
    return Lineage(
        Names(trees, clusters, next_tree, next_cluster),
        handles,
        paths,
        _changed_trees(old_trees, trees),
        [*_records(clusters, record), *_ended(names, clusters, paths, parts, version)],
        _events(old, levels[-1]),
    )


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
    """Return the rank of each label among the distinct ones, (n,).

    Linear in n and the range of the labels; `np.unique` sorts.
    """
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


def _old_rows(trees: Trees, transfers: Transfers) -> Int64:
    """Return the row of each transfer's old tree in the old table, int64 (a,); -1 for new items."""
    row = np.full(len(transfers.before), -1, np.int64)
    known = transfers.before > 0
    row[known] = np.searchsorted(trees.handles, transfers.before[known])
    assert np.array_equal(trees.handles[row[known]], transfers.before[known]), "an old tree is unknown"
    return row


def final_of(trees: Trees, handles: Int64) -> Int64:
    """Return the final cluster of trees by handle, 0 for handle 0."""
    out = np.zeros(len(handles), np.int64)
    known = handles > 0
    out[known] = trees.paths[np.searchsorted(trees.handles, handles[known]), -1]
    return out


def distinct(paths: Int64) -> Int64:
    """Return the distinct ids of each path, final first, padded with 0: (t, levels) -> (t, levels)."""
    coarse_first = paths[:, ::-1]
    keep = np.ones(coarse_first.shape, np.bool_)
    keep[:, 1:] = coarse_first[:, 1:] != coarse_first[:, :-1]
    position = np.cumsum(keep, axis=1) - 1
    packed = np.zeros_like(coarse_first)
    rows, columns = np.nonzero(keep)
    packed[rows, position[rows, columns]] = coarse_first[rows, columns]
    return packed


def listed(paths: Int64) -> list[tuple[int, ...]]:
    """Return the distinct ids of each path, final first."""
    return [tuple(i for i in path if i) for path in distinct(paths).tolist()]


def _totals(index: Int64, count: Int64, length: int) -> Int64:
    return np.bincount(index, weights=count, minlength=length).astype(np.int64)  # exact below 2^53


def _overlaps(old: Int64, new: Int64, count: Int64, width: int) -> _Pairs:
    """Sum the counts of equal (old, new) pairs; new < width."""
    keys, inverse = np.unique(old * width + new, return_inverse=True)
    overlap = _totals(inverse, count, len(keys))
    return _Pairs(keys // max(width, 1), keys % max(width, 1), overlap)


def _match(pairs: _Pairs, peak: Int64) -> tuple[Int64, Int64]:
    """Match greedily: largest overlap first, ties to the lower old number, then to the lower peak.

    Returns for each of the n new trees (as many as `peak` has) the old number, -1: none, and the overlap.
    """
    got, size = np.full(len(peak), -1, np.int64), np.zeros(len(peak), np.int64)
    if not len(pairs.old):
        return got, size
    alone = (np.bincount(pairs.old)[pairs.old] == 1) & (np.bincount(pairs.new)[pairs.new] == 1)
    got[pairs.new[alone]], size[pairs.new[alone]] = pairs.old[alone], pairs.overlap[alone]
    rest = pairs.where(~alone)
    order = np.lexsort((peak[rest.new], rest.old, -rest.overlap))
    taken_old: set[int] = set()
    taken_new: set[int] = set()
    columns = (rest.old, rest.new, rest.overlap)
    for o, n, overlap in zip(*(column[order].tolist() for column in columns), strict=True):
        if o not in taken_old and n not in taken_new:
            taken_old.add(o)
            taken_new.add(n)
            got[n], size[n] = o, overlap
    return got, size


def _mint(ids: Int64, peak: Int64, following: int) -> int:
    """Fill the zeros of `ids` from the counter, in the order of peaks; return the next free number."""
    blank = np.flatnonzero(ids == 0)
    ids[blank[np.argsort(peak[blank])]] = np.arange(following, following + len(blank))
    return following + len(blank)


def _name_levels(
    names: Names, partition: Partition, tree_size: Int64, parts: _Parts
) -> tuple[list[_Level], int]:
    """Name the trees of all levels, coarsest first; return the levels, finest first, and the next id."""
    old, place = names.clusters, np.searchsorted(names.clusters.ids, names.trees.paths)
    used = np.zeros(len(old.ids), np.bool_)
    next_cluster, coarser = names.next_cluster, None
    levels: list[_Level] = []
    for level in reversed(range(partition.ancestors.shape[1])):
        column = place.shape[1] - 1 if coarser is None else min(level, place.shape[1] - 1)
        _, first, label = np.unique(partition.ancestors[:, level], return_index=True, return_inverse=True)
        size, peak = _totals(label, tree_size, len(first)), partition.peaks[first, level]
        ids, parent = np.zeros(len(first), np.int64), np.zeros(len(first), np.int64)
        shared = np.zeros(len(first), np.bool_)
        if coarser is not None:
            above = coarser.label[first]
            parent = coarser.ids[above]
            shared = size == coarser.size[above]
            ids[shared] = parent[shared]
        pairs = _overlaps(place[parts.before, column], label[parts.after], parts.count, len(first))
        got, overlap = _match(pairs.where(~used[pairs.old] & ~shared[pairs.new]), peak)
        taken = got >= 0
        ids[taken] = old.ids[got[taken]]
        used[got[taken]] = True
        next_cluster = _mint(ids, peak, next_cluster)
        coarser = _Level(label, first, size, peak, pairs, ids, overlap, shared, parent)
        levels.append(coarser)
    return levels[::-1], next_cluster


def _table(levels: list[_Level], old: Clusters, version: int) -> tuple[Clusters, Bool]:
    """Return the living clusters, and a mask of those that need a new record."""
    names = ("ids", "size", "peak", "parent", "overlap")
    own = [~level.shared for level in levels]  # a cluster belongs to the coarsest of its levels
    column = {
        name: np.concatenate([getattr(level, name)[mine] for level, mine in zip(levels, own, strict=True)])
        for name in names
    }
    coarsest = np.concatenate([np.full(mine.sum(), i, np.int64) for i, mine in enumerate(own)])
    order = np.argsort(column["ids"])
    ids, size, peak, parent, overlap = (column[name][order] for name in names)
    coarsest = coarsest[order]
    finest = coarsest.copy()
    for i in reversed(range(len(levels))):
        finest[np.searchsorted(ids, levels[i].ids[levels[i].shared])] = i
    assert (ids[1:] > ids[:-1]).all(), "an id names two clusters"

    at, known = find(old.ids, ids)
    if not len(old.ids):
        old = Clusters(*(np.zeros(1, np.int64) for _ in range(8)))  # something to look at; none is known
    same = known & (overlap == size) & (overlap == old.size[at])
    born = np.where(known, old.born[at], version)
    changed = np.where(same, old.changed[at], version)
    clusters = Clusters(ids, size, finest, coarsest, peak, parent, born, changed)
    final_still = (parent == 0) & (old.parent[at] == 0)  # its coarsest is the top, wherever that is
    equal = same & (finest == old.finest[at]) & (peak == old.peak[at]) & (parent == old.parent[at])
    return clusters, ~(equal & (final_still | (coarsest == old.coarsest[at])))


def _records(table: Clusters, rows: Bool) -> list[Cluster]:
    columns = (table.ids, table.size, table.finest, table.coarsest, table.peak, table.parent, table.born)
    picked = (column[rows].tolist() for column in (*columns, table.changed))
    return [Cluster(*fields) for fields in zip(*picked, strict=True)]


def _ended(names: Names, clusters: Clusters, paths: Int64, parts: _Parts, version: int) -> list[Cluster]:
    """Return the last records of ended clusters; `into`: who took their members, largest part first."""
    old_trees, old = names.trees, names.clusters
    gone = ~find(clusters.ids, old.ids)[1]
    records = _records(old, gone)
    if not records:
        return []
    old_top, top = old_trees.paths.shape[1] - 1, paths.shape[1] - 1
    into: dict[int, list[int]] = {}
    for level in range(old_top + 1):
        before = old_trees.paths[parts.before, level]
        place = np.searchsorted(old.ids, before)
        mine = gone[place] & (old.coarsest[place] == level)
        now = paths[parts.after[mine], top if level == old_top else min(level, top)]
        kinds, inverse = np.unique(now, return_inverse=True)
        pairs = _overlaps(before[mine], inverse, parts.count[mine], len(kinds))
        order = np.lexsort((kinds[pairs.new], -pairs.overlap, pairs.old))
        for o, n in zip(pairs.old[order].tolist(), kinds[pairs.new[order]].tolist(), strict=True):
            into.setdefault(o, []).append(n)
    return [replace(c, ended=version, into=tuple(into.get(c.id, ()))) for c in records]


def _changed_trees(old: Trees, new: Trees) -> dict[int, tuple[int, ...]]:
    """Return the handles whose distinct path has changed."""
    at, known = find(old.handles, new.handles)
    differs = np.ones(len(new.handles), np.bool_)
    if old.paths.shape[1] == new.paths.shape[1]:
        differs[known] = (old.paths[at[known]] != new.paths[known]).any(axis=1)
    rows = np.flatnonzero(differs)
    before, now = distinct(old.paths[at[rows[known[rows]]]]), distinct(new.paths[rows])
    width = max(before.shape[1], now.shape[1])
    before, now = (np.pad(paths, ((0, 0), (0, width - paths.shape[1]))) for paths in (before, now))
    differs = ~known[rows]
    differs[known[rows]] = (before != now[known[rows]]).any(axis=1)
    gone = old.handles[~find(new.handles, old.handles)[1]]
    changed: dict[int, tuple[int, ...]] = dict.fromkeys(gone.tolist(), ())
    for handle, path in zip(new.handles[rows[differs]].tolist(), now[differs].tolist(), strict=True):
        changed[handle] = tuple(i for i in path if i)
    return dict(sorted(changed.items()))


def _events(old: Clusters, final: _Level) -> list[LineageEvent]:
    """Return the events of final clusters whose members changed.

    Each new final id gives one `emerge`, each that is final no more one `vanish`. A cluster that holds the
    largest part of others gives a `merge`, one that the largest part of others came from a `split`; what was
    deleted or is new counts as a part too.
    """
    pairs = final.pairs
    was_final = old.parent == 0
    untouched = (pairs.overlap == old.size[pairs.old]) & (pairs.overlap == final.size[pairs.new])
    touched_old, touched_new = was_final.copy(), np.ones(len(final.ids), np.bool_)
    touched_old[pairs.old[untouched]] = False
    touched_new[pairs.new[untouched]] = False
    pairs = pairs.where(~untouched)

    rows_old, rows_new = np.flatnonzero(touched_old), np.flatnonzero(touched_new)
    before = dict(zip(old.ids[rows_old].tolist(), old.size[rows_old].tolist(), strict=True))
    now = dict(zip(final.ids[rows_new].tolist(), final.size[rows_new].tolist(), strict=True))
    old_ids, new_ids = old.ids[pairs.old], final.ids[pairs.new]
    into = _parts(old_ids, new_ids, pairs.overlap)
    out_of = _parts(new_ids, old_ids, pairs.overlap)
    merged = _largest_parts(into, before)
    split = _largest_parts(out_of, now)

    events = [
        LineageEvent("emerge", c, now[c], tuple(i for i, _ in out_of.get(c, ())))
        for c in now.keys() - before.keys()
    ]
    events += [LineageEvent("split", c, now.get(c, 0), into=parts) for c, parts in split.items()]
    events += [LineageEvent("merge", c, now[c], parts) for c, parts in merged.items()]
    for c in now.keys() & before.keys():
        if now[c].bit_length() != before[c].bit_length():
            events.append(LineageEvent("grow" if now[c] > before[c] else "shrink", c, now[c]))
    events += [
        LineageEvent("vanish", c, 0, into=tuple(i for i, _ in into.get(c, ())))
        for c in before.keys() - now.keys()
    ]
    rank = {name: i for i, name in enumerate(("emerge", "split", "merge", "grow", "shrink", "vanish"))}
    return sorted(events, key=lambda e: (rank[e.event], e.cluster))


def _parts(whole: Int64, part: Int64, overlap: Int64) -> dict[int, list[tuple[int, int]]]:
    """Return the (part, overlap) pairs of each whole, largest first; ties: its own id, then the lower."""
    parts: dict[int, list[tuple[int, int]]] = {}
    order = np.lexsort((part, part != whole, -overlap, whole))
    for w, p, n in zip(whole[order].tolist(), part[order].tolist(), overlap[order].tolist(), strict=True):
        parts.setdefault(w, []).append((p, n))
    return parts


def _largest_parts(
    parts: dict[int, list[tuple[int, int]]], size: dict[int, int]
) -> dict[int, tuple[int, ...]]:
    """Return which wholes have their largest part in another one: holder -> wholes, rising."""
    holders: dict[int, list[int]] = {}
    for whole, found in parts.items():
        holder, overlap = found[0]
        outside = size[whole] - sum(n for _, n in found)
        if holder != whole and overlap >= outside:
            holders.setdefault(holder, []).append(whole)
    return {holder: tuple(sorted(wholes)) for holder, wholes in holders.items()}
