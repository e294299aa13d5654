"""`train`, `evaluate`, `tune`, `model`: arguments; what they do is in `learn`, `evaluate` and `tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engine.cli.console import home_path

Files = Annotated[
    list[Path], typer.Argument(metavar="FILE.npz...", parser=home_path, help="Labelled embeddings.")
]
Out = Annotated[
    Path, typer.Option("-o", "--out", metavar="MODEL", parser=home_path, help="Where the model goes.")
]
Model = Annotated[
    Path | None,
    typer.Option("-m", "--model", metavar="MODEL", parser=home_path, help="Default: the one that ships."),
]
Config = Annotated[
    Path | None,
    typer.Option("-c", "--config", metavar="FILE", parser=home_path, help="Settings, a TOML file."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(train)
    app.command()(evaluate)
    app.command()(tune)
    model = typer.Typer(no_args_is_help=True, help="Bring models over.")
    model.command("import")(import_weights)
    app.add_typer(model, name="model")


def train(
    files: Files,
    out: Out,
    choose: Annotated[
        list[Path] | None,
        typer.Option(
            "--choose", metavar="FILE.npz", parser=home_path, help="Chooses the checkpoint; repeatable."
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="universal (any space) or lander (the files' space).")
    ] = "universal",
    variant: Annotated[str, typer.Option("--variant", help="Of a lander: mean or gat.")] = "mean",
    hidden: Annotated[int | None, typer.Option("--hidden", min=2, help="Width of the network.")] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.01, help="How long to train; default: 20.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Instead of minutes: repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from where it was interrupted.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the training.")] = 0,
    start: Annotated[
        Path | None,
        typer.Option(
            "--start", metavar="MODEL", parser=home_path, help="Fine-tune this model; `universal` ships."
        ),
    ] = None,
    among: Annotated[
        Path | None,
        typer.Option(
            "--among", metavar="FILE", parser=home_path, help="Collection in which the labelled classes are."
        ),
    ] = None,
    both: Annotated[
        bool,
        typer.Option("--both", help="With --start: both networks, on many labelled classes of one space."),
    ] = False,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="MODEL",
            parser=home_path,
            help="Keep its level 0, train what is above it.",
        ),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option("--teacher", metavar="MODEL", parser=home_path, help="Half of each target is its p."),
    ] = None,
) -> None:
    """Train a model on labelled embeddings.

    Each file has the arrays emb (n, d) and labels (n,). A report is written beside the model.
    """
    from engine.cli import learn

    request = learn.Request(
        kind, minutes, seed, variant, hidden, start, base, teacher, steps, resume, among, both
    )
    learn.train(files, out, choose or [], request)


def evaluate(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", parser=home_path, help="Labelled embeddings, of any format.")
    ],
    model: Model = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Feed it in order, in small batches; also ARI against a rebuild.")
    ] = False,
    levels: Annotated[bool, typer.Option("--levels", help="Figures after each level.")] = False,
    tau: Annotated[
        str | None,
        typer.Option("--tau", metavar="T,T...", help="Least probability that links; one or several."),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option("--png", metavar="FILE", parser=home_path, help="Draw F, sizes, and churn of a stream."),
    ] = None,
    index: Annotated[
        str | None, typer.Option("--index", metavar="KIND", help="hnsw (the default) or exact.")
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", metavar="N", help="Items in a batch.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the shuffle.")] = 0,
    config: Config = None,
    json: Json = False,
) -> None:
    """Cluster a labelled set and compare with its labels.

    Prints both F-scores with precision and recall, NMI, ARI, clusters, time, and the classes that cost most;
    with --stream also ARI against a rebuild, churn and flapping.
    """
    from engine.cli.evaluate import Wish
    from engine.cli.evaluate import evaluate as run
    from engine.config import load

    path = None if model is None else str(model)
    chosen = load(config, {"model.path": path, "index.kind": index, "batch.size": batch})
    run(chosen, file, Wish(stream, seed, levels, tau, json, png))


def tune(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", parser=home_path, help="Instead of a store: any file that can be ingested."
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Option("--store", metavar="DIR", parser=home_path, help="Default: ./shoal-store")
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option("--pairs", metavar="FILE", parser=home_path, help="Judged pairs: key, other, same."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="FILE", parser=home_path, help="Labels of some items: key, label."),
    ] = None,
    label: Annotated[
        str, typer.Option("--label", metavar="NAME", help="Without both: the payloads' field of labels.")
    ] = "label",
    propose: Annotated[
        int | None,
        typer.Option("--propose", metavar="N", min=1, max=10_000, help="Print N pairs worth judging."),
    ] = None,
    taus: Annotated[
        str | None, typer.Option("--taus", metavar="T,T...", help="To choose from. Default: 0.2 to 0.99.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the draws.")] = 0,
    model: Model = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Choose tau, the granularity, by 20 to 200 judgements of people.

    Prints the expected BCubed F at each tau, and the command that applies the best one; changes nothing. Ends
    with exit code 13 where the judgements do not tell.
    """
    from engine.cli.tune import Wish
    from engine.cli.tune import tune as run
    from engine.config import load

    paths = {"store.path": store, "model.path": model}
    chosen = load(config, {name: None if path is None else str(path) for name, path in paths.items()})
    run(chosen, file, Wish(pairs, labels, label, propose, taus, seed, json))


def import_weights(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE.pth", parser=home_path, help="A state dict of the authors' code."),
    ],
    out: Out,
    average: Annotated[
        bool, typer.Option("--average/--no-average", help="Trained with --use_cluster_feat, or without.")
    ] = True,
    k: Annotated[
        int, typer.Option("--k", min=1, help="Neighbours beside the item; their --knn_k counts it.")
    ] = 9,
    tau: Annotated[float, typer.Option("--tau", help="Least probability that links.")] = 0.5,
    levels: Annotated[int, typer.Option("--levels", min=1, help="Most levels.")] = 10,
) -> None:
    """Make a model of weights trained with the authors' public code (dmlc/dgl, examples/pytorch/hilander)."""
    from engine.cli import learn

    learn.import_weights(file, out, average, k, tau, levels)
