"""Labelled collections streamed in batches of 256: what the approximate index and the stream cost.

For each file and order: recall of the neighbour lists against exact ones, ARI of the final clusters
against an exact rebuild at the same calibration, scores against the labels (of the stream and of the
rebuild), churn, and edges recomputed per item over the last ten whole batches. Files with `time` are
fed in that order, others shuffled with the seeds 0, 1, ...
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.report import arguments, finish, print_table
from engine import Engine
from engine.clustering.level import Level
from engine.clustering.state import State
from engine.config import STREAM_BATCH, Settings, load
from engine.evaluation import scores
from engine.evaluation.evaluate import (
    Churn,
    Labelled,
    clusters_by_number,
    exact_rebuild,
    measure,
    read_labelled,
    stream_order,
)
from engine.types import Int64

LAST = 10  # whole batches at the end over which recomputed edges are counted
COLUMNS = ("recall", "ARI", "Fb", "Fb_rebuilt", "clusters", "churn", "edges_linked", "edges_embedded")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="labelled .npz files: emb, labels, maybe time")
    parser.add_argument("--orders", type=int, default=5, help="orders of a file without `time`")
    parser.add_argument("--index", choices=["hnsw", "exact"], default="hnsw")
    chosen = parser.parse_args()
    runs = []
    for file in chosen.files:
        labelled = read_labelled(file)
        for seed in range(1 if labelled.timed else chosen.orders):
            with tempfile.TemporaryDirectory() as folder:
                settings = load(None, {"store.path": f"{folder}/store", "index.kind": chosen.index})
                figures = stream(settings, labelled, stream_order(labelled, seed))
            runs.append({"file": file.stem, "seed": seed, **figures})
            print(f"{file.stem} {seed}: {figures}", flush=True)
    _print(runs)
    finish({"index": chosen.index, "runs": runs}, chosen.json)


def stream(settings: Settings, labelled: Labelled, order: Int64) -> dict[str, Any]:
    linked, embedded = [], []
    churn = Churn(len(order))
    with Engine.open(settings) as engine:
        for first in range(0, len(order), STREAM_BATCH):
            rows = order[first : first + STREAM_BATCH]
            applied = engine.upsert([labelled.keys[row] for row in rows], labelled.emb[rows])
            churn.observe(engine)
            if len(rows) == STREAM_BATCH:
                work = applied.stats["work"][0]
                linked.append(work.linked / len(rows))
                embedded.append(engine.state.hierarchy.shape.k * work.embedded / len(rows))
        rebuilt = exact_rebuild(engine)
        streamed, bulk = clusters_by_number(engine.state), clusters_by_number(rebuilt)
        return {
            "items": len(order),
            "recall": list_recall(engine.state, rebuilt),
            "ARI": scores.ari(bulk, streamed),
            "Fb": scores.bcubed_f(labelled.labels, streamed),
            "Fb_rebuilt": scores.bcubed_f(labelled.labels, bulk),
            "clusters": measure(labelled.labels, streamed, 0.0).clusters,
            "churn": churn.rate,
            "edges_linked": statistics.mean(linked[-LAST:]),
            "edges_embedded": statistics.mean(embedded[-LAST:]),
        }


def list_recall(live: State, exact: State) -> float:
    """The share of the exact lists' entries (first k) that the live lists have."""
    theirs, rows = exact.hierarchy.base, exact.hierarchy.base.nodes.all_rows()
    mine, own = live.hierarchy.base, live.distinct.find(theirs.nodes.vectors[rows])
    hits = total = 0
    for row, at in zip(own.tolist(), rows.tolist(), strict=True):
        best = _neighbors(theirs, at)
        hits += len(best & _neighbors(mine, row))
        total += len(best)
    return hits / total


def _neighbors(level: Level, row: int) -> set[int]:
    """The hashes of a node's first k neighbours."""
    lists = level.lists
    used = min(level.shape.k, int(lists.lengths[row]))
    return set(level.nodes.hashes[lists.neighbors[row, :used]].tolist())


def _print(runs: list[dict[str, Any]]) -> None:
    rows = []
    for file in dict.fromkeys(run["file"] for run in runs):
        of = [run for run in runs if run["file"] == file]
        rows.append(
            [file, len(of), *(float(statistics.median(run[c] or 0.0 for run in of)) for c in COLUMNS)]
        )
    print_table(["file (medians)", "orders", *COLUMNS], rows)


if __name__ == "__main__":
    main()
