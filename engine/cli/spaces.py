"""`opis`, `adapt`, `encode`: embedding spaces, measured and made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli.console import need_ending, need_outputs, print_json, print_table, tell_noise, tell_unused
from engine.cli.options import Chosen, Json, Model, path_argument, path_option, takes_records
from engine.errors import InputError, counted

if TYPE_CHECKING:
    from engine.learning.labelled import LabelledSet
    from engine.learning.opis import Consistency
    from engine.learning.training import Plan

MarginPair = Annotated[
    tuple[float, float] | None,
    typer.Option(metavar="POS NEG", help="Similarities at which the margin loss begins."),
]
Steps = Annotated[int, typer.Option(min=1, help="Batches to train on.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]

RATES = 0.01, 0.10  # of false acceptance, at the ends of the range of `opis`
ENCODER_MARGINS = 0.9, 0.4
WORST = 10  # classes that are named


@dataclass(frozen=True, slots=True)
class OpisOptions:
    """What `opis` measures, and how it shows it."""

    range: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="D_MIN D_MAX", help="Distances. Default: from --rates."),
    ] = None
    rates: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LOW HIGH",
            help="Instead of --range: false-acceptance rates at its ends. Default: 0.01 0.1.",
        ),
    ] = None
    epsilon: Annotated[float, typer.Option(help="The worst share of the classes.")] = 0.10
    json: Json = False
    png: Annotated[
        Path | None, path_option("--png", metavar="FILE", about="Draw utility against threshold.")
    ] = None
    seed: Seed = 0


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How an adapter is trained."""

    tcm: Annotated[float, typer.Option(min=0.0, help="Weight of the margin loss; 0: without.")] = 16.0
    margins: MarginPair = None
    steps: Steps = 300
    seed: Seed = 0


@dataclass(frozen=True, slots=True)
class EncoderOptions(TrainingOptions):
    """How an encoder is trained."""

    steps: Steps = 600


@dataclass(frozen=True, slots=True)
class AdaptOptions:
    """What adapter is made, and when it is written."""

    kind: Annotated[str, typer.Option(metavar="linear|mlp", help="One matrix, or also a hidden layer.")] = (
        "linear"
    )
    dim: Annotated[int, typer.Option(min=2, max=1024, help="Components that it makes.")] = 128
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of pytorch-metric-learning, such as SupConLoss. Default: the best of SmoothAPLoss, "
            "ArcFaceLoss and NormalizedSoftmaxLoss on held-out classes.",
        ),
    ] = None
    search: Annotated[
        bool, typer.Option("--search", help="Choose among six margins on held-out classes, not two.")
    ] = False
    held_out: Annotated[
        float, typer.Option("--held-out", min=0.05, max=0.9, help="Share of the classes, not trained on.")
    ] = 0.4
    keep: Annotated[bool, typer.Option("--keep", help="Write it although it makes the space worse.")] = False


@dataclass(frozen=True, slots=True)
class AdaptSettings(Chosen):
    """Settings of the engine that judges an adapter."""

    model: Model = None


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(opis)
    app.command()(adapt)
    encode = typer.Typer(no_args_is_help=True, help="Make embeddings: of pictures, or of embeddings.")
    encode.command("train")(encode_train)
    encode.command("apply")(encode_apply)
    encode.command("adapt")(encode_adapt)
    app.add_typer(encode, name="encode")


@takes_records
def opis(
    wish: OpisOptions,
    file: Annotated[Path | None, path_argument("[FILE]", "Labelled embeddings, of any format.")] = None,
    store: Annotated[
        Path | None, path_option("--store", metavar="DIR", about="Instead: payloads with labels.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --store: their field. Default: label.")
    ] = None,
) -> None:
    """Measure how consistent one threshold is over classes.

    Prints OPIS, epsilon-OPIS, recall at 1, the worst classes, and a threshold with its error rates.
    Up to 20,000 items the figures are exact; beyond that they are sampled, with standard errors.
    """
    from engine.evaluation.drawing import need_matplotlib
    from engine.learning import plots
    from engine.learning.labelled import read_labelled
    from engine.learning.opis import Request, check, measure

    if wish.range and wish.rates:
        raise InputError("--range and --rates both say which distances to look at: name one.")
    if file and label is not None:
        raise InputError("--label names a field of payloads: name it with --store alone.")
    request = Request(wish.rates or RATES, wish.range, epsilon=wish.epsilon, seed=wish.seed)
    check(request)
    if wish.png:
        need_matplotlib()
        need_outputs([wish.png], [file] if file else [])
        need_ending(wish.png, ".png")
    if (file is None) == (store is None):
        raise InputError("name either a labelled file, or a store with --store.")
    labelled = read_labelled(file) if file else _stored(store, label or "label")
    tell_unused(file, labelled.left_out, labelled.superseded)
    tell_noise(file or store, labelled.names, labelled.classes)
    with progress_bar("pairs") as advance:
        found = measure(labelled, request, advance)
    if wish.png:
        plots.plot_utility(found, labelled.names, wish.png)
    print_json(_document(found, labelled)) if wish.json else _print(found, labelled, wish.epsilon)


def _stored(store: Path | None, label: str) -> LabelledSet:
    """Read the items of a store whose payload has a label; a daemon may be writing."""
    import numpy as np
    import orjson

    from engine.learning.labelled import labelled_set
    from engine.storage.reader import View

    assert store is not None
    with View.open(store) as view:
        items, vectors = view.items()
    payloads = [orjson.loads(payload) if payload else None for payload in items.payloads]
    found = [payload.get(label) if isinstance(payload, dict) else None for payload in payloads]
    rows = [row for row, value in enumerate(found) if isinstance(value, str | int | float)]
    if not rows:
        raise InputError(
            f"no payload in {store} has a field {label} of a string or a number: name it with --label."
        )
    return labelled_set(vectors[rows], np.array([str(found[row]) for row in rows]))


@takes_records
def adapt(
    files: Annotated[list[Path], path_argument("FILE...", "Labelled embeddings, of any format.")],
    out: Annotated[Path, path_option("-o", "--out", metavar="FILE", about="Where the adapter goes.")],
    wish: AdaptOptions,
    training: TrainingOptions,
    chosen: AdaptSettings,
    json: Json = False,
) -> None:
    """Learn an adapter that makes one threshold fit all classes.

    A base loss plus the threshold-consistent margin. Prints consistency, recall and the engine's
    clusters before and after, on held-out classes; an adapter that makes them worse is not written.
    """
    from engine.cli import adapt as command
    from engine.learning.adapt import KINDS

    if wish.kind not in KINDS:
        raise InputError(f"an adapter is {' or '.join(KINDS)}, not {wish.kind}.")
    if wish.search and training.margins:
        raise InputError("--search chooses the margins: name no --margins with it.")
    if wish.search and not training.tcm:
        raise InputError("--tcm 0 leaves the margin loss out: name no --search with it.")
    command.adapt(files, out, wish, _plan(training, wish.loss), chosen.settings(), json)


@takes_records
def encode_train(
    source: Annotated[
        Path, path_argument("PICTURES", "A folder of a folder per class, or an .npz of images.")
    ],
    out: Annotated[Path, path_option("-o", "--out", metavar="FILE", about="Where the encoder goes.")],
    training: EncoderOptions,
    kind: Annotated[
        str, typer.Option(metavar="convolutional|transformer", help="The network.")
    ] = "convolutional",
    dim: Annotated[int, typer.Option(help="Components of an embedding.")] = 64,
    loss: Annotated[
        str, typer.Option(metavar="NAME", help="Of pytorch-metric-learning, such as SupConLoss.")
    ] = "MultiSimilarityLoss",
) -> None:
    """Train a small encoder on labelled pictures."""
    from engine.cli import encode as command

    command.train(source, out, kind, dim, _plan(training, loss, ENCODER_MARGINS))


def encode_apply(
    encoder: Annotated[Path, path_argument("ENCODER", "Made by `shoal encode train`.")],
    source: Annotated[Path, path_argument("PICTURES", "As for `encode train`; any classes.")],
    out: Annotated[Path, path_option("-o", "--out", metavar="FILE.npz", about="Where the embeddings go.")],
) -> None:
    """Embed pictures; `shoal ingest` takes the file."""
    from engine.cli import encode as command

    command.apply(encoder, source, out)


def encode_adapt(
    adapter: Annotated[Path, path_argument("ADAPTER", "Made by `shoal adapt`.")],
    source: Annotated[Path, path_argument("FILE.npz", "Embeddings.")],
    out: Annotated[Path, path_option("-o", "--out", metavar="FILE.npz", about="Where they go.")],
) -> None:
    """Map embeddings with an adapter; `shoal ingest` takes the file."""
    from engine.cli import encode as command

    command.adapt(adapter, source, out)


def _plan(options: TrainingOptions, loss: str | None, default: tuple[float, float] | None = None) -> Plan:
    """Return the plan of the options. `default`: margins where none are named. Raises InputError."""
    from engine.learning.losses import Margins
    from engine.learning.training import Plan

    if options.margins and not options.tcm:
        raise InputError("--tcm 0 leaves the margin loss out: name no --margins with it.")
    ends = options.margins or default
    if ends and not all(-1.0 <= each <= 1.0 for each in ends):
        raise InputError(f"margins are similarities from -1 to 1, not {ends[0]:g} and {ends[1]:g}.")
    if ends and ends[0] < ends[1]:
        raise InputError(
            f"--margins {ends[0]:g} {ends[1]:g}: the first is what pairs of a class are to exceed, and must "
            "not be below the second, under which other pairs are to stay."
        )
    margins = Margins(*ends) if ends else None
    plan = Plan(steps=options.steps, seed=options.seed, tcm=options.tcm, margins=margins)
    return replace(plan, loss=loss) if loss else plan


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[float], None]]:
    """Show a bar on a terminal's standard error; the value is called with the share done."""
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
    drawn = " drawn" if errors else ""
    several = f"{counted(classes, 'class', 'classes')} of two or more{drawn}"
    print(f"{counted(items, 'item')}, {several}, {counted(alone, 'item')} alone in theirs")
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
