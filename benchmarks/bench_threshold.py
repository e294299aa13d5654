"""What the threshold-consistent margin (TCM) does to a space: eight pairs of trainings, without and with it.

Encoders of the Omniglot pictures {convolutional, transformer} and adapters of the CLINC150 embeddings
{linear, mlp}, with two base losses each and three seeds, judged on classes that none of them has seen: OPIS,
10%-OPIS, recall at 1, Fb of the engine's clusters. Then linear adapters with six losses and two batch sizes:
inconsistency against recognition error. Finished runs are in --runs, a line of JSON each: the same command
goes on where it was interrupted.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import arguments, finish, print_table
from engine.config import Settings, load
from engine.errors import InputError
from engine.evaluation.drawing import figure
from engine.evaluation.evaluate import Labelled, in_bulk
from engine.learning.adapt import AdapterConfig, adapted, train_adapter
from engine.learning.encoder import train_encoder
from engine.learning.judge import part
from engine.learning.labelled import LabelledSet, labelled_set, read_labelled
from engine.learning.losses import Margins
from engine.learning.opis import measure
from engine.learning.pictures import read_pictures
from engine.learning.training import Plan

CLUSTERED = 3_000  # items whose clusters are compared with the classes
ENCODER_LOSSES = ("SmoothAPLoss", "MultiSimilarityLoss")
ADAPTER_LOSSES = ("SupConLoss", "MultiSimilarityLoss")
FRONTIER_LOSSES = (
    "SmoothAPLoss", "MultiSimilarityLoss", "NormalizedSoftmaxLoss", "ArcFaceLoss", "SupConLoss",
    "ProxyAnchorLoss",
)  # fmt: skip
FRONTIER_BATCHES = (36, 100)
ENCODER = Plan(steps=200, batch=100, rate=3e-3, warm=0.05)
ADAPTER = Plan(steps=400, batch=64, rate=3e-3, warm=0.2)
TCM = 16.0  # weight; this and the margins were chosen on held-out classes of the training sets
MARGINS = Margins(0.9, 0.4)
LINEAR_MARGINS = Margins(0.9, 0.5)


@dataclass(frozen=True, slots=True)
class Run:
    """A training, by name."""

    part: str  # encoder, adapter or frontier
    kind: str
    loss: str
    batch: int
    seed: int
    tcm: float


@dataclass(frozen=True, slots=True)
class Data:
    """The sets: to train on, and of other classes."""

    pictures: Path
    other_pictures: Path
    texts: Path
    other_texts: Path


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("data", type=Path, help="folder of omniglot_*.npz and clinc150_*.npz")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("bench_threshold.jsonl"), help="finished runs")
    parser.add_argument("--png", type=Path, metavar="FOLDER", help="draw the table and the frontier there")
    parser.add_argument("--finished", action="store_true", help="show what is finished, train nothing")
    chosen = parser.parse_args()
    data = Data(
        *(chosen.data / f"{name}.npz" for name in
          ("omniglot_background", "omniglot_evaluation", "clinc150_train", "clinc150_test"))
    )  # fmt: skip
    done = _read(chosen.runs)
    for run in _runs(chosen.seeds):
        if run in done or chosen.finished:
            continue
        start = time.process_time()
        figures = _carry_out(run, data, load())
        figures["cpu_s"] = time.process_time() - start
        done[run] = figures
        with chosen.runs.open("a") as file:
            file.write(json.dumps({**asdict(run), **figures}) + "\n")
        print(f"{run}: {figures}", flush=True)
    rows = _table(done)
    header = ("medians", "OPIS", "with", "change", "10%-OPIS", "with", "R@1", "with", "Fb", "with")
    print_table(header, [[row[0], *map(_shown, row[1:])] for row in rows])
    _conclude(rows)
    if chosen.png:
        draw_table(rows, chosen.png / "threshold-table.png")
        draw_frontier(done, chosen.png / "threshold-frontier.png")
    finish({"runs": [{**asdict(run), **figures} for run, figures in done.items()]}, chosen.json)


def _runs(seeds: int) -> Iterator[Run]:
    for seed in range(seeds):
        for part_, kinds, losses, base in (
            ("encoder", ("convolutional", "transformer"), ENCODER_LOSSES, ENCODER),
            ("adapter", ("linear", "mlp"), ADAPTER_LOSSES, ADAPTER),
        ):
            for kind, loss in itertools.product(kinds, losses):
                for tcm in (0.0, TCM):
                    yield Run(part_, kind, loss, base.batch, seed, tcm)
    for loss, batch in itertools.product(FRONTIER_LOSSES, FRONTIER_BATCHES):
        for tcm in (0.0, TCM):
            yield Run("frontier", "linear", loss, batch, 0, tcm)


def _carry_out(run: Run, data: Data, settings: Settings) -> dict[str, Any]:
    base = ENCODER if run.part == "encoder" else ADAPTER
    margins = LINEAR_MARGINS if run.kind == "linear" else MARGINS
    plan = replace(base, loss=run.loss, batch=run.batch, seed=run.seed, tcm=run.tcm, margins=margins)
    if run.part == "encoder":
        encoder, _ = train_encoder(read_pictures(data.pictures), run.kind, 64, plan)
        other = read_pictures(data.other_pictures)
        assert other.labels is not None
        space = labelled_set(encoder.apply(other.grey), other.labels)
    else:
        adapter, _ = train_adapter(read_labelled(data.texts), AdapterConfig(run.kind), plan, {})
        space = adapted(adapter, read_labelled(data.other_texts))
    found = measure(space)
    return {
        "opis": found.opis,
        "opis_worst": found.opis_worst,
        "recall_at_1": found.recall_at_1,
        "range": found.range,
        "margins": (margins.positive, margins.negative) if run.tcm else None,
        "Fb": None if run.part == "frontier" else _clusters(space, settings),
    }


def _clusters(space: LabelledSet, settings: Settings) -> float:
    """Fb of the engine's clusters of some classes, whole where they are small, the same in every run."""
    rng = np.random.default_rng(0)
    each = min(int(np.median(space.sizes)), 40)
    few = part(space, rng.permutation(len(space.names))[: CLUSTERED // each])
    order = rng.permutation(len(few.emb))
    place = np.empty(len(order), np.int64)
    for number in range(len(few.names)):
        items = order[few.classes[order] == number]
        place[items] = np.arange(len(items))
    kept = np.flatnonzero(place < each)
    keys = [str(row) for row in range(len(kept))]
    return in_bulk(settings, Labelled(keys, few.emb[kept], few.classes[kept], np.zeros(len(kept)), False)).Fb


def _read(file: Path) -> dict[Run, dict[str, Any]]:
    done: dict[Run, dict[str, Any]] = {}
    try:
        lines = file.read_text().splitlines() if file.exists() else []
        for line in lines:
            figures = json.loads(line)
            run = Run(**{name: figures.pop(name) for name in Run.__dataclass_fields__})
            done[run] = figures
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise InputError(f"{file} has no finished runs of this benchmark: {problem}.") from None
    return done


Row = tuple[str, float, float, float, float, float, float, float, float, float]


def _table(done: dict[Run, dict[str, Any]]) -> list[Row]:
    """Medians over seeds, without and with TCM, of the pairs that are complete."""
    rows: list[Row] = []
    for name in dict.fromkeys((run.part, run.kind, run.loss) for run in done if run.part != "frontier"):
        plain, margin = (
            [
                figures
                for run, figures in done.items()
                if (run.part, run.kind, run.loss) == name and bool(run.tcm) == tcm
            ]
            for tcm in (False, True)
        )
        if not plain or not margin:
            continue
        medians = [
            statistics.median(figures[key] for figures in runs)
            for key in ("opis", "opis_worst", "recall_at_1", "Fb")
            for runs in (plain, margin)
        ]
        change = medians[1] / medians[0] - 1.0
        rows.append(
            (f"{name[1]} {name[0]}, {name[2].removesuffix('Loss')}", *medians[:2], change, *medians[2:])
        )
    return sorted(rows)


def _conclude(rows: list[Row]) -> None:
    if rows:
        print(
            f"\nOPIS lower with TCM in {sum(row[2] < row[1] for row in rows)} of {len(rows)} pairs, "
            f"{statistics.mean(row[3] for row in rows):+.1%} on average; R@1 better or within 0.2 points in "
            f"{sum(row[7] >= row[6] - 0.002 for row in rows)}; Fb "
            f"{statistics.mean(row[9] - row[8] for row in rows):+.4f} on average."
        )


def _shown(value: float) -> str:
    return f"{value:+.0%}" if value < 0 else f"{value:.5f}" if value < 0.05 else f"{value:.4f}"


def draw_table(rows: list[Row], path: Path) -> None:
    """The table as a picture; the better of each two in bold."""
    head = ("", "OPIS", "+ TCM", "10%-OPIS", "+ TCM", "R@1", "+ TCM", "Fb", "+ TCM")
    cells = [[row[0], *(f"{value:.4f}" for value in (*row[1:3], *row[4:]))] for row in rows]
    with figure(path, size=(9.5, 0.3 * len(rows) + 0.6)) as axes:
        axes.axis("off")
        table = axes.table(
            cells, colLabels=head, loc="center", edges="horizontal", colWidths=[0.34, *[0.083] * 8]
        )
        table.auto_set_font_size(False)
        table.set_fontsize(8)
        for line, row in enumerate(rows, 1):
            values = (*row[1:3], *row[4:])
            for left in range(0, 8, 2):
                less = left < 4
                better = left + int((values[left + 1] < values[left]) == less)
                table[line, better + 1].set_text_props(weight="bold")


def draw_frontier(done: dict[Run, dict[str, Any]], path: Path) -> None:
    """Inconsistency against recognition error: circles without TCM, triangles with it."""
    colours = ("#31688e", "#d7301f", "#35b779", "#7b3294", "#e6a500", "#555555")
    with figure(path, size=(7.0, 4.5)) as axes:
        for loss, colour in zip(FRONTIER_LOSSES, colours, strict=True):
            for batch in FRONTIER_BATCHES:
                points = [
                    (100 * (1 - figures["recall_at_1"]), figures["opis"], run.tcm)
                    for run, figures in done.items()
                    if run.part == "frontier" and (run.loss, run.batch) == (loss, batch)
                ]
                axes.plot(
                    [p[0] for p in points], [p[1] for p in points], color=colour, alpha=0.4, linewidth=1
                )
                for error, opis, tcm in points:
                    named = loss.removesuffix("Loss") if batch == FRONTIER_BATCHES[0] and not tcm else None
                    axes.scatter(
                        error,
                        opis,
                        20 + 0.8 * batch,
                        colour,
                        marker="^" if tcm else "o",
                        label=named,
                        alpha=0.85,
                    )
        axes.set(
            xlabel="recognition error: 100 - R@1, %", ylabel="inconsistency: OPIS",
            title="linear adapters of CLINC150: circles without, triangles with TCM; small: batches of 36",
        )  # fmt: skip
        axes.title.set_size(9)
        axes.legend(fontsize=8, framealpha=0.85, edgecolor="none")


if __name__ == "__main__":
    main()
