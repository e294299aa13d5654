"""Plots an evaluation: F against tau, sizes of clusters and classes, churn along the stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.evaluation.drawing import figure
from engine.evaluation.evaluate import Labelled, Run
from engine.types import Int64


def draw(runs: Sequence[Run], labelled: Labelled, path: Path) -> None:
    """Plot the runs of one labelled set to a PNG file; sizes and churn are of the run with the best Fb.

    Raises InputError where matplotlib is missing or the file cannot be written.
    """
    best = max(runs, key=lambda run: run.figures.Fb)
    panels = 2 + bool(best.churn)
    with figure(path, 1, panels, (4.5 * panels, 4.0)) as axes:
        _scores(axes[0, 0], runs)
        _sizes(axes[0, 1], labelled.labels, best)
        if best.churn:
            _churn(axes[0, 2], best)


def _scores(axes: Any, runs: Sequence[Run]) -> None:
    """Plot scores against tau, or for a single run against the level."""
    if len(runs) > 1:
        at, figures, label = [run.tau for run in runs], [run.figures for run in runs], "tau"
    else:
        figures = list(runs[0].levels)
        at, label = [float(level) for level in range(len(figures))], "level"
        axes.set_xticks(at)
    for name, style in (("Fb", "o-"), ("Fb_precision", "^:"), ("Fb_recall", "v:"), ("Fp", "s-")):
        axes.plot(
            at, [getattr(one, name) for one in figures], style, markersize=4, label=name.replace("_", " ")
        )
    axes.set(xlabel=label, ylim=(0.0, 1.02), title=f"{figures[0].items:,} items")
    axes.legend(fontsize=8)


def _sizes(axes: Any, labels: Int64, run: Run) -> None:
    for name, groups in (("classes", labels), (f"clusters, tau {run.tau:g}", run.clusters)):
        sizes = np.sort(np.unique(groups, return_counts=True)[1])[::-1]
        axes.loglog(np.arange(1, len(sizes) + 1), sizes, drawstyle="steps-mid", label=name)
    axes.set(xlabel="rank", ylabel="items", title="sizes")
    axes.legend(fontsize=8)


def _churn(axes: Any, run: Run) -> None:
    items, rates = zip(*run.churn, strict=True)
    axes.plot(items, rates, linewidth=1.2)
    axes.set(xlabel="items so far", ylabel="changed items per inserted item", title="churn", ylim=(0.0, None))
