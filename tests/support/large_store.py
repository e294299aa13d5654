"""A store of many items without clustering them: what the page and the API meet in a large collection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.storage.store import Store
from engine.types import Assignment, Change, Cluster, Epoch, Int64, Items, LineageEvent, Lists, Shift, Vectors
from engine.vectors import quantize

VERSION_ITEMS = 10_000
WIDTH = 4
START_MS = 1_700_000_000_000


def fill(path: Path, items: int, dim: int = 32, seed: int = 7, prefix: str = "item:") -> None:
    """Clusters of all sizes, the largest of a hundredth of the items, each born whole in one version."""
    with Store.open(path, {"collection": "crowd", "dim": dim}) as store:
        for change in _changes(items, dim, np.random.default_rng(seed)):
            keys = [f"{prefix}{item}".encode() for item in change.upserts.ids.tolist()]
            store.commit(replace(change, upserts=replace(change.upserts, keys=keys)))


def _changes(items: int, dim: int, rng: np.random.Generator) -> Iterator[Change]:
    done, cluster, version = 0, 1, 0
    while done < items:
        version += 1
        sizes: list[int] = []
        while sum(sizes) < min(VERSION_ITEMS, items - done):
            left = min(VERSION_ITEMS, items - done) - sum(sizes)
            sizes.append(int(min(left, items // 100, rng.pareto(1.0) + 1)))
        ids = np.arange(done + 1, done + 1 + sum(sizes))
        yield _change(version, ids, np.array(sizes), cluster, dim, rng)
        done, cluster = done + len(ids), cluster + len(sizes)


def _change(version: int, ids: Int64, sizes: Int64, first: int, dim: int, rng: np.random.Generator) -> Change:
    n, names = len(ids), np.arange(first, first + len(sizes))
    of = np.repeat(names, sizes)
    centres = rng.normal(size=(len(sizes), dim)).repeat(sizes, axis=0)
    vectors, _ = quantize(centres + 0.3 * rng.normal(size=(n, dim)))
    keys = [b"item:%d" % item for item in ids.tolist()]
    payloads = [b'{"title":"Item %d","text":"One of many."}' % item for item in ids.tolist()]
    time_ms = START_MS + 1000 * version
    peaks = ids[np.cumsum(sizes) - sizes]
    counters = {
        "next_item": int(ids[-1]) + 1,
        "next_node": int(ids[-1]) + 1,
        "next_tree": int(names[-1]) + 1,
        "levels": 2,
    }
    return Change(
        version=version,
        time_ms=time_ms,
        epoch=Epoch(0.0, 0.1, 1024),
        counters={**counters, "next_cluster": counters["next_tree"]},
        positions={},
        upserts=Items(ids, keys, ids, np.full(n, time_ms), payloads, np.full(n, version)),
        removed=[],
        copies=Shift(ids, np.zeros(n, np.int64), ids),  # each item is a node of its own
        vectors=Vectors(ids, vectors),
        lists=Lists(ids, np.full((n, WIDTH), -1, np.int64), np.zeros((n, WIDTH), np.int32)),
        places=Shift(ids, np.zeros(n, np.int64), of),
        trees={name: (name,) for name in names.tolist()},
        clusters=[
            Cluster(name, size, 0, 1, peak, 0, version, version)
            for name, size, peak in zip(names.tolist(), sizes.tolist(), peaks.tolist(), strict=True)
        ],
        events=[
            *(LineageEvent("emerge", *row) for row in zip(names.tolist(), sizes.tolist(), strict=True)),
            *(Assignment(key, name, 0, (name,)) for key, name in zip(keys, of.tolist(), strict=True)),
        ],
    )
