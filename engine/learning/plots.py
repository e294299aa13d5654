"""Plots of embedding spaces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.evaluation.drawing import figure, shortened
from engine.learning.opis import Consistency

MOST_CURVES = 300  # of one figure: evenly spaced by inconsistency, the worst among them
NAMED = 5  # classes in the legend
INK, WORST = "#31688e", ("#d7301f", "#fc8d59", "#e6a500", "#7b3294", "#c51b8a")


def plot_utility(found: Consistency, names: Sequence[str], path: Path) -> None:
    """Plot utility against threshold: each class, the worst ones by name, the mean, the best threshold."""
    order = np.argsort(found.inconsistency)
    worst = order[::-1][:NAMED]
    shown = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), MOST_CURVES)).astype(int))]
    best = found.thresholds[found.recommended]
    with figure(path) as axes:
        for row in shown:
            axes.plot(found.thresholds, found.utility[row], color=INK, alpha=0.18, linewidth=0.8)
        for row, colour in zip(worst, WORST, strict=False):
            name = shortened(names[found.classes[row]])
            axes.plot(found.thresholds, found.utility[row], color=colour, linewidth=1.6, label=name)
        axes.plot(found.thresholds, found.utility.mean(axis=0), "k", linewidth=2.2, label="mean")
        axes.axvline(best, color="0.4", linestyle=":", label=f"recommended {best:.3f}")
        axes.set(
            xlabel="threshold: cosine distance", ylabel="utility", ylim=(0.0, 1.02), xlim=found.range,
            title=f"OPIS {found.opis:.2e}, {len(found.classes):,} classes",
        )  # fmt: skip
        axes.legend(loc="lower right", fontsize=8, framealpha=0.85, edgecolor="none")
