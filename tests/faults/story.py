"""What a seed says: batches, the clock, how the sink behaves, and which faults strike each life.

A life is a process that opens the store, takes batches and publishes until it ends, one way or another.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.config import Settings
from engine.types import Batch, DeadLetter, Int16
from tests.faults import disk
from tests.support.sequences import KINDS, World

SOURCE = "simulation"
OPERATION = "operation"  # a fault at a file operation; else at the point of this name
POINTS = (
    "before step",
    "after step",
    "inside commit",
    "after commit",
    "before snapshot",
    "after snapshot",
    "before publishing",
    "inside publishing",
    "after publishing",
)
BY_AGE, BY_SIZE = "by age", "by size"  # how the log forgets, much sooner than it would
LOG_BYTES = 3000
STOP = "stop"  # closes the store, as a process that is asked to end


@dataclass(frozen=True, slots=True)
class Fault:
    """It strikes at the `nth` operation or point of its kind in a life. `how`: see `disk`."""

    how: str
    where: str
    nth: int
    seed: int


@dataclass(frozen=True, slots=True)
class Story:
    """All that one seed decides; `batches[v]`, or a rebuild where it is None, makes version v + 1."""

    seed: int
    world: World
    model: Any
    index: str
    batches: list[Batch | None]
    positions: list[bytes | None]  # by version
    lives: list[dict[bytes, Int16]]  # by version: the items there are, and their vectors
    times_ms: list[int]  # by version, when the next batch comes
    compactions: set[int]  # after the batches of these numbers
    forgets: str  # BY_AGE, BY_SIZE, or not at all

    @property
    def exact(self) -> bool:
        return self.index == "exact"

    def settings(self, path: Path) -> Settings:
        shape = self.world.shape
        return Settings.model_validate(
            {
                "collection": {"name": "simulation", "dim": shape.dim},
                "store": {"path": path},
                "index": {"kind": self.index, "ef": 50, "ef_construction": 50},
                "model": {"tau": shape.tau, "base_tau": shape.base_tau, "max_levels": shape.max_levels},
                "retention": {"events_max_age_s": 0.001 if self.forgets == BY_AGE else 1e9},
                "limits": {
                    "slack": shape.base_width - shape.k,
                    "map_size_bytes": 2**21 if self.seed % 3 == 0 else 2**26,  # 2 MB have to grow
                    "free_disk_min_bytes": 0,
                    "snapshot_items": 8,
                    "publish_events": 7 if self.seed % 2 else 2000,
                },
            }
        )

    def __str__(self) -> str:
        return f"{self.world!r} index={self.index} forgets={self.forgets!r}"


def tell(seed: int, scale: tuple[int, int] = (15, 60), most_batches: int = 14) -> Story:
    """The story of a seed. `scale`: about how many items there are, at least and at most."""
    rng = np.random.default_rng([seed, 3])
    index = "hnsw" if seed % 5 == 4 else "exact"
    model = _model(int(rng.choice([3, 5])))
    world = World(seed, str(rng.choice(KINDS)), int(rng.integers(*scale)), model)
    batches: list[Batch | None] = []
    positions: list[bytes | None] = [None]
    lives, times = [dict(world.live)], [1_700_000_000_000]
    rebuilt_at = int(rng.integers(2, most_batches)) if rng.random() < 0.3 else -1
    for batch, _ in world.batches():
        times.append(times[-1] + int(rng.choice([-1000, 0, 1, 250, 60_000])))  # clocks are set back, too
        if len(batches) == rebuilt_at:
            batches.append(None)
            positions.append(positions[-1])
            lives.append(lives[-1])
            times.append(times[-1])
        batches.append(dressed := _dressed(batch, len(batches), rng))
        positions.append(dressed.positions[SOURCE])
        lives.append(dict(world.live))
        if len(batches) >= most_batches:
            break
    compactions = {at for at in range(len(batches)) if rng.random() < 0.06}
    forgets = {1: BY_AGE, 3: BY_SIZE}.get(seed % 4, "")
    return Story(seed, world, model, index, batches, positions, lives, times, compactions, forgets)


def _dressed(batch: Batch, at: int, rng: np.random.Generator) -> Batch:
    """With a position, some payloads, and some records that could not be used."""
    rejected = [
        DeadLetter("not a number", f"{SOURCE} at {at}", b"bad", bytes(rng.bytes(9)), [("n", b"%d" % n)])
        for n in range(rng.integers(0, 3))
    ]
    payloads = [b'{"at":%d}' % at if rng.random() < 0.3 else b"" for _ in batch.keys]
    positions = {SOURCE: b"%d" % (at + 1)}
    return Batch(batch.keys, batch.vectors, batch.times, payloads, batch.deletes, positions, rejected)


@functools.cache
def _model(k: int) -> Any:
    from tests.support.random_models import random_model

    return random_model(7, k)


def draw_faults(story: Story, operations: int, points: Mapping[str, int]) -> list[Fault]:
    """One for each life but the last. `operations`, `points`: how many the undisturbed life had."""
    rng = np.random.default_rng([story.seed, 4])
    lives = int(rng.integers(2, 7))
    return [_draw(rng, lives, operations, points) for _ in range(lives)]


def _draw(rng: np.random.Generator, lives: int, operations: int, points: Mapping[str, int]) -> Fault:
    """Early in a life as a rule, so that later ones have something left to do."""
    how = str(rng.choice([disk.KILL, disk.POWER, disk.POWER, *disk.FAILING, STOP]))
    seed = int(rng.integers(1 << 62))
    if how == STOP or (how in disk.FATAL and rng.random() < 0.4):
        there = ["after commit"] if how == STOP else [point for point in POINTS if points.get(point)]
        where = str(rng.choice(there))
        most = points[where]
    elif rng.random() < 0.15:
        where, most = OPERATION, 25  # these make the store
    else:
        where, most = OPERATION, max(1, 2 * operations // lives)
    return Fault(how, where, int(rng.integers(1, most + 1)), seed)
