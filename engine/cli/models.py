"""`train`, `evaluate`, `tune`, `model`: arguments; what they do is in `learn`, `evaluate` and `tune`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from engine.cli.options import (
    Chosen,
    Index,
    Json,
    Model,
    OfModel,
    path_argument,
    path_option,
    takes_records,
)
from engine.errors import InputError

Out = Annotated[Path, path_option("-o", "--out", metavar="MODEL", about="Where the model goes.")]


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What to train, how long, and from which models, all of them optional."""

    choose: Annotated[
        list[Path] | None,
        path_option(
            "--choose", metavar="FILE", about="Chooses the checkpoint, in place of classes; repeatable."
        ),
    ] = None
    kind: Annotated[
        str,
        typer.Option(metavar="universal|lander", help="A model of any space, or of the space of the files."),
    ] = "universal"
    variant: Annotated[
        str | None,
        typer.Option(metavar="mean|gat", help="With --kind lander, without --start. Default: mean."),
    ] = None
    begin: Annotated[
        str | None,
        typer.Option(
            metavar="metric|random",
            help="With --kind lander, without --start: distances that the labels teach (the default), or "
            "random weights.",
        ),
    ] = None
    focal: Annotated[
        float | None,
        typer.Option(min=0.0, help="Exponent of the focal loss; lander, with --begin random or --start."),
    ] = None
    balance: Annotated[
        bool,
        typer.Option(
            "--balance", help="Linked and unlinked pairs weigh the same; lander, as with --focal."
        ),
    ] = False
    hidden: Annotated[
        int | None, typer.Option(min=2, help="Width of the network; without --start and --base.")
    ] = None
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=100_000, help="How long to train; default: 20, or steps (--start, a lander)."
        ),
    ] = None
    steps: Annotated[
        int | None, typer.Option(min=1, help="Instead of --minutes: the same seed gives the same weights.")
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on from where it was interrupted.")] = False
    seed: Annotated[int, typer.Option(min=0, help="Of the training.")] = 0
    start: Annotated[
        Path | None,
        path_option(
            "--start", metavar="MODEL", about="Fine-tune this model of the same --kind; `universal` ships."
        ),
    ] = None
    among: Annotated[
        Path | None,
        path_option(
            "--among",
            metavar="FILE",
            about="With --start, without --space: collection in which the labelled classes are.",
        ),
    ] = None
    space: Annotated[
        bool, typer.Option("--space", help="With --start: learn a space from many labelled classes.")
    ] = False
    both: Annotated[bool, typer.Option("--both", hidden=True, help="The old name of --space.")] = False
    adapter: Annotated[
        Path | None,
        path_option(
            "--adapter",
            metavar="FILE",
            about="With --space, or --kind lander without --start: write an adapter, too.",
        ),
    ] = None
    base: Annotated[
        Path | None,
        path_option(
            "--base",
            metavar="MODEL",
            about="Universal, without --start: keep its level 0, train what is above.",
        ),
    ] = None
    teacher: Annotated[
        Path | None,
        path_option(
            "--teacher", metavar="MODEL", about="Universal, without --start: half of each target is its p."
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class EvaluateSettings(Chosen):
    """Settings of an evaluation."""

    model: Model = None
    index: Index = None
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", help="With --stream: items in a batch.")
    ] = None


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """How to evaluate, and what to show."""

    stream: Annotated[
        bool, typer.Option("--stream", help="Feed it in order, in small batches; also ARI against a rebuild.")
    ] = False
    seed: Annotated[int | None, typer.Option(min=0, help="With --stream: of the shuffle. Default: 0.")] = None
    levels: Annotated[bool, typer.Option("--levels", help="Figures after each level.")] = False
    tau: Annotated[
        str | None,
        typer.Option(metavar="T,T...", help="Least probability that links; one or several."),
    ] = None
    png: Annotated[
        Path | None, path_option("--png", metavar="FILE", about="Draw F, sizes, and churn of a stream.")
    ] = None
    json: Json = False


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """The judgements, and what to do with them."""

    pairs: Annotated[
        Path | None, path_option("--pairs", metavar="FILE", about="Judged pairs: key, other, same.")
    ] = None
    labels: Annotated[
        Path | None, path_option("--labels", metavar="FILE", about="Labels of some items: key, label.")
    ] = None
    label: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Without both: the payloads' field of labels. Default: label."),
    ] = None
    propose: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=10_000, help="Print N pairs worth judging.")
    ] = None
    taus: Annotated[
        str | None, typer.Option(metavar="T,T...", help="To choose from. Default: 0.2 to 0.99.")
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0
    json: Json = False


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(train)
    app.command()(evaluate)
    app.command()(tune)
    model = typer.Typer(no_args_is_help=True, help="Import models from other code.")
    model.command("import")(import_weights)
    app.add_typer(model, name="model")


@takes_records
def train(
    files: Annotated[list[Path], path_argument("FILE...", "Labelled embeddings, of any format.")],
    out: Out,
    request: TrainOptions,
) -> None:
    """Train a model on labelled embeddings.

    A file is any that can be ingested, if its records have labels. A report is written next to the model.
    """
    from engine.cli import learn

    learn.train(files, out, replace(request, space=request.space or request.both))


@takes_records
def evaluate(
    file: Annotated[Path, path_argument("FILE", "Labelled embeddings, of any format.")],
    chosen: EvaluateSettings,
    wish: EvaluateOptions,
) -> None:
    """Cluster a labelled set and compare with its labels.

    Prints both F-scores with precision and recall, NMI, ARI, clusters, time, and the classes that cost most;
    with --stream also ARI against a rebuild, churn and flapping.
    """
    from engine.cli.evaluate import evaluate as run

    if not wish.stream and (wish.seed is not None or chosen.batch is not None):
        raise InputError("--seed and --batch are of a stream: name --stream with them.")
    run(chosen.settings(), file, wish)


@takes_records
def tune(
    chosen: OfModel,
    wish: TuneOptions,
    file: Annotated[
        Path | None, path_argument("[FILE]", "Instead of a store: any file that can be ingested.")
    ] = None,
) -> None:
    """Choose tau, the granularity, by 20 to 200 judgements of people.

    Prints the expected BCubed F at each tau, and the command that applies the best one; changes nothing. With
    labels of half of the items also level 0's tau. Ends with exit code 13 where the judgements do not decide.
    """
    from engine.cli.tune import tune as run

    run(chosen.settings(), file, wish, chosen.store, chosen.config)


def import_weights(
    file: Annotated[Path, path_argument("FILE.pth", "A state dict of the authors' code.")],
    out: Out,
    average: Annotated[
        bool, typer.Option("--average/--no-average", help="Trained with --use_cluster_feat, or without.")
    ] = True,
    k: Annotated[
        int, typer.Option("--k", min=1, help="Neighbours without the item; their --knn_k counts it.")
    ] = 9,
    tau: Annotated[float, typer.Option("--tau", help="Least probability that links.")] = 0.5,
    levels: Annotated[int, typer.Option("--levels", min=1, help="Most levels, up to 32.")] = 10,
) -> None:
    """Make a model of weights trained with the authors' public code (dmlc/dgl, examples/pytorch/hilander)."""
    from engine.cli import learn

    learn.import_weights(file, out, average, k, tau, levels)
