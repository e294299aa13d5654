"""The command line: arguments here, what commands do in `engine.cli`; joins engine and connectors.

Whatever a command needs is imported when it runs: `--help` has to answer at once, and reading a store
needs neither torch nor dgl.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from engine import __version__
from engine.cli import models, spaces
from engine.cli.console import Interrupted, complain, home_path, interrupt, printable
from engine.errors import ShoalError

if TYPE_CHECKING:
    from engine.config import Settings, Value

app = typer.Typer(
    help="Live clustering of embedding streams: which cluster is this item in now, and why?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Store = Annotated[
    Path | None, typer.Option("--store", metavar="DIR", parser=home_path, help="Default: ./shoal-store")
]
Config = Annotated[
    Path | None,
    typer.Option("-c", "--config", metavar="FILE", parser=home_path, help="Settings, a TOML file."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Model = Annotated[
    Path | None,
    typer.Option("-m", "--model", metavar="MODEL", parser=home_path, help="Default: the one that ships."),
]
Index = Annotated[str | None, typer.Option("--index", metavar="KIND", help="hnsw (the default) or exact.")]
Tau = Annotated[float | None, typer.Option("--tau", help="Least probability that links, above level 0.")]
BaseTau = Annotated[float | None, typer.Option("--base-tau", help="The same at level 0.")]
BatchSize = Annotated[int | None, typer.Option("--batch", metavar="N", help="Items in a batch.")]
Level = Annotated[int | None, typer.Option("--level", help="0 is the finest. Default: final clusters.")]
AnyLevel = Annotated[
    str | None,
    typer.Option("--level", help="0 is the finest; +1, +2: themes of clusters. Default: final clusters."),
]
Limit = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Rows to print.")]
Cursor = Annotated[str | None, typer.Option("--cursor", help="Go on where another page ended.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the shuffle.")]


def settings(config: Path | None, **flags: Value | Path) -> Settings:
    """`index__kind="exact"` stands for the flag that sets `[index] kind`."""
    from engine.config import load

    return load(config, {name.replace("__", "."): _plain(value) for name, value in flags.items()})


def _model(path: Path | None, tau: float | None, base_tau: float | None) -> dict[str, Value | Path]:
    """Return the flags of [model]."""
    return {"model__path": path, "model__tau": tau, "model__base_tau": base_tau}


def event_id(text: str | None) -> str | None:
    """Refuse what is no event's id, as any other argument that cannot be used."""
    from engine.events import read_event_id

    try:
        return None if text is None else "{}-{}".format(*read_event_id(text))
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from None


def _plain(value: Value | Path) -> Value:
    return os.fspath(value) if isinstance(value, Path) else value


@app.callback(invoke_without_command=True)
def shoal(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"shoal {__version__}")
        raise typer.Exit


@app.command()
def demo(
    exit_: Annotated[bool, typer.Option("--exit", help="End with the stream, print a summary.")] = False,
    json: Json = False,
    store: Annotated[
        Path | None,
        typer.Option(
            "--store", metavar="DIR", parser=home_path, help="Keep it here. Default: a temporary one."
        ),
    ] = None,
    config: Config = None,
    model: Model = None,
    batch: BatchSize = None,
    seed: Seed = 0,
    rate: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Digits a second. Default: 60; with --exit all at once."),
    ] = None,
) -> None:
    """Stream handwritten digits through it all, and watch, here and on the page that it serves."""
    from connectors.memory import MemorySource, Record
    from engine.cli.demo import run
    from engine.cli.digits import Digits, payload

    chosen = settings(config, model__path=model, batch__size=batch)

    def make_source(digits: Digits, size: int) -> MemorySource:
        records = [
            Record(str(row), pixels, payload(pixels, int(label)))
            for row, (pixels, label) in enumerate(zip(digits.pixels, digits.labels, strict=True))
        ]
        return MemorySource(f"digits:{seed}", records, size, chosen.limits)

    run(chosen, make_source, store, seed, rate, exit_, json)


@app.command()
def serve(
    store: Store = None,
    config: Config = None,
    model: Model = None,
    index: Index = None,
    check: Annotated[bool, typer.Option("--check", help="Say what would happen, and end.")] = False,
) -> None:
    """The daemon: records in, clusters kept up to date, API and page.

    Records come over HTTP or from Kafka, as the section [source] of the settings says. SIGTERM and
    Ctrl-C finish the batch at work and end it.
    """
    from engine.cli import parts
    from engine.cli import serve as command

    chosen = settings(config, store__path=store, model__path=model, index__kind=index)
    command.check(chosen, parts.plan_source) if check else command.serve(chosen)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(metavar="FILE", parser=home_path, help="Where it goes.")] = Path(
        "shoal.toml"
    ),
) -> None:
    """Write a commented shoal.toml to start from."""
    from engine.cli import serve as command

    command.init(path)


@app.command(hidden=True)
def part(
    name: str,
    parent: Annotated[int, typer.Option("--parent")],
    listen: Annotated[int, typer.Option("--listen")] = -1,
) -> None:
    """A process of `shoal serve`, which starts it: see `engine.daemon.supervisor`."""
    from engine.cli import parts

    parts.work(name, parent, listen)


@app.command()
def ingest(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", parser=home_path, help="Files, or - for standard input."),
    ],
    store: Store = None,
    config: Config = None,
    model: Model = None,
    index: Index = None,
    batch: BatchSize = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad record.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Take files anew that were read before.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for more at the end of the file.")] = False,
    key_column: Annotated[str | None, typer.Option(metavar="NAME", help="Column or field of keys.")] = None,
    vector_column: Annotated[str | None, typer.Option(metavar="NAME", help="... of embeddings.")] = None,
    time_column: Annotated[str | None, typer.Option(metavar="NAME", help="... of event times.")] = None,
    payload_column: Annotated[str | None, typer.Option(metavar="NAME", help="... of payloads.")] = None,
    json: Json = False,
) -> None:
    """Upsert files into a store: .npz, .npy, .parquet, .feather, .arrow, .jsonl, .ndjson, .csv, .tsv.

    Text may be compressed (.gz, .zst). Interrupted, the same command goes on; finished, it changes
    nothing; grown, it goes on where it ended. Records that cannot be used are named on standard error with
    line or row and reason, and the rest goes on.
    """
    from connectors.files.source import FileSource, Options
    from engine.cli.ingest import ingest
    from engine.records import FIELDS

    chosen = settings(config, store__path=store, model__path=model, index__kind=index, batch__size=batch)
    if follow and len(files) != 1:
        raise typer.BadParameter("one file can be followed at a time", param_hint="--follow")
    fields = FIELDS.named(key=key_column, vector=vector_column, time=time_column, payload=payload_column)

    def open_source(path: Path, size: int) -> FileSource:
        options = Options(size, chosen.limits, fields, strict=strict, again=again, follow=follow)
        return FileSource(path, options)

    ingest(chosen, files, open_source, strict, json)


@app.command()
def query(
    key: Annotated[str, typer.Argument(metavar="KEY")],
    level: AnyLevel = None,
    store: Store = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Say which cluster an item is in."""
    from engine.cli import show

    show.query(settings(config, store__path=store), key, level, json)


@app.command()
def clusters(
    level: AnyLevel = None,
    order: Annotated[Literal["size", "newest", "id"], typer.Option("--order")] = "size",
    cursor: Cursor = None,
    limit: Limit = 20,
    store: Store = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """List the clusters, by default the largest first."""
    from engine.cli import show

    show.clusters(settings(config, store__path=store), level, order, cursor, limit, json)


@app.command()
def members(
    cluster: Annotated[int, typer.Argument(metavar="ID")],
    cursor: Cursor = None,
    limit: Limit = 20,
    store: Store = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """List the items of a cluster."""
    from engine.cli import show

    show.members(settings(config, store__path=store), cluster, cursor, limit, json)


@app.command()
def export(
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", parser=home_path, help="Default: standard output."),
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", metavar="FORM", help="ndjson or parquet. Default: by the file.")
    ] = None,
    level: Level = None,
    store: Store = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Write the clusters of all items, of one version, as NDJSON or Parquet."""
    from engine.cli import export as exporting

    exporting.export(settings(config, store__path=store), output, form, level, json)


@app.command()
def changes(
    after: Annotated[
        str | None,
        typer.Option("--after", metavar="EVENT-ID", callback=event_id, help="Only later ones, like 12-0."),
    ] = None,
    limit: Limit = 20,
    store: Store = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """List what happened to items and clusters, oldest first."""
    from engine.cli import show

    show.changes(settings(config, store__path=store), after, limit, json)


@app.command()
def check(
    sample: Annotated[
        int, typer.Option("--sample", min=0, help="Lists compared with exact search; 0: all.")
    ] = 1_000,
    seed: Annotated[int, typer.Option("--seed", help="Of the sample.")] = 0,
    store: Store = None,
    config: Config = None,
    model: Model = None,
    index: Index = None,
    tau: Tau = None,
    base_tau: BaseTau = None,
    json: Json = False,
) -> None:
    """Look at everything that has to hold of a store.

    Also beside a daemon. Changes nothing; ends with exit code 8 where something is wrong.
    """
    from engine.cli import operate

    chosen = settings(config, store__path=store, index__kind=index, **_model(model, tau, base_tau))
    operate.check(chosen, sample, seed, json)


@app.command()
def backup(
    target: Annotated[
        Path, typer.Argument(metavar="DIR", parser=home_path, help="A folder that is not there yet.")
    ],
    store: Store = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Copy a store, also while a daemon writes it.

    The copy is read again before it gets its name. It holds the input positions.
    """
    from engine.cli import operate

    operate.backup(settings(config, store__path=store), target, json)


@app.command()
def restore(
    folder: Annotated[
        Path, typer.Argument(metavar="BACKUP", parser=home_path, help="Made by `shoal backup`.")
    ],
    store: Store = None,
    force: Annotated[bool, typer.Option("--force", help="Move a store that is there aside.")] = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Put a backup in the place of a store, once it is known to be good."""
    from engine.cli import operate

    operate.restore(settings(config, store__path=store), folder, force, json)


@app.command()
def rebuild(
    store: Store = None,
    config: Config = None,
    model: Model = None,
    index: Index = None,
    tau: Tau = None,
    base_tau: BaseTau = None,
    json: Json = False,
) -> None:
    """Cluster a store's items anew, in a new generation.

    For another model or setting, or a fresh calibration. Cluster ids follow their members, and what
    changed is in the event log. A daemon goes on meanwhile.
    """
    from engine.cli import operate

    chosen = settings(config, store__path=store, index__kind=index, **_model(model, tau, base_tau))
    operate.rebuild(chosen, json)


@app.command()
def erase(
    key: Annotated[str, typer.Argument(metavar="KEY")],
    store: Store = None,
    config: Config = None,
    model: Model = None,
    json: Json = False,
) -> None:
    """Remove an item and every trace of it from a store.

    From the event log, the index and unused space, too; says where else it may remain.
    """
    from engine.cli import operate

    operate.erase(settings(config, store__path=store, model__path=model), key, json)


@app.command()
def compact(store: Store = None, config: Config = None, json: Json = False) -> None:
    """Write a store's file anew without unused space. A daemon goes on meanwhile."""
    from engine.cli import operate

    operate.compact(settings(config, store__path=store), json)


models.register(app)
spaces.register(app)


def main() -> None:
    """One sentence for every expected error, and its exit code."""
    if sys.argv[1:2] == ["part"]:  # the daemon says when it ends; a terminal's Ctrl-C goes to all
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, interrupt)
        signal.signal(signal.SIGINT, interrupt)
    try:
        app(prog_name="shoal")
    except ShoalError as problem:
        complain(f"shoal: {printable(str(problem))}")
        sys.exit(problem.exit_code)
    except Interrupted as stopped:
        complain(f"shoal: {stopped.sentence}")
        raise
