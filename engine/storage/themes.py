"""Queries about themes: the final clusters of one version of a store, as a grouping joins them.

The grouping may be of an earlier version, and says which (`grouped`). A cluster that came since is a theme of
its own, one that ended is in none, and a theme is known by the smallest of its living clusters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import InputError, NotFound
from engine.numbering import find
from engine.storage.answers import (
    ItemDetail,
    Lookup,
    ThemeDetail,
    ThemeItem,
    ThemeLookup,
    ThemePage,
    ThemeRow,
)
from engine.storage.queries import MAX_PAGE, ORDERS, Snapshot, number_of, page_size, pair_of
from engine.types import Int64, Themes

SHOWN = 8  # the largest clusters of a theme that a row names


@dataclass(frozen=True, slots=True)
class _Living:
    """The living final clusters as columns, and their themes."""

    ids: Int64  # rising
    sizes: Int64
    keys: Int64  # the theme of each
    parents: Int64 | None  # its theme at the next coarser level; None: there is none


class Grouped:
    """The themes of a snapshot at the level `step` above the final clusters."""

    def __init__(self, snapshot: Snapshot, themes: Themes, step: int) -> None:
        self._snapshot, self._themes, self._step = snapshot, themes, step

    def item(self, found: ItemDetail) -> ThemeItem:
        """Return an item, its `cluster` the theme that it is in."""
        return {**found, "cluster": self._of(found["cluster"]), "grouped": self._themes.version}

    def lookup(self, found: Lookup) -> ThemeLookup:
        """Return the items of a lookup, their `cluster` the themes that they are in."""
        clusters = {row["cluster"] for row in found["items"] if row}
        of = {cluster: self._of(cluster) for cluster in clusters}
        rows = [{**row, "cluster": of[row["cluster"]]} if row else None for row in found["items"]]
        return {**found, "items": rows, "grouped": self._themes.version}  # type: ignore[typeddict-item]

    def page(self, order: str, cursor: str | None, limit: int) -> ThemePage:
        """Return a page of themes: the largest first, those with the newest names, or by rising name."""
        if order not in ORDERS:
            raise InputError(f"themes are ordered by 'size' or by 'id', or 'newest' first, not by {order!r}")
        living = self._living()
        names, place = np.unique(living.keys, return_inverse=True)
        totals = np.bincount(place, weights=living.sizes, minlength=len(names)).astype(np.int64)
        at = np.lexsort((names, -totals)) if order == "size" else np.argsort(names)
        if order == "newest":
            at = at[::-1]
        if cursor:
            at = at[_first(order, cursor, names[at], totals[at]) :]
        limit = page_size(limit)
        page, following = at[:limit].tolist(), at[limit : limit + 1].tolist()
        after = None
        for row in following:
            after = f"{totals[row]}-{names[row]}" if order == "size" else str(names[row])
        return {
            **self._snapshot.stamp,
            "clusters": [self._row(int(names[row]), living) for row in page],
            "cursor": after,
            "grouped": self._themes.version,
        }

    def theme(self, cluster: int) -> ThemeDetail:
        """Return the theme that a living final cluster is in. Raises NotFound."""
        living = self._living()
        own = living.keys[living.ids == cluster]
        if not len(own):
            raise NotFound(f"there is no final cluster {cluster}, or it has ended")
        inside = living.keys == own[0]
        finer, place = np.unique(self._keys(living.ids, self._step - 1)[inside], return_inverse=True)
        totals = np.bincount(place, weights=living.sizes[inside])
        order = np.lexsort((finer, -totals))[:MAX_PAGE]
        return {
            **self._snapshot.stamp,
            **self._row(int(own[0]), living),
            "children": finer[order].tolist(),
            "grouped": self._themes.version,
        }

    def _row(self, name: int, living: _Living) -> ThemeRow:
        inside = np.flatnonzero(living.keys == name)
        ids, sizes = living.ids[inside], living.sizes[inside]
        largest = ids[np.lexsort((ids, -sizes))][:SHOWN].tolist()
        return {
            "cluster": name,
            "size": int(sizes.sum()),
            "clusters": len(inside),
            "largest": largest,
            "peak": self._snapshot.peak_of(largest[0]),
            "parent": None if living.parents is None else int(living.parents[inside[0]]),
        }

    def _living(self) -> _Living:
        pairs = np.array(list(self._snapshot.tables.sizes.pairs()), np.int64).reshape(-1, 2)
        order = np.argsort(pairs[:, 1])
        sizes, ids = pairs[order].T
        coarsest = self._step == len(self._themes.keys)
        parents = None if coarsest else self._keys(ids, self._step + 1)
        return _Living(ids, sizes, self._keys(ids, self._step), parents)

    def _keys(self, ids: Int64, step: int) -> Int64:
        """Return the theme of each of the living final clusters; at step 0 they are their own."""
        if step == 0:
            return ids
        place, there = find(self._themes.clusters, ids)
        keys = ids.copy()
        keys[there] = self._themes.keys[step - 1][place[there]]
        # `ids` rise, so the first of a theme is its smallest living one.
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        living: Int64 = ids[first][inverse]
        return living

    def _of(self, cluster: int) -> int:
        """Return the theme of one living final cluster."""
        known, keys = self._themes.clusters, self._themes.keys[self._step - 1]
        at = np.searchsorted(known, cluster)
        if at == len(known) or known[at] != cluster:
            return cluster
        return next(self._alive(known[keys == keys[at]].tolist()), cluster)

    def _alive(self, clusters: Iterable[int]) -> Iterator[int]:
        for number in clusters:
            found = self._snapshot.tables.clusters.get(number)
            if found is not None and not found.ended and not found.parent:
                yield number


def received(answer: Mapping[str, Any]) -> Themes:
    """Return the grouping that the writer's answer has."""
    keys = answer["keys"]
    grouped = np.array(keys, np.int64).reshape(len(keys), len(answer["clusters"]))
    return Themes(answer["version"], np.array(answer["clusters"], np.int64), grouped)


def _first(order: str, cursor: str, names: Int64, totals: Int64) -> int:
    """Return where a page begins."""
    if order == "size":
        size, name = pair_of(cursor)
        later = (totals < size) | ((totals == size) & (names >= name))
    else:
        name = number_of(cursor)
        later = names <= name if order == "newest" else names >= name
    return int(np.argmax(later)) if later.any() else len(names)
