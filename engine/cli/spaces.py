"""`opis`, `adapt`, `encode`: embedding spaces, measured and made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli.console import print_json, print_table

if TYPE_CHECKING:
    from engine.learning.labelled import LabelledSet
    from engine.learning.opis import Consistency

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Png = Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Draw utility against threshold.")]
Seed = Annotated[int, typer.Option("--seed", help="Of everything random.")]

WORST = 10  # classes that are named


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(opis)


def opis(
    file: Annotated[Path, typer.Argument(metavar="FILE.npz", help="Labelled embeddings.")],
    range_: Annotated[
        tuple[float, float] | None,
        typer.Option("--range", metavar="D_MIN D_MAX", help="Distances. Default: from --rates."),
    ] = None,
    rates: Annotated[
        tuple[float, float],
        typer.Option("--rates", metavar="LOW HIGH", help="False-acceptance rates at the range's ends."),
    ] = (0.01, 0.10),
    epsilon: Annotated[float, typer.Option("--epsilon", help="The worst share of the classes.")] = 0.10,
    json: Json = False,
    png: Png = None,
    seed: Seed = 0,
) -> None:
    """Measure how consistent one threshold is over the classes of a labelled set.

    Prints OPIS, epsilon-OPIS, recall at 1, the worst classes, and a threshold with its error rates.
    Up to 20,000 items the figures are exact; beyond that they are sampled, with standard errors.
    """
    from engine.learning import plots
    from engine.learning.labelled import read_labelled
    from engine.learning.opis import Request, check, measure

    request = Request(false_acceptance=rates, range=range_, epsilon=epsilon, seed=seed)
    check(request)
    if png:
        plots.need_matplotlib()
    labelled = read_labelled(file)
    with progress_bar("pairs") as advance:
        found = measure(labelled, request, advance)
    if png:
        plots.plot_utility(found, labelled.names, png)
    print_json(_document(found, labelled)) if json else _print(found, labelled, epsilon)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[float], None]]:
    """A bar on a terminal's standard error; it is told the share done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share: bar.update(task, completed=share)


def _document(found: Consistency, labelled: LabelledSet) -> dict[str, Any]:
    best = found.recommended
    return {
        "opis": found.opis,
        "opis_worst": found.opis_worst,
        "recall_at_1": found.recall_at_1,
        "range": list(found.range),
        "errors": found.errors and {
            "opis": found.errors.opis,
            "opis_worst": found.errors.opis_worst,
            "recall_at_1": found.errors.recall_at_1,
        },
        "items": len(labelled.emb),
        "classes": len(found.classes),
        "single_items": found.single_items,
        "recommended": {
            "threshold": float(found.thresholds[best]),
            "false_acceptance": float(found.false_acceptance[best]),
            "false_rejection": float(found.false_rejection[best]),
            "utility": float(found.utility[:, best].mean()),
        },
        "worst": [
            {"class": name, "items": size, "inconsistency": apart, "utility": utility}
            for name, size, apart, utility in _worst(found, labelled)
        ],
    }  # fmt: skip


def _worst(found: Consistency, labelled: LabelledSet) -> list[tuple[str, int, float, float]]:
    """Name, items, inconsistency and utility at the recommended threshold of the least consistent classes."""
    sizes = labelled.sizes
    return [
        (
            labelled.names[found.classes[row]],
            int(sizes[found.classes[row]]),
            float(found.inconsistency[row]),
            float(found.utility[row, found.recommended]),
        )
        for row in found.inconsistency.argsort()[::-1][:WORST]
    ]


def _print(found: Consistency, labelled: LabelledSet, epsilon: float) -> None:
    best, errors = found.recommended, found.errors
    items, classes, alone = len(labelled.emb), len(found.classes), found.single_items
    print(f"{items:,} items, {classes:,} classes of two or more, {alone:,} items alone in theirs")
    rows = (
        ("OPIS", f"{found.opis:.3e}", errors and f"{errors.opis:.1e}"),
        (f"{100 * epsilon:g}%-OPIS", f"{found.opis_worst:.3e}", errors and f"{errors.opis_worst:.1e}"),
        ("recall at 1", f"{found.recall_at_1:.4f}", errors and f"{errors.recall_at_1:.4f}"),
    )
    for name, value, error in rows:
        print(f"{name:12} {value}" + (f"  standard error {error}" if error else ""))
    print(f"{'range':12} {found.range[0]:.4f} to {found.range[1]:.4f}, cosine distance")
    accepts, rejects = found.false_acceptance[best], found.false_rejection[best]
    print(f"{'threshold':12} {found.thresholds[best]:.4f}, the recommended one")
    print(f"{'':12} accepts {accepts:.2%} of the pairs of two classes, rejects {rejects:.2%} of those of one")
    print()
    print_table(
        "The classes that it fits least:",
        {"class": "left", "items": "right", "inconsistency": "right", "utility there": "right"},
        [
            (name, f"{size:,}", f"{apart:.2e}", f"{use:.3f}")
            for name, size, apart, use in _worst(found, labelled)
        ],
    )
