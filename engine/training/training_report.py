"""Write a training report next to the weights: Markdown, and curves where matplotlib is installed."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from connectors.files.labelled import LabelledFile
from engine.errors import InputError, counted
from engine.evaluation.drawing import figure
from engine.model.trained import Trained
from engine.system import files
from engine.training.training_run import Progress

SAME = 1e-9  # difference of two figures that are one
SMOOTH = 10  # reports in the moving average of the loss


def write(out: Path, model: Trained, curve: Sequence[Progress], data: Sequence[str]) -> None:
    """Write OUT.md and OUT.png for the model OUT. `data`: a row of the table of files each, see `row_of`.

    Raises InputError where a file cannot be written.
    """
    picture = out.with_name(f"{out.stem}.png")
    try:
        draw(curve, picture)
        shown = f"![Loss and held-out BCubed F by step]({picture.name})"
    except InputError as reason:
        shown = f"No picture: {reason}"
    plan = model.card.about.get("plan") or {}
    lines = [
        f"# {out.name}",
        "",
        f"SHA-256 {model.sha256}; k {model.k}, tau {model.tau:g}, {counted(model.max_levels, 'level')}.",
        "",
        shown,
        "",
        "## Held out",
        "",
        *_held_out(model.card.about),
        "",
        *([str(model.card.about["said"]), ""] if "said" in model.card.about else []),
        "## Curve",
        "",
        "| step | loss | held-out BCubed F |",
        "|---|---|---|",
        *[_judged(point) for point in curve if point.held_out],
        "",
        "## Data",
        "",
        "| file | for | SHA-256 | items | classes | dimensions |",
        "|---|---|---|---|---|---|",
        *data,
        "",
        "## Plan and machine",
        "",
        *[f"- {name}: SHA-256 {value}" for name, value in _models(model.card.about).items()],
        *[f"- {name}: {value}" for name, value in plan.items()],
        f"- machine: {platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        f"- python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}",
        "",
    ]
    report = out.with_suffix(".md")
    with files.written(report) as file:
        file.write("\n".join(lines).encode())


def _models(about: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of the models that the training started or learned from, by role."""
    start = about.get("started_from")
    return {**(about.get("given") or {}), **({"start": str(start)} if start else {})}


def _held_out(about: Mapping[str, Any]) -> list[str]:
    """Return a table of the F of the model that is written, first, and of what it was compared with."""
    chosen, verdict = about.get("checkpoint_chosen_on") or {}, about.get("verdict")
    if verdict is None:
        head = "| set | BCubed F of the model written |"
        rows = [(_cell(name), f) for name, f in chosen.items()]
    else:
        head, rows = "| held-out classes, clustered by | BCubed F |", _compared(about, chosen)
    return [head, "|---|---|", *[f"| {name} | {f:.3f} |" for name, f in rows]]


def _compared(about: Mapping[str, Any], chosen: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return the rows of a fine-tuned model and its start."""
    verdict, tuned = about["verdict"], "the fine-tuned model"
    at_its_tau = f"{tuned} at tau {about['tuned_tau']:g}" if "tuned_tau" in about else tuned
    rows = [
        (f"{at_its_tau}, which is written", verdict["after"]),
        ("the start", verdict["before"]),
    ]
    if about["kept_start"]:
        rows = [
            ("the start, which is written unchanged", verdict["before"]),
            (f"{at_its_tau}, which is not written", verdict["after"]),
        ]
    other = [(name, f) for name, f in chosen.items() if abs(f - verdict["after"]) > SAME]
    return rows + [(f"{tuned} as its step was chosen, on {_cell(name)}", f) for name, f in other]


def draw(curve: Sequence[Progress], path: Path) -> None:
    """Draw loss and held-out scores by step."""
    judged = [point for point in curve if point.held_out]
    with figure(path, 1, 2, (9.0, 3.6)) as both:
        axes = both[0]
        steps, losses = [point.step for point in curve], np.array([point.loss for point in curve])
        width = min(SMOOTH, len(losses))
        smooth = np.convolve(losses, np.ones(width) / width, "valid") if curve else losses
        axes[0].plot(steps, losses, alpha=0.3)
        axes[0].plot(steps[width - 1 :], smooth)
        axes[0].set(xlabel="step", title="loss")
        for name in dict.fromkeys(name for point in judged for name in point.held_out):
            values = [point.held_out.get(name, np.nan) for point in judged]
            axes[1].plot([point.step for point in judged], values, "o-", markersize=3, label=_cell(name))
        axes[1].set(xlabel="step", title="held-out BCubed F", ylim=(0.0, 1.02))
        if judged:
            axes[1].legend(fontsize=8)


def _judged(point: Progress) -> str:
    scores = ", ".join(f"{_cell(name)} {score:.3f}" for name, score in point.held_out.items())
    return f"| {point.step:,} | {point.loss:.4f} | {scores} |"


def row_of(path: Path, role: str, file: LabelledFile) -> str:
    """Return the row of a file in the report. `role`: what it is used for."""
    items, dim = file.emb.shape
    classes = len(file.classes()[0])
    return f"| {_cell(path.name)} | {role} | {files.sha256(path)[:16]} | {items:,} | {classes:,} | {dim} |"


def _cell(text: str) -> str:
    """Return a name that neither breaks a Markdown table nor is a formula to matplotlib."""
    return "".join(c for c in text if c.isprintable()).replace("|", "/").replace("$", "")
