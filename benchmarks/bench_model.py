"""Models on labelled collections, in bulk: precision and recall by level, calibration, HDBSCAN beside it.

For each file and model (the one that ships, and any named): BCubed precision and recall after level 0 and of
the final clusters, clusters, and the expected calibration error of p at level 0; HDBSCAN untuned, with
min_cluster_size 2 and 5. `--png` draws the reliability of p at level 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import HDBSCAN

from benchmarks.reliability import Reliability, reliability
from benchmarks.report import arguments, finish, print_markdown
from engine.evaluation import scores
from engine.evaluation.bulk import hierarchy, measure_epoch, partitions
from engine.evaluation.drawing import figure, shortened
from engine.model.linkage import PRETRAINED, LinkageModel
from engine.training.datasets import Collection, read_labelled
from engine.training.rollout import training_graphs

COLUMNS = ("level 0 P", "level 0 R", "P", "R", "F", "clusters", "classes", "ECE")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="labelled .npz files: emb, labels")
    parser.add_argument("--model", type=Path, action="append", default=[], help="another model; repeatable")
    parser.add_argument("--no-peers", action="store_true", help="without HDBSCAN")
    parser.add_argument("--png", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    collections = [read_labelled(file) for file in chosen.files]
    models = {PRETRAINED.stem: LinkageModel.load(PRETRAINED)}
    models |= {str(path): LinkageModel.load(path) for path in chosen.model}
    rows: list[dict[str, Any]] = []
    curves: dict[str, list[Reliability]] = {name: [] for name in models}
    for collection in collections:
        for name, model in models.items():
            figures, curve = judged(model, collection)
            rows.append({"set": collection.name, "by": name, **figures})
            curves[name].append(curve)
        if not chosen.no_peers:
            rows += [{"set": collection.name, **peer} for peer in hdbscan(collection)]
    rows += [_mean(rows, name) for name in dict.fromkeys(row["by"] for row in rows)]
    print_markdown(
        ("set", "by", *COLUMNS), [[row.get(name, "") for name in ("set", "by", *COLUMNS)] for row in rows]
    )
    if chosen.png:
        draw(curves[PRETRAINED.stem], [collection.name for collection in collections], chosen.png)
    finish({"rows": rows}, chosen.json)


def judged(model: LinkageModel, collection: Collection) -> tuple[dict[str, Any], Reliability]:
    """The figures of a model on a collection, and the reliability of its p at level 0."""
    usable = np.isfinite(collection.emb).all(axis=1) & (np.abs(collection.emb).sum(axis=1) > 0)
    emb, labels = collection.emb[usable], collection.labels[usable]
    epoch = measure_epoch(emb, model.default_epoch)
    built = hierarchy(emb, model, model.tau, model.max_levels, epoch, base_tau=model.base_tau)
    found = partitions(built)
    first, last = (scores.bcubed(labels, part) for part in (found[0], found[-1]))
    graph = training_graphs(built, labels, epoch)[0]
    base = built.levels[0]
    ranks = np.concatenate([np.arange(degree) for degree in graph.degrees])
    curve = reliability(base.linkage[graph.heads, ranks], graph.target)
    figures = {
        "level 0 P": first.precision,
        "level 0 R": first.recall,
        "P": last.precision,
        "R": last.recall,
        "F": last.f,
        "clusters": len(np.unique(found[-1])),
        "classes": len(np.unique(labels)),
        "ECE": curve.error,
    }
    return figures, curve


def hdbscan(collection: Collection) -> list[dict[str, Any]]:
    """Untuned, on unit vectors; an item of noise is a cluster of its own."""
    unit = collection.emb / np.maximum(np.linalg.norm(collection.emb, axis=1, keepdims=True), 1e-12)
    rows = []
    for least in (2, 5):
        found = HDBSCAN(min_cluster_size=least, copy=True).fit_predict(unit)
        alone = found < 0
        found[alone] = found.max() + 1 + np.arange(alone.sum())
        score = scores.bcubed(collection.labels, found)
        rows.append(
            {
                "by": f"HDBSCAN {least}",
                "P": score.precision,
                "R": score.recall,
                "F": score.f,
                "clusters": len(np.unique(found)),
                "classes": len(np.unique(collection.labels)),
            }
        )
    return rows


def _mean(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    own = [row for row in rows if row["by"] == name]
    return {"set": "mean", "by": name, "F": float(np.mean([row["F"] for row in own]))}


def draw(curves: Sequence[Reliability], names: Sequence[str], file: Path) -> None:
    """Observed share of true links against p, a line a collection."""
    with figure(file, size=(7.0, 5.0)) as axes:
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for curve, name in zip(curves, names, strict=True):
            some = curve.edges > 0
            axes.plot(curve.predicted[some], curve.observed[some], "o-", markersize=3, label=shortened(name))
        axes.set(xlabel="p", ylabel="share of true links", xlim=(0, 1), ylim=(0, 1))
        axes.legend(fontsize=7)


if __name__ == "__main__":
    main()
