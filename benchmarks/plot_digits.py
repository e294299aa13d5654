"""Handwritten digits in two dimensions, by ArcFace alone and with the threshold-consistent margin.

Both networks see the same two thirds of scikit-learn's digits, in the same order; the other third is drawn,
each digit as an arrow's direction would be: angles are all that cosine similarity knows.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from engine.evaluation.drawing import figure
from engine.learning.labelled import labelled_set
from engine.learning.opis import Consistency, measure
from engine.learning.training import Plan, fit

import torch  # isort: skip
from torch import nn  # isort: skip

# Ten classes on a circle are 36 degrees apart: there is no room for the default margin of 28.6.
PLAN = Plan(
    loss="ArcFaceLoss", settings={"margin": 6.0, "scale": 16.0}, steps=1_000, batch=60, each=6, rate=3e-3
)
WITH_TCM = replace(PLAN, tcm=4.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("png", type=Path, help="where the picture goes")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    sides = [embed(replace(plan, seed=chosen.seed)) for plan in (PLAN, WITH_TCM)]
    draw(sides, chosen.png)
    for name, (_, _, found) in zip(("ArcFace", "with TCM"), sides, strict=True):
        print(f"{name}: OPIS {found.opis:.4f}, recall at 1 {found.recall_at_1:.4f}")


def embed(plan: Plan) -> tuple[Any, Any, Consistency]:
    """Train on two thirds; angles and digits of the other third, and their figures."""
    found = load_digits()
    pixels = torch.from_numpy((found.data / 16).astype(np.float32))
    rows = np.random.default_rng(0).permutation(len(pixels))
    seen, new = rows[: 2 * len(rows) // 3], rows[2 * len(rows) // 3 :]
    torch.manual_seed(plan.seed)
    # Centred, the digits begin in all directions and not in one.
    centre = nn.BatchNorm1d(2, affine=False)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2), centre)
    fit(net, lambda items: pixels[seen[items]], found.target[seen].astype(np.int64), plan)
    with torch.inference_mode():
        emb = net(pixels[new]).numpy()
    digits = found.target[new]
    return np.arctan2(emb[:, 1], emb[:, 0]), digits, measure(labelled_set(emb, digits))


def draw(sides: list[tuple[Any, Any, Consistency]], path: Path) -> None:
    """The two circles side by side."""
    rng = np.random.default_rng(0)
    with figure(path, 1, 2, (8.4, 4.4)) as axes:
        for each, (angles, digits, found), name in zip(
            axes.flat, sides, ("ArcFace", "ArcFace and TCM"), strict=True
        ):
            radius = 1.0 + 0.06 * rng.uniform(-1, 1, len(angles))
            points = each.scatter(
                radius * np.cos(angles), radius * np.sin(angles), 7, digits, cmap="tab10", linewidths=0
            )
            for digit in range(10):
                own = angles[digits == digit]
                middle = np.arctan2(np.sin(own).mean(), np.cos(own).mean())
                each.text(
                    1.22 * np.cos(middle), 1.22 * np.sin(middle), str(digit), ha="center", va="center",
                    color=points.cmap(digit / 9), weight="bold",
                )  # fmt: skip
            each.set(
                aspect="equal", xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), title=f"{name}: OPIS {found.opis:.4f}"
            )
            each.axis("off")


if __name__ == "__main__":
    main()
