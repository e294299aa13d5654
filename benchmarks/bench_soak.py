"""Churn for an hour at a steady number of items: do memory, disk and latency stay flat?

Each batch brings new items, gives others another vector and deletes as many as it brings. Sampled are the
memory that the process has allocated, the size of the store now and compacted, and how long batches and
questions take. A line is laid through each after a first part that is not counted; flat is what it changes
by less than a bound over the rest of the run, relative to its mean. `--minutes 5` gives a quick look.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mixture import PER_CLUSTER, SPREAD
from benchmarks.report import arguments, finish, print_table
from engine import Engine
from engine.config import Settings, load
from engine.types import Float32

BATCH = 256  # records: two in five new, as many deleted, the rest moved
NEW = 2 * BATCH // 5
LOAD = 10_000  # items a batch while the collection is filled: not measured
SAMPLES = 60  # over the run
COMPACTIONS = 12
WARM = 0.25  # of the run, not counted: the event log and the index's dead nodes grow to their bounds first
FLAT = {"memory_mb": 0.1, "compacted_mb": 0.1, "batch_p50_s": 0.15, "assign_p50_s": 0.15}


@dataclass(frozen=True, slots=True)
class Sample:
    """At `minute`, of what happened since the one before."""

    minute: float
    items: int
    version: int
    clusters: int
    memory_mb: float  # allocated by the process; LMDB's pages are files'
    disk_mb: float
    compacted_mb: float | None
    records_per_s: float
    batch_p50_s: float
    batch_p95_s: float
    batch_max_s: float
    assign_p50_s: float


@dataclass
class Churn:
    """The items there are, and the vectors that come."""

    items: int
    dim: int
    seed: int
    keys: list[str] = field(default_factory=list)
    made: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([self.seed, 1])
        self.centres = self.rng.standard_normal((max(1, self.items // PER_CLUSTER), self.dim), np.float32)

    def vectors(self, count: int) -> Float32:
        own = self.centres[self.rng.integers(0, len(self.centres), count)]
        noise = self.rng.standard_normal((count, self.dim), np.float32)
        return own + np.float32(SPREAD) * noise

    def fresh(self, count: int) -> list[str]:
        keys = [str(self.made + i) for i in range(count)]
        self.made += count
        return keys

    def fill(self, engine: Engine) -> None:
        for start in range(0, self.items, LOAD):
            keys = self.fresh(min(LOAD, self.items - start))
            engine.upsert(keys, self.vectors(len(keys)))
            self.keys += keys

    def batch(self, engine: Engine) -> float:
        """Seconds that a batch took: an upsert of new and known keys, and a delete."""
        moved = [self.keys[i] for i in self.rng.choice(len(self.keys), BATCH - 2 * NEW, replace=False)]
        new = self.fresh(NEW)
        vectors = self.vectors(BATCH - NEW)
        gone = [self._take_out() for _ in range(NEW)]
        moved = [key for key in moved if key not in set(gone)]
        begun = time.perf_counter()
        engine.upsert([*moved, *new], vectors[: len(moved) + len(new)])
        engine.delete(gone)
        seconds = time.perf_counter() - begun
        self.keys += new
        return seconds

    def _take_out(self) -> str:
        at = int(self.rng.integers(len(self.keys)))
        self.keys[at], self.keys[-1] = self.keys[-1], self.keys[at]
        return self.keys.pop()


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--index", choices=("hnsw", "exact"), default="hnsw")
    parser.add_argument("--rate", type=float, metavar="RECORDS", help="a second; default: as many as go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--png", type=Path, metavar="FILE", help="plot it")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = load(
            None,
            {
                "store.path": str(Path(folder) / "store"),
                "index.kind": chosen.index,
                "retention.events_max_age_s": chosen.minutes * 60 * WARM / 2,
            },
        )
        churn = Churn(chosen.items, chosen.dim, chosen.seed)
        samples = soak(settings, churn, chosen.minutes, BATCH / chosen.rate if chosen.rate else 0.0)
    drift = {name: drift_of(samples, name) for name in FLAT}
    _print(samples, drift)
    if chosen.png:
        plot(samples, chosen.png)
    finish(
        {
            "items": chosen.items,
            "dim": chosen.dim,
            "index": chosen.index,
            "minutes": chosen.minutes,
            "rate": chosen.rate,
            "drift": drift,
            "flat": {name: is_flat(drift[name], name) for name in FLAT},
            "samples": [asdict(sample) for sample in samples],
        },
        chosen.json,
    )
    return 0 if all(is_flat(drift[name], name) for name in FLAT) else 1


def soak(settings: Settings, churn: Churn, minutes: float, every_s: float) -> list[Sample]:
    """Fills a collection, then lets it churn, a batch every so often; samples at even distances."""
    samples: list[Sample] = []
    with ThreadPoolExecutor(1) as aside, Engine.open(settings, executor=aside) as engine:  # as the daemon
        churn.fill(engine)
        begun = time.perf_counter()
        for number in range(1, SAMPLES + 1):
            until = begun + 60 * minutes * number / SAMPLES
            compacts = number % (SAMPLES // COMPACTIONS) == 0
            samples.append(_sample(engine, churn, begun, until, every_s, compacts))
            print(f"\r{samples[-1].minute:.1f} of {minutes:g} minutes", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return samples


def _sample(
    engine: Engine, churn: Churn, begun: float, until: float, every_s: float, compacts: bool
) -> Sample:
    batches: list[float] = []
    questions: list[float] = []
    started = time.perf_counter()
    while not batches or time.perf_counter() < until:
        batches.append(churn.batch(engine))
        question = churn.vectors(1)
        asked = time.perf_counter()
        engine.assign(question)
        questions.append(time.perf_counter() - asked)
        time.sleep(max(0.0, started + len(batches) * every_s - time.perf_counter()))
    spent = time.perf_counter() - started
    labels = engine.labels()[1]
    p50, p95, most = np.quantile(batches, [0.5, 0.95, 1.0]).tolist()
    return Sample(
        minute=(time.perf_counter() - begun) / 60,
        items=len(engine),
        version=engine.version,
        clusters=len(np.unique(labels)),
        memory_mb=allocated_mb(),
        disk_mb=size_mb(engine.store.path),
        compacted_mb=compacted_mb(engine) if compacts else None,
        records_per_s=len(batches) * BATCH / spent,
        batch_p50_s=p50,
        batch_p95_s=p95,
        batch_max_s=most,
        assign_p50_s=float(np.median(questions)),
    )


def allocated_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(line for line in lines if line.startswith("RssAnon:")).split()[1]
    return int(kib) / 1024


def size_mb(folder: Path) -> float:
    return sum(512 * entry.stat().st_blocks for entry in os.scandir(folder)) / 2**20


def compacted_mb(engine: Engine) -> float:
    """What LMDB's file has left when free pages are given back."""
    with tempfile.TemporaryDirectory(dir=engine.store.path.parent) as folder:
        engine.store.environment.copy(Path(folder))
        return size_mb(Path(folder))


def drift_of(samples: Sequence[Sample], name: str) -> float:
    """What a straight line through the counted samples changes over them, relative to their mean."""
    minutes = samples[-1].minute
    points = [
        (sample.minute, value)
        for sample in samples
        if sample.minute > WARM * minutes and (value := getattr(sample, name)) is not None
    ]
    x, y = np.array(points).T
    slope = float(np.polyfit(x, y, 1)[0])
    return float(slope * (x[-1] - x[0]) / y.mean())


def is_flat(drift: float, name: str) -> bool:
    """Less is better, for all of them."""
    return bool(drift <= FLAT[name])


def plot(samples: Sequence[Sample], file: Path) -> None:
    """One panel each; needs matplotlib: `pip install shoal[bench]`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {
        "memory allocated (MB)": ["memory_mb"],
        "disk (MB)": ["disk_mb", "compacted_mb"],
        "a batch of 256 (s)": ["batch_p50_s", "batch_p95_s"],
        "assign, median (s)": ["assign_p50_s"],
        "records a second": ["records_per_s"],
        "clusters": ["clusters"],
    }
    figure, axes = pyplot.subplots(3, 2, figsize=(11, 9), sharex=True, layout="constrained")
    for axis, (title, names) in zip(axes.flat, panels.items(), strict=True):
        for name in names:
            points = [(s.minute, getattr(s, name)) for s in samples if getattr(s, name) is not None]
            axis.plot(*zip(*points, strict=True), label=name, marker="." if name == "compacted_mb" else None)
        axis.axvspan(0, WARM * samples[-1].minute, color="0.9", zorder=0)
        axis.set_title(title)
        axis.set_ylim(bottom=0)
        if len(names) > 1:
            axis.legend()
    for axis in axes[-1]:
        axis.set_xlabel("minutes")
    figure.suptitle(f"Churn at {samples[-1].items:,} items; the grey part is not counted")
    figure.savefig(file, dpi=110)


def _print(samples: Sequence[Sample], drift: dict[str, float]) -> None:
    counted = [sample for sample in samples if sample.minute > WARM * samples[-1].minute]
    rows: list[list[Any]] = []
    for name in FLAT:
        values = [value for sample in counted if (value := getattr(sample, name)) is not None]
        flat = "yes" if is_flat(drift[name], name) else "no"
        rows.append([name, float(values[0]), float(values[-1]), f"{drift[name]:+.1%}", flat])
    print_table(["", "first", "last", "drift", "flat"], rows)
    last = samples[-1]
    print(f"\n{last.items:,} items, {last.version:,} versions; {last.records_per_s:,.0f} records/s at last")


if __name__ == "__main__":
    sys.exit(main())
