"""`evaluate`: figures of a labelled set, at several levels and taus, with the classes that cost most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.cli.console import (
    complain,
    need_ending,
    need_outputs,
    print_json,
    print_table,
    tell_noise,
    tell_unused,
)
from engine.config import Settings
from engine.errors import InputError

if TYPE_CHECKING:
    from engine.cli.models import EvaluateOptions
    from engine.evaluation.evaluate import Figures, Labelled, Run
    from engine.evaluation.scores import ClassScore

WORST = 10  # classes that are named
PIECES = 3  # clusters of a class that are named
UNEVEN = 0.1  # difference of precision and recall that is worth mentioning
COLUMNS = ("Fb", "Fb_precision", "Fb_recall", "Fp", "NMI", "ARI_labels", "clusters", "singletons")


def evaluate(settings: Settings, file: Path, wish: EvaluateOptions) -> None:
    """Cluster a labelled set, at each tau, and print the figures."""
    taus = read_taus(wish.tau)
    if wish.png:
        from engine.evaluation.drawing import need_matplotlib

        need_matplotlib()
        read = (file, settings.model.path, settings.model.adapter)
        need_outputs([wish.png], [each for each in read if each])
        need_ending(wish.png, ".png")
    from engine.evaluation import evaluate

    labelled = evaluate.read_labelled(file)
    tell_unused(file, labelled.left_out, labelled.superseded)
    tell_noise(file, labelled.names, labelled.labels)
    runs = _runs(settings, labelled, taus, wish)
    if wish.png:
        from engine.evaluation.plots import draw

        draw(runs, labelled, wish.png)
    if wish.json:
        documents = [_document(run, labelled, wish.levels) for run in runs]
        print_json({"runs": documents} if len(runs) > 1 else documents[0])
    else:
        _print(runs, labelled, wish.levels)


def read_taus(text: str | None, option: str = "--tau") -> list[float | None]:
    """Read "0.3,0.5"; [None]: the model's own. Raises InputError, which names the option."""
    if text is None:
        return [None]
    found: list[float | None] = []
    for part in text.split(","):
        try:
            tau = float(part)
        except ValueError:
            tau = math.nan
        if not 0.0 <= tau < 1.0:
            raise InputError(f"{option}: {part.strip()!r} is no number from 0 up to, but not including, 1")
        found.append(tau)
    return found


def _runs(
    settings: Settings, labelled: Labelled, taus: Sequence[float | None], wish: EvaluateOptions
) -> list[Run]:
    from engine.evaluation import evaluate

    evaluate.warm_up(settings, labelled)
    if not wish.stream:
        return evaluate.run_in_bulk(settings, labelled, taus)
    seed = wish.seed or 0
    order = evaluate.stream_order(labelled, seed)
    complain(f"in the order of time, ties by seed {seed}" if labelled.timed else f"shuffled, seed {seed}")

    def report(done: int) -> None:
        complain(f"{done:,} of {len(labelled.keys):,} items")

    return [evaluate.run_streamed(settings, labelled, order, report, tau) for tau in taus]


def _document(run: Run, labelled: Labelled, levels: bool) -> dict[str, Any]:
    from engine.evaluation.scores import by_class

    worst = [
        {
            "class": labelled.names[score.label],
            "items": score.items,
            "precision": score.precision,
            "recall": score.recall,
            "pieces": [{"cluster": cluster, "items": items} for cluster, items in score.pieces[:WORST]],
        }
        for score in by_class(labelled.labels, run.clusters)[:WORST]
    ]
    more = {"levels": [_at_level(each) for each in run.levels]} if levels else {}
    return {**asdict(run.figures), "tau": run.tau, "worst": worst, **more}


def _at_level(figures: Figures) -> dict[str, Any]:
    return {name: value for name, value in asdict(figures).items() if name in COLUMNS}


def _print(runs: Sequence[Run], labelled: Labelled, levels: bool) -> None:
    from engine.evaluation.scores import by_class

    best = max(runs, key=lambda run: run.figures.Fb)
    if len(runs) > 1:
        columns = dict.fromkeys(("tau", *COLUMNS, "churn", "seconds"), "right")
        rows = [[f"{run.tau:g}", *_cells(run.figures, (*COLUMNS, "churn", "seconds"))] for run in runs]
        print_table("At each tau:", columns, rows)
        print(f"\nAt tau {best.tau:g}, the best Fb:")
    print_figures(asdict(best.figures))
    if uneven := _unevenness(best, [run.tau for run in runs]):
        print(uneven)
    if levels:
        columns = dict.fromkeys(("level", *COLUMNS), "right")
        rows = [[str(at), *_cells(each, COLUMNS)] for at, each in enumerate(best.levels)]
        print()
        print_table("After each level, finest first:", columns, rows)
    worst = [score for score in by_class(labelled.labels, best.clusters)[:WORST] if score.f < 1.0]
    if worst:
        print()
        print_table(
            "The classes that cost most:",
            {"class": "left", "items": "right", "precision": "right", "recall": "right", "where": "left"},
            [_row(score, labelled, best) for score in worst],
        )


def _unevenness(best: Run, tried: Sequence[float]) -> str:
    """Return what is wrong with the clusters and what to try, unless it was tried already; "": nothing."""
    apart = best.figures.Fb_precision - best.figures.Fb_recall
    if abs(apart) <= UNEVEN:
        return ""
    wrong = "Classes are in pieces" if apart > 0 else "Clusters are lumps of several classes"
    side, effect = ("lower", "joins more") if apart > 0 else ("higher", "keeps more apart")
    beyond = [tau for tau in tried if (tau < best.tau if apart > 0 else tau > best.tau)]
    if not beyond:
        return f"{wrong}: a {side} tau {effect}."
    nearest = max(beyond) if apart > 0 else min(beyond)
    return f"{wrong}: a {side} tau {effect}, but {nearest:g} is no better in all."


def _cells(figures: Figures, names: Sequence[str]) -> list[str]:
    return [_text(getattr(figures, name)) for name in names]


def _text(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"


def _row(score: ClassScore, labelled: Labelled, run: Run) -> list[str]:
    """Return a class's row: the clusters that hold most of it, each with its own majority class."""
    where = []
    for cluster, items in score.pieces[:PIECES]:
        inside = labelled.labels[run.clusters == cluster]
        most = int(np.bincount(inside).argmax())
        of = "" if most == score.label else f", mostly {labelled.names[most]}"
        where.append(f"{items:,} in one of {len(inside):,}{of}")
    if len(score.pieces) > PIECES:
        where.append(f"{len(score.pieces) - PIECES:,} more")
    return [
        labelled.names[score.label], f"{score.items:,}", f"{score.precision:.2f}", f"{score.recall:.2f}",
        "; ".join(where),
    ]  # fmt: skip


def print_figures(figures: dict[str, Any], as_json: bool = False) -> None:
    """Print the figures of an evaluation, for programs or for people."""
    if as_json:
        print_json(figures)
        return
    for name, value in figures.items():
        if value is not None:
            print(f"{name:14}{value:,.3f}" if isinstance(value, float) else f"{name:14}{value:,}")
