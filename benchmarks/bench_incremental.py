"""What it costs to absorb 1,000 new items in one batch, against rebuilding everything.

Rebuilding is the same code with the same index, fed with all items at once (`engine.rebuild`, from
the vectors in the store); absorbing is one `upsert` of 1,000 items into the same store, measured
before it. Medians of several batches.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.mixture import mixture
from benchmarks.report import arguments, finish, print_table
from engine import Engine
from engine.collection.rebuild import rebuild_store
from engine.config import load

BATCH = 1000
LOAD = 20_000  # items a batch while the collection is filled: not measured


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 50_000, 200_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    runs = []
    for items in chosen.items:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measure(Path(folder), items, chosen.dim, chosen.repeat, chosen.seed))
        _print(runs)
    finish({"runs": runs, "ratio": runs[-1]["ratio"]}, chosen.json)


def measure(folder: Path, items: int, dim: int, repeat: int, seed: int) -> dict[str, Any]:
    """The last `repeat` batches of the collection are the ones measured."""
    settings = load(None, {"store.path": str(folder / "store"), "limits.snapshot_items": 10**9})
    rows = mixture(items + BATCH, dim, seed)
    filled = items - (repeat - 1) * BATCH
    seconds, stages = [], {}
    with Engine.open(settings) as engine:
        for start in range(0, filled, LOAD):
            stop = min(filled, start + LOAD)
            engine.upsert([str(row) for row in range(start, stop)], rows[start:stop])
        for start in range(filled, items + BATCH, BATCH):
            begun = time.perf_counter()
            applied = engine.upsert(
                [str(row) for row in range(start, start + BATCH)], rows[start : start + BATCH]
            )
            seconds.append(time.perf_counter() - begun)
            stages = applied.stats["seconds"]
    begun = time.perf_counter()
    rebuild_store(settings)
    rebuilding = time.perf_counter() - begun
    absorbing = statistics.median(seconds)
    return {
        "items": items,
        "dim": dim,
        "absorb_s": absorbing,
        "absorb_runs_s": seconds,
        "absorb_stages_s": stages,
        "rebuild_s": rebuilding,
        "ratio": rebuilding / absorbing,
    }


def _print(runs: list[dict[str, Any]]) -> None:
    print_table(
        ["items", "absorb 1,000 (s)", "rebuild (s)", "ratio"],
        [[f"{run['items']:,}", run["absorb_s"], run["rebuild_s"], run["ratio"]] for run in runs],
    )


if __name__ == "__main__":
    main()
