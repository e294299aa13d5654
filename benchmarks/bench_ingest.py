"""The rate of the whole step, LMDB included, against bare hnswlib on the same vectors in the same run.

Bare: insert a batch, then one search of k = 10 for each of its items; same M, ef_construction, ef,
batches and threads. Engine and hnswlib take turns batch by batch, so that both see the same machine.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from typing import Any

import hnswlib
import numpy as np

from benchmarks.mixture import mixture
from benchmarks.report import arguments, finish, print_table
from engine import Engine
from engine.config import load

THREADS = 2


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    rows = mixture(chosen.items, chosen.dim, chosen.seed)
    with tempfile.TemporaryDirectory() as folder:
        _warm_up(f"{folder}/warm", chosen.dim)
        figures = measure(f"{folder}/store", rows, chosen.batch)
    _print(figures)
    finish(figures, chosen.json)


def measure(store: str, rows: Any, batch: int) -> dict[str, Any]:
    settings = load(None, {"store.path": store})
    index = settings.index
    bare = hnswlib.Index(space="ip", dim=rows.shape[1])
    bare.init_index(len(rows), M=index.M, ef_construction=index.ef_construction)
    bare.set_ef(index.ef)
    stages: Counter[str] = Counter()
    linked: Counter[int] = Counter()
    embedded: Counter[int] = Counter()
    bare_s = engine_s = 0.0
    with Engine.open(settings) as engine:
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            keys = [f"{row}" for row in range(start, start + len(part))]
            before = time.perf_counter()
            applied = engine.upsert(keys, part)
            between = time.perf_counter()
            unit = part / np.linalg.norm(part, axis=1, keepdims=True)
            bare.add_items(unit, np.arange(start, start + len(part)), num_threads=THREADS)
            bare.knn_query(unit, k=min(10, start + len(part)), num_threads=THREADS)
            bare_s += time.perf_counter() - between
            engine_s += between - before
            stages.update(applied.stats["seconds"])
            linked.update({level: work.linked for level, work in enumerate(applied.stats["work"])})
            embedded.update({level: work.embedded for level, work in enumerate(applied.stats["work"])})
        items = len(engine)
        return {
            "items": items,
            "dim": rows.shape[1],
            "batch": batch,
            "M": index.M,
            "ef_construction": index.ef_construction,
            "ef": index.ef,
            "seconds": engine_s,
            "items_per_s": items / engine_s,
            "bare_items_per_s": items / bare_s,
            "ratio": bare_s / engine_s,
            "stage_seconds": dict(stages),
            "bytes_per_item": engine.store.bytes_written / items,
            "edges_per_item": {level: count / items for level, count in linked.items()},
            "embedded_per_item": {level: count / items for level, count in embedded.items()},
        }


def _warm_up(store: str, dim: int) -> None:
    """Compile the kernels outside the measurement."""
    with Engine.open(load(None, {"store.path": store})) as engine:
        for seed in (1, 2):
            engine.upsert([f"{seed} {row}" for row in range(200)], mixture(200, dim, seed))


def _print(figures: dict[str, Any]) -> None:
    total = figures["seconds"]
    stages = figures["stage_seconds"]
    print_table(
        ["stage", "seconds", "share", "us/item"],
        [[s, t, t / total, 1e6 * t / figures["items"]] for s, t in stages.items()],
    )
    print()
    print_table(
        ["level", "edges linked/item", "nodes embedded/item"],
        [[str(level), edges, figures["embedded_per_item"][level]]
         for level, edges in figures["edges_per_item"].items()],
    )  # fmt: skip
    print(
        f"\n{figures['items']:,} x {figures['dim']} in batches of {figures['batch']}, M {figures['M']}, "
        f"ef_construction {figures['ef_construction']}, ef {figures['ef']}\n"
        f"whole step {figures['items_per_s']:,.0f} items/s, bare hnswlib {figures['bare_items_per_s']:,.0f}: "
        f"ratio {figures['ratio']:.3f}; {figures['bytes_per_item']:,.0f} bytes written per item"
    )


if __name__ == "__main__":
    main()
