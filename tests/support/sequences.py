"""Random sequences of batches, each drawn from one seed, and what a hierarchy holds, by key.

A sequence fixes everything from its seed: dimension, k, tau, levels, list widths, where vectors come
from, and which items come, move, come again unchanged and go in each batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from engine.clustering.calibration import Calibration
from engine.clustering.hierarchy import Hierarchy
from engine.clustering.level import Level, Shape
from engine.clustering.pipeline import step
from engine.clustering.state import State
from engine.index.base import ExactIndex
from engine.types import Applied, Batch, Change, Epoch, Int16, UInt64
from engine.vectors import SCALE, quantize

KINDS = (
    "mixed", "trickle", "tides", "copies", "twins", "nudges", "lattice", "chain", "one by one", "drift",
    "herds",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tide:
    """One batch in numbers: items to add, to move, to send again as they are; share to delete."""

    new: int
    moved: int = 0
    same: int = 0
    gone: float = 0.0


class World:
    """Items that come, move and go. `live` is what a rebuild starts from."""

    def __init__(self, seed: int, kind: str, scale: int, model: Any) -> None:
        self.seed, self.kind, self.scale = seed, kind, scale
        self.rng = rng = np.random.default_rng(seed)
        dim = int(rng.choice([2, 3, 4])) if kind in ("lattice", "chain") else int(rng.choice([2, 5, 16, 40]))
        width = model.k + int(rng.integers(0, 9))
        self.shape = Shape(
            dim=dim,
            k=model.k,
            tau=float(rng.choice([0.05, 0.3, 0.5, 0.8])),
            max_levels=int(rng.choice([1, 2, 3, 4, 6])),
            base_width=width,
            peak_width=width + int(rng.integers(0, 17)),
            base_tau=(None, 0.2, 0.7)[seed % 3],
        )
        self.live: dict[bytes, Int16] = {}
        self.once: dict[bytes, Int16] = {}  # what a herd that is gone was; they may come back
        self.keys = 0
        self.noise = float(rng.choice([0.05, 0.3, 0.8]))
        self.centres = rng.normal(size=(max(2, scale // 15), dim))
        self.pool = self.grid(self.mixture(max(2, scale // (4 if kind == "twins" else 30))))

    def __repr__(self) -> str:
        return f"seed={self.seed} kind={self.kind!r} scale={self.scale} {self.shape}"

    def batches(self) -> Iterator[tuple[Batch, dict[str, int]]]:
        """The sequence, and with each batch what `Applied` has to say of it."""
        if self.kind == "herds":
            for _ in range(16):
                yield self.herd()
        else:
            for tide in self.tides():
                yield self.batch(tide)

    def tides(self) -> Iterator[Tide]:
        rng, n = self.rng, self.scale
        if self.kind == "trickle":  # through n <= k and back, item by item
            yield Tide(0)
            for _ in range(2):
                yield from (Tide(1) for _ in range(14))
                yield Tide(0, moved=3)
                yield from (Tide(0, gone=0.01) for _ in range(14))  # rounded up to one item
        elif self.kind == "tides":  # down to nothing and up again
            for gone in (0.5, 1.0, 0.97, 1.0):
                yield Tide(n // 2)
                yield Tide(n // 4, moved=n // 10)
                yield Tide(int(rng.integers(0, 4)), gone=gone)
            yield Tide(n)
        elif self.kind == "large":  # ends with more than `scale` items
            yield Tide(n)
            for _ in range(8):
                yield Tide(n // 12, moved=n // 25, same=n // 50, gone=float(rng.choice([0.0, 0.02, 0.06])))
        elif self.kind == "drift":  # new epochs while most items stay as they are, up and down
            yield from (Tide(3) for _ in range(n // 4))
            yield from (Tide(0, gone=0.15) for _ in range(n // 10))
        elif self.kind == "one by one":
            yield Tide(n // 2)
            for _ in range(25):
                yield [Tide(1), Tide(0, moved=1), Tide(0, gone=0.001), Tide(1, gone=0.01)][rng.integers(4)]
        else:
            for _ in range(10):
                some = rng.integers(0, [n // 3 + 1, n // 8 + 1, n // 8 + 1])
                yield Tide(*some.tolist(), gone=float(rng.choice([0.0, 0.02, 0.1, 0.6])))

    def batch(self, tide: Tide) -> tuple[Batch, dict[str, int]]:
        rng = self.rng
        old = [list(self.live)[i] for i in rng.permutation(len(self.live))]
        gone = int(np.ceil(tide.gone * len(old)))
        deleted, old = old[:gone], old[gone:]
        moved, old = old[: tide.moved], old[tide.moved :]
        same = old[: tide.same]
        given = [*zip(self.fresh(tide.new), self.vectors(tide.new), strict=True)]
        given += [(key, self.elsewhere(self.live[key])) for key in moved]
        given += [(key, self.live[key]) for key in same]
        return self.told(given, deleted)

    def herd(self) -> tuple[Batch, dict[str, int]]:
        """Copies by the hundred come, go, and move together or all but one, also onto another herd."""
        rng = self.rng
        herds: dict[bytes, list[bytes]] = {}
        for key, vector in self.live.items():
            herds.setdefault(vector.tobytes(), []).append(key)
        names = [list(herds)[i] for i in rng.permutation(len(herds))]
        given: dict[bytes, Int16] = {}
        deleted: list[bytes] = []
        for name in names[: int(rng.integers(0, 5))]:
            keys, own = herds[name], np.frombuffer(name, np.int16)
            some = keys[: rng.choice([len(keys), len(keys) - 1, len(keys) // 2], p=[0.4, 0.3, 0.3])]
            match rng.integers(4):
                case 0:
                    deleted += some
                case 1:  # into one that is there
                    given |= dict.fromkeys(some, np.frombuffer(names[rng.integers(len(names))], np.int16))
                case 2:  # to one that is new, or was there once
                    given |= dict.fromkeys(some, self.elsewhere(own))
                case 3:  # apart
                    given |= {key: self.elsewhere(own) for key in some[:20]}
        for _ in range(int(rng.integers(1, 4))):
            count = int(rng.choice([1, 3, 100, self.scale]))
            vector = self.pool[rng.integers(len(self.pool))] if rng.random() < 0.5 else self.vectors(1)[0]
            if len(herds) and rng.random() < 0.3:
                vector = np.frombuffer(names[0], np.int16)
            given |= dict.fromkeys(self.fresh(count), vector)
        returning = [key for key in self.once if key not in self.live][: int(rng.integers(0, 60))]
        given |= {key: self.once[key] for key in returning}
        self.once |= {key: self.live[key] for key in deleted}
        return self.told([*given.items()], deleted)

    def fresh(self, count: int) -> list[bytes]:
        """Keys that were never there."""
        self.keys += count
        return [b"%x:%d" % (self.seed, self.keys - 1 - i) for i in range(count)]

    def told(self, given: list[tuple[bytes, Int16]], deleted: list[bytes]) -> tuple[Batch, dict[str, int]]:
        """Upserts and deletes as a batch; `live` follows."""
        rng = self.rng
        new = sum(key not in self.live for key, _ in given)
        really = int(sum((self.live[key] != vector).any() for key, vector in given if key in self.live))
        given = [given[i] for i in rng.permutation(len(given))]
        for key in deleted:
            del self.live[key]
        self.live.update(given)
        unknown = [b"never %d" % i for i in range(int(rng.integers(0, 2)))]
        expected = {
            "inserted": new,
            "moved": really,
            "unchanged": len(given) - new - really,
            "deleted": len(deleted),
            "unknown": len(unknown),
        }
        return batch_of(given, self.shape.dim, [*deleted, *unknown]), expected

    def vectors(self, count: int) -> Int16:
        """Grid vectors, (count, dim) int16, of the world's kind."""
        rng, dim = self.rng, self.shape.dim
        if self.kind == "copies":  # distinct items with exactly the same vector, by the dozen
            some = self.pool[rng.integers(0, len(self.pool), count)]
            return np.where(rng.random((count, 1)) < 0.8, some, self.grid(self.mixture(count)))
        if self.kind == "twins":  # a grid step apart: supernodes that grow and keep their rounded mean
            some = self.pool[rng.integers(0, len(self.pool), count)]
            return np.clip(some + rng.integers(-1, 2, some.shape), -SCALE, SCALE).astype(np.int16)
        if self.kind == "lattice":  # few distinct dots: ties everywhere
            return self.grid(rng.integers(-2, 3, (count, dim)) + 0.01)
        if self.kind == "chain":  # an even curve: deep hierarchies
            angle = rng.random(count) * 2 * np.pi
            curve = [np.cos(angle), np.sin(angle), np.cos(3 * angle), np.sin(5 * angle)]
            return self.grid(np.stack(curve[:dim], axis=1))
        return self.grid(self.mixture(count))

    def elsewhere(self, vector: Int16) -> Int16:
        """Where an item moves to: a grid step aside, or anywhere."""
        rng = self.rng
        if rng.random() < (0.9 if self.kind == "nudges" else 0.2):
            near = vector.copy()
            component = rng.integers(len(near))
            near[component] += -1 if near[component] > 0 else 1  # inward: it stays of unit length
            return near
        return self.vectors(1)[0]

    def mixture(self, count: int) -> Any:
        rng = self.rng
        known = len(self.centres)
        if self.kind == "drift":  # the region that items come from grows
            known = min(known, 1 + self.keys // 12)
        centres = self.centres[rng.integers(0, known, count)]
        return centres + self.noise * rng.normal(size=centres.shape)

    @staticmethod
    def grid(embeddings: Any) -> Int16:
        grid, bad = quantize(embeddings)
        assert not bad
        return grid

    def shuffled(self, parts: int = 1) -> list[Batch]:
        """The survivors in a random order, in so many batches."""
        items = list(self.live.items())
        items = [items[i] for i in self.rng.permutation(len(items))]
        cuts = np.sort(self.rng.integers(0, len(items) + 1, parts - 1)).tolist()
        ends = zip([0, *cuts], [*cuts, len(items)], strict=True)
        return [batch_of(items[start:stop], self.shape.dim) for start, stop in ends]


def hash_names(names: Sequence[bytes]) -> UInt64:
    """A hash of each name, (n,) uint64: for tests whose points need not have their vectors' hashes."""
    return np.fromiter((xxhash.xxh3_64_intdigest(name) for name in names), np.uint64, len(names))


def batch_of(given: Sequence[tuple[bytes, Int16]], dim: int, deletes: Sequence[bytes] = ()) -> Batch:
    keys = [key for key, _ in given]
    grid = np.array([vector for _, vector in given], np.int16).reshape(-1, dim)
    assert np.abs(grid).max(initial=0) <= SCALE
    return Batch(keys, grid, np.arange(len(keys)), [b""] * len(keys), deletes)


class Pinned(Calibration):
    """A calibration whose epoch does not move."""

    def advance(self) -> bool:
        return False


def empty_state(world: World, model: Any, epoch: Epoch | None = None) -> State:
    """A state without items; at a fixed epoch where one is given."""
    calibration = (Pinned if epoch else Calibration)(world.shape.dim, model.default_epoch)
    calibration.epoch = epoch or calibration.epoch
    return State(Hierarchy(world.shape, model, ExactIndex), calibration)


def take(state: State, batch: Batch) -> tuple[Change, Applied]:
    return step(state, batch, 0)


def rebuilt(world: World, model: Any, epoch: Epoch, parts: int = 1) -> State:
    """From scratch: the survivors in shuffled order, at the given epoch."""
    state = empty_state(world, model, epoch)
    for batch in world.shuffled(parts):
        take(state, batch)
    return state


Content = dict[str, np.ndarray]  # columns of one level, ordered by the node's hash


def content(level: Level) -> Content:
    """All that a level holds, free of row numbers: rows in lists and links become hashes."""
    nodes, lists, k = level.nodes, level.lists, level.shape.k
    rows = nodes.all_rows()
    rows = rows[np.argsort(nodes.hashes[rows])]
    degree = lists.degrees[rows]
    used = np.arange(k) < degree[:, None]
    parent = level.parent[rows]
    return {
        "hash": nodes.hashes[rows],
        "vector": nodes.vectors[rows],
        "neighbors": np.where(used, nodes.hashes[lists.neighbors[rows, :k]], 0),
        "dots": np.where(used, lists.dots[rows, :k], 0),
        "degree": degree,
        "hidden": level.hidden[rows].view(np.int32),
        "linkage": np.where(used, level.linkage[rows].view(np.int32), 0),
        "density": level.density[rows].view(np.int32),
        "parent": np.where(parent >= 0, nodes.hashes[parent], 0),
        "root": nodes.hashes[level.root[rows]],
        "size": level.sizes[rows],
        "sum": level.sums[rows],
        "mean": level.means[rows],
    }


def partition(hierarchy: Hierarchy) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the items (n,), rising, and of their trees' peaks by level, finest first: (n, levels)."""
    base = hierarchy.base
    items = at = base.nodes.all_rows()
    columns = []
    for lower, level in zip([None, *hierarchy.levels], hierarchy.levels, strict=False):
        at = level.root[at if lower is None else lower.above[at]]
        columns.append(level.nodes.hashes[at])
    order = np.argsort(base.nodes.hashes[items])
    return base.nodes.hashes[items][order], np.stack(columns, axis=1)[order]


def differences(live: Hierarchy, other: Hierarchy) -> list[str]:
    """Where two hierarchies differ in content: empty if they are equal to the bit."""
    if len(live.levels) != len(other.levels):
        return [f"levels: {len(live.levels)} and {len(other.levels)}"]
    found = []
    for at, (mine, theirs) in enumerate(zip(live.levels, other.levels, strict=True)):
        a, b = content(mine), content(theirs)
        if not np.array_equal(a["hash"], b["hash"]):
            return [*found, f"level {at}: {len(a['hash'])} and {len(b['hash'])} nodes, or others"]
        for name in a:
            if not np.array_equal(a[name], b[name]):
                rows = np.flatnonzero((a[name] != b[name]).reshape(len(a[name]), -1).any(axis=1))
                found.append(f"level {at}: {name} of {len(rows)} nodes, {a['hash'][rows[:3]]}")
    for mine, theirs in zip(partition(live), partition(other), strict=True):
        if not np.array_equal(mine, theirs):
            found.append("partition")
    return found
