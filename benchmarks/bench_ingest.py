"""The rate of the whole step, LMDB included, against bare hnswlib on the same vectors in the same run.

Bare: insert a batch, then one search of k = 10 for each of its items; same M, ef_construction, ef,
batches and threads. Engine and hnswlib take turns batch by batch, so that both see the same machine. With
--adapter a second engine takes its turn, which maps every embedding with a random linear adapter first; with
--model another model than the shipped one runs, a lander for instance.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np

from benchmarks.mixture import mixture
from benchmarks.report import arguments, finish, print_table
from engine import Engine
from engine.config import load
from engine.model.adapter import Adapter

THREADS = 2


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, metavar="FILE", help="default: the one that ships")
    parser.add_argument("--adapter", type=int, metavar="DIM", help="components that the adapter makes")
    chosen = parser.parse_args()
    rows = mixture(chosen.items, chosen.dim, chosen.seed)
    with tempfile.TemporaryDirectory() as folder:
        _warm_up(f"{folder}/warm", chosen.dim)
        adapter = _adapter(Path(folder), chosen.dim, chosen.adapter) if chosen.adapter else None
        figures = measure(f"{folder}/store", rows, chosen.batch, adapter, chosen.model)
    _print(figures)
    finish(figures, chosen.json)


def measure(
    store: str, rows: Any, batch: int, adapter: Path | None = None, model: Path | None = None
) -> dict[str, Any]:
    settings = load(None, {"store.path": store, "model.path": str(model) if model else None})
    index = settings.index
    bare = hnswlib.Index(space="ip", dim=rows.shape[1])
    bare.init_index(len(rows), M=index.M, ef_construction=index.ef_construction)
    bare.set_ef(index.ef)
    stages: Counter[str] = Counter()
    linked: Counter[int] = Counter()
    embedded: Counter[int] = Counter()
    bare_s = engine_s = 0.0
    with Engine.open(settings) as engine, _adapted(store, adapter) as adapted:
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
            adapted.take(keys, part)
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
            **adapted.figures(engine_s),
        }


@dataclass
class _Adapted:
    """The second engine, or none."""

    engine: Engine | None
    seconds: float = 0.0
    adapter_s: float = 0.0

    def take(self, keys: list[str], part: Any) -> None:
        if self.engine is not None:
            before = time.perf_counter()
            applied = self.engine.upsert(keys, part)
            self.seconds += time.perf_counter() - before
            self.adapter_s += applied.stats["seconds"]["adapter"]

    def figures(self, without_s: float) -> dict[str, Any]:
        if self.engine is None or self.engine.adapter is None:
            return {}
        return {
            "adapter_dim": self.engine.adapter.dim_out,
            "adapter_us_per_item": 1e6 * self.adapter_s / len(self.engine),
            "adapted_ratio": self.seconds / without_s,
            "adapted_bytes_per_item": self.engine.store.bytes_written / len(self.engine),
        }


@contextmanager
def _adapted(store: str, adapter: Path | None) -> Iterator[_Adapted]:
    if adapter is None:
        yield _Adapted(None)
        return
    with Engine.open(load(None, {"store.path": f"{store}-adapted", "model.adapter": str(adapter)})) as engine:
        yield _Adapted(engine)


def _adapter(folder: Path, dim: int, out: int) -> Path:
    direct = np.random.default_rng(1).normal(size=(dim, out))
    Adapter.of({"direct": direct, "bias": np.zeros(out)}, {}).save(folder / "adapter.safetensors")
    return folder / "adapter.safetensors"


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
    if "adapter_dim" in figures:
        print(
            f"with an adapter to {figures['adapter_dim']} components: {figures['adapted_ratio']:.3f} times "
            f"the time without; the adapter alone {figures['adapter_us_per_item']:.1f} us/item; "
            f"{figures['adapted_bytes_per_item']:,.0f} bytes written per item"
        )


if __name__ == "__main__":
    main()
