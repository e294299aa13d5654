"""Labelled collections streamed in batches of 256: what the approximate index and the stream cost.

For each file and order: recall of the neighbour lists against exact ones, ARI of the final clusters
against an exact rebuild at the same calibration, edges recomputed per item over the last ten
batches, and the scores against the labels. Files with `time` are fed in that order, others shuffled
with the seeds 0, 1, ...
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import arguments, finish, print_table
from engine import Engine, pipeline, vectors
from engine.config import Settings, load
from engine.engine import load_model, shape_of
from engine.index import ExactIndex
from engine.scores import ari, bcubed_f
from engine.state import State
from engine.stopwatch import Stopwatch
from engine.types import Batch

STREAM_BATCH = 256
LAST = 10  # batches at the end over which recomputed edges are counted


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="labelled .npz files: emb, labels, maybe time")
    parser.add_argument("--orders", type=int, default=5, help="orders per file without `time`")
    parser.add_argument("--index", choices=["hnsw", "exact"], default="hnsw")
    chosen = parser.parse_args()
    runs = []
    for file in chosen.files:
        with np.load(file, allow_pickle=False) as data:
            emb, labels = data["emb"].astype(np.float32), data["labels"]
            time = data.get("time", None)
        for seed in range(1 if time is not None else chosen.orders):
            order = np.argsort(time, kind="stable") if time is not None else _shuffled(len(emb), seed)
            with tempfile.TemporaryDirectory() as folder:
                settings = load(None, {"store.path": f"{folder}/store", "index.kind": chosen.index})
                figures = measure(settings, emb[order], labels[order])
            runs.append({"file": file.stem, "seed": seed if time is None else None, **figures})
            print(f"{file.stem} {seed}: {figures}", flush=True)
    _print(runs)
    finish({"index": chosen.index, "runs": runs}, chosen.json)


def measure(settings: Settings, emb: Any, labels: Any) -> dict[str, Any]:
    model = load_model(settings)
    linked, embedded, moved, late = [], [], 0, 0
    with Engine.open(settings, model) as engine:
        final = np.zeros(len(emb), np.int64)
        for start in range(0, len(emb), STREAM_BATCH):
            stop = min(len(emb), start + STREAM_BATCH)
            applied = engine.upsert([str(row) for row in range(start, stop)], emb[start:stop])
            base = applied.stats["work"][0]
            linked.append(base.linked / (stop - start))
            embedded.append(10 * base.embedded / (stop - start))
            now = final_by_row(engine, len(emb))
            if start >= len(emb) // 2:
                moved += int((final[:start] != now[:start]).sum())
                late += stop - start
            final = now
        recall, rebuilt = against_exact(engine, settings, emb)
    return {
        "items": len(emb),
        "recall": recall,
        "ARI": ari(rebuilt, final),
        "Fb": bcubed_f(labels, final),
        "Fb_exact": bcubed_f(labels, rebuilt),
        "clusters": len(np.unique(final)),
        "churn": moved / max(1, late),
        "edges_linked": statistics.mean(linked[-LAST - 1 : -1]),
        "edges_embedded": statistics.mean(embedded[-LAST - 1 : -1]),
    }


def final_by_row(engine: Engine, count: int) -> Any:
    keys, clusters = engine.labels()
    out = np.zeros(count, np.int64)
    out[[int(key) for key in keys]] = clusters
    return out


def against_exact(engine: Engine, settings: Settings, emb: Any) -> tuple[float, Any]:
    """Recall of the engine's lists, and the final clusters of an exact rebuild, by row of `emb`."""
    live = engine.state
    shape = live.hierarchy.shape
    assert shape == shape_of(settings, engine.model, shape.dim)
    state = State.empty(shape, engine.model, live.calibration.card, ExactIndex)
    state.calibration.hold(live.calibration.epoch)
    keys = [str(row).encode() for row in range(len(emb))]
    grid, _ = vectors.quantize(emb)
    batch = Batch(keys, grid, np.zeros(len(emb), np.int64), [b""] * len(emb))
    pipeline.step(state, batch, 0, Stopwatch())
    hits = total = 0
    base, exact = live.hierarchy.base, state.hierarchy.base
    for key in keys:
        a, b = live.row_of[key], state.row_of[key]
        mine = set(base.nodes.hashes[base.lists.neighbors[a, : shape.k]].tolist())
        best = exact.nodes.hashes[exact.lists.neighbors[b, : shape.k]].tolist()
        hits += sum(h in mine for h in best)
        total += len(best)
    rows = np.array([state.row_of[key] for key in keys], np.int32)
    return hits / total, state.final_clusters(rows)


def _shuffled(count: int, seed: int) -> Any:
    return np.random.default_rng(seed).permutation(count)


def _print(runs: list[dict[str, Any]]) -> None:
    names = ["recall", "ARI", "Fb", "Fb_exact", "churn", "edges_linked", "edges_embedded"]
    rows = []
    for file in dict.fromkeys(run["file"] for run in runs):
        of = [run for run in runs if run["file"] == file]
        rows.append([file, len(of), *(float(statistics.median(run[name] for run in of)) for name in names)])
    print_table(["file (medians)", "orders", *names], rows)


if __name__ == "__main__":
    main()
