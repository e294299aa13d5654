"""Figures as PNG files. They need matplotlib, which Shoal itself does without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.learning.opis import Consistency

MOST_CURVES = 300  # of one figure: evenly spaced by inconsistency, the worst among them
NAMED = 5  # classes in the legend
INK, WORST = "#31688e", ("#d7301f", "#fc8d59", "#e6a500", "#7b3294", "#c51b8a")


def need_matplotlib() -> None:
    """Raise InputError where matplotlib is missing: before the work, not after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            "a figure needs matplotlib, which is not installed: pip install 'shoal[plots]'."
        ) from None


@contextmanager
def figure(
    path: Path, rows: int = 1, columns: int = 1, size: tuple[float, float] = (7.0, 4.5)
) -> Iterator[Any]:
    """The axes of a new figure, (rows, columns), or one; it is written to `path` at the end."""
    need_matplotlib()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
    try:
        for each in axes.flat:
            each.spines[["top", "right"]].set_visible(False)
        yield axes if rows * columns > 1 else axes[0, 0]
        made.tight_layout()
        made.savefig(path, dpi=110, pil_kwargs={"optimize": True}, format="png")
    except OSError as problem:
        raise InputError(f"{path} cannot be written: {problem.strerror or problem}.") from None
    finally:
        pyplot.close(made)


def plot_utility(found: Consistency, names: Sequence[str], path: Path) -> None:
    """Utility against threshold: a curve for each class, the worst by name, the mean, the best threshold."""
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


def shortened(name: str) -> str:
    """A name that fits a legend, and in which matplotlib sees no formula."""
    short = name if len(name) <= 28 else f"{name[:27]}…"
    return short.replace("$", r"\$").lstrip("_") or "(unnamed)"
