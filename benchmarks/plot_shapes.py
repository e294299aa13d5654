"""HiLander(metric="euclidean") beside HDBSCAN: scikit-learn's comparison of clusterers, and blobs.

Six sets of 500 points in the plane, as that page makes them, each standardised; both clusterers with the same
parameters everywhere: HiLander's defaults, HDBSCAN with min_cluster_size 15 as on that page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn import datasets
from sklearn.cluster import HDBSCAN
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import StandardScaler

from benchmarks.report import arguments, finish, print_markdown
from engine import HiLander

POINTS, SEED = 500, 30
BLOBS = [(dim, centers) for dim in (2, 5, 16, 64) for centers in (3, 10, 30)]


def shapes() -> dict[str, tuple[Any, Any]]:
    """Points (500, 2) and their classes, by name."""
    blobs = {"random_state": 170, "n_samples": POINTS}
    x, y = datasets.make_blobs(**blobs)
    return {
        "circles": datasets.make_circles(n_samples=POINTS, factor=0.5, noise=0.05, random_state=SEED),
        "moons": datasets.make_moons(n_samples=POINTS, noise=0.05, random_state=SEED),
        "varied": datasets.make_blobs(cluster_std=[1.0, 2.5, 0.5], **blobs),
        "aniso": (x @ [[0.6, -0.6], [-0.4, 0.8]], y),
        "blobs": datasets.make_blobs(n_samples=POINTS, random_state=SEED),
        "no structure": (np.random.RandomState(SEED).rand(POINTS, 2), np.zeros(POINTS, int)),
    }


def found(x: Any) -> dict[str, Any]:
    """The labels that each clusterer gives standardised points."""
    points = StandardScaler().fit_transform(x)
    return {
        "HiLander": HiLander(metric="euclidean").fit_predict(points),
        "HDBSCAN": HDBSCAN(min_cluster_size=15, copy=True).fit_predict(points),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the six sets")
    chosen = parser.parse_args()
    rows: list[list[Any]] = []
    drawn = {}
    for name, (x, y) in shapes().items():
        drawn[name] = x, found(x)
        rows.append([name, *_figures(y, drawn[name][1])])
    for dim, centers in BLOBS:
        each = []
        for seed in range(3):
            x, y = datasets.make_blobs(1000, dim, centers=centers, random_state=seed)
            each.append(_figures(y, found(x)))
        rows.append([f"blobs, {dim} dimensions, {centers} centres", *np.mean(each, axis=0).tolist()])
    header = ["set", "HiLander ARI", "clusters", "HDBSCAN ARI", "clusters"]
    print_markdown(header, rows)
    if chosen.png:
        draw(drawn, chosen.png)
    finish({"rows": rows}, chosen.json)


def _figures(y: Any, labels: dict[str, Any]) -> list[float]:
    told: list[float] = []
    for each in labels.values():
        told += [float(adjusted_rand_score(y, each)), float(len(set(each.tolist()) - {-1}))]
    return told


def draw(sets: dict[str, tuple[Any, dict[str, Any]]], path: Path) -> None:
    """A row for each set, a column for each clusterer; HDBSCAN's noise in grey."""
    picture = Figure(figsize=(6, 2.1 * len(sets)), layout="constrained")
    axes = picture.subplots(len(sets), 2)
    for row, (name, (x, labels)) in zip(axes, sets.items(), strict=True):
        for axis, (clusterer, each) in zip(row, labels.items(), strict=True):
            count = len(set(each.tolist()) - {-1})
            colors = np.where(each < 0, -1, each % 10)
            axis.scatter(*x.T, c=colors, s=6, cmap="tab10", vmin=0, vmax=9)
            axis.scatter(*x[each < 0].T, c="#bbb", s=6)
            axis.set_title(f"{clusterer}, {name}: {count}", fontsize=9)
            axis.set_xticks([])
            axis.set_yticks([])
    picture.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
