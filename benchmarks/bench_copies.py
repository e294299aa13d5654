"""What copies cost: items that share their vectors against items that do not, through the whole step.

Each vector has the same number of copies; the items come in random order. Memory is the anonymous memory
that the process gains per item once every vector has been seen, so vectors and nodes are not in it. Fewer
distinct items than copies may be streamed: the rate of distinct ones falls as they become more.
"""

from __future__ import annotations

import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mixture import mixture
from benchmarks.report import arguments, finish, print_table
from engine import Engine
from engine.config import load


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--copies", type=int, default=100)
    parser.add_argument("--distinct", type=int, default=20_000, help="items that share no vector")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    own = mixture(chosen.items // chosen.copies, chosen.dim, chosen.seed)
    order = np.random.default_rng(chosen.seed).permutation(np.repeat(np.arange(len(own)), chosen.copies))
    with tempfile.TemporaryDirectory() as folder:
        stream(f"{folder}/warm", mixture(400, chosen.dim, chosen.seed + 1), np.arange(400), 200)
        copies = stream(f"{folder}/copies", own, order, chosen.batch)
        rows = mixture(chosen.distinct, chosen.dim, chosen.seed + 2)
        distinct = stream(f"{folder}/distinct", rows, np.arange(len(rows)), chosen.batch)
    figures = {
        "dim": chosen.dim,
        "batch": chosen.batch,
        "copies_each": chosen.copies,
        "copies": copies,
        "distinct": distinct,
        "ratio": copies["items_per_s"] / distinct["items_per_s"],
    }
    print_table(
        ["", "items", "nodes", "clusters", "items/s", "bytes written/item", "bytes resident/item"],
        [
            [name, f"{run['items']:,}", f"{run['nodes']:,}", f"{run['clusters']:,}", run["items_per_s"],
             run["bytes_written"], run["bytes_resident"]]
            for name, run in (("copies", copies), ("distinct", distinct))
        ],
    )  # fmt: skip
    print(f"\ncopies are taken {figures['ratio']:.1f} times as fast as distinct items")
    finish(figures, chosen.json)


def stream(store: str, rows: Any, order: Any, batch: int) -> dict[str, Any]:
    """Figures of items with the vectors `rows[order]`, in batches."""
    settings = load(None, {"store.path": store})
    seconds, samples = 0.0, []
    with Engine.open(settings) as engine:
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            keys = [f"{row}" for row in range(start, start + len(part))]
            begun = time.perf_counter()
            engine.upsert(keys, rows[part])
            seconds += time.perf_counter() - begun
            samples.append((len(engine), engine.state.hierarchy.base.nodes.live, _anonymous_bytes()))
        whole = [(items, memory) for items, nodes, memory in samples if nodes == len(rows)]
        (first, before), (last, after) = whole[0], whole[-1]
        return {
            "items": len(engine),
            "nodes": engine.state.hierarchy.base.nodes.live,
            "clusters": len(set(engine.labels()[1].tolist())),
            "seconds": seconds,
            "items_per_s": len(engine) / seconds,
            "bytes_written": engine.store.bytes_written / len(engine),
            "bytes_resident": (after - before) / (last - first) if last > first else None,
        }


def _anonymous_bytes() -> int:
    """Memory of this process that no file stands behind: pages of the store are not in it."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["RssAnon"].split()[0])


if __name__ == "__main__":
    main()
