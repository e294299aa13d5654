"""Writes figures as PNG files with matplotlib, an optional dependency."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.errors import InputError
from engine.system.files import written


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
    """Yield the axes of a new figure, (rows, columns) or a single one; write it to `path` at the end.

    Raises InputError where matplotlib is missing or the file cannot be written.
    """
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
        with written(path) as file:
            made.savefig(file, dpi=110, pil_kwargs={"optimize": True}, format="png")
    finally:
        pyplot.close(made)


def shortened(name: str) -> str:
    """Return a name cut to a legend's width and escaped, so that matplotlib sees no formula in it."""
    short = name if len(name) <= 28 else f"{name[:27]}…"
    return short.replace("$", r"\$").lstrip("_") or "(unnamed)"
