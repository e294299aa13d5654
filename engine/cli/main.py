"""The command line: arguments here, what commands do in `engine.cli`; joins engine and connectors.

Whatever a command needs is imported when it runs: `--help` has to answer at once, and reading a store
needs neither torch nor dgl.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from engine import __version__
from engine.cli import models, spaces
from engine.cli.console import Interrupted, complain, interrupt, open_streams, printable
from engine.cli.options import (
    BatchSize,
    Chosen,
    Json,
    Model,
    OfIndex,
    OfModel,
    OfStore,
    OfTaus,
    path_argument,
    path_option,
    takes_records,
)
from engine.errors import ShoalError, StoreFull

if TYPE_CHECKING:
    from connectors.memory import MemorySource
    from engine.cli.digits import Digits

app = typer.Typer(
    help="Live clustering of embedding streams: which cluster is this item in now, and why?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AnyLevel = Annotated[
    str | None,
    typer.Option("--level", help="0 is the finest; +1, +2: themes of clusters. Default: final clusters."),
]
Limit = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Rows to print.")]

Cursor = Annotated[str | None, typer.Option("--cursor", help="Continue where a page ended.")]


@dataclass(frozen=True, slots=True)
class DemoSettings(Chosen):
    """Settings of the demo."""

    model: Model = None
    batch: BatchSize = None


@dataclass(frozen=True, slots=True)
class IngestSettings(OfIndex):
    """Settings of an ingestion."""

    batch: BatchSize = None


@dataclass(frozen=True, slots=True)
class FileOptions:
    """How files are read."""

    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad record.")] = False
    again: Annotated[bool, typer.Option("--again", help="Read files again from their beginning.")] = False
    follow: Annotated[bool, typer.Option("--follow", help="Wait for more at the end of the file.")] = False
    key_column: Annotated[str | None, typer.Option(metavar="NAME", help="Column or field of keys.")] = None
    vector_column: Annotated[str | None, typer.Option(metavar="NAME", help="... of embeddings.")] = None
    time_column: Annotated[str | None, typer.Option(metavar="NAME", help="... of event times.")] = None
    payload_column: Annotated[str | None, typer.Option(metavar="NAME", help="... of payloads.")] = None


def event_id(text: str | None) -> str | None:
    """Check an option's event id. Raises BadParameter, as for any other invalid argument."""
    from engine.events import format_event_id, read_event_id

    try:
        return None if text is None else format_event_id(read_event_id(text))
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from None


@app.callback(invoke_without_command=True)
def shoal(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"shoal {__version__}")
        raise typer.Exit


@app.command()
@takes_records
def demo(
    chosen: DemoSettings,
    exit_: Annotated[bool, typer.Option("--exit", help="End with the stream, print a summary.")] = False,
    json: Json = False,
    store: Annotated[
        Path | None,
        path_option("--store", metavar="DIR", about="Keep it here. Default: a temporary one."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the shuffle.")] = 0,
    rate: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Digits a second. Default: 60; with --exit all at once."),
    ] = None,
) -> None:
    """Stream handwritten digits through the whole engine.

    Watch the clusters here and on the page that the demo serves.
    """
    from connectors.memory import MemorySource, Record
    from engine.cli.demo import run
    from engine.cli.digits import payload

    settings = chosen.settings()

    def make_source(digits: Digits, size: int) -> MemorySource:
        records = [
            Record(str(row), pixels, payload(pixels, int(label)))
            for row, (pixels, label) in enumerate(zip(digits.pixels, digits.labels, strict=True))
        ]
        return MemorySource(f"digits:{seed}", records, size, settings.limits)

    run(settings, make_source, store, seed, rate, exit_, json)


@app.command()
@takes_records
def serve(
    chosen: OfIndex,
    check: Annotated[bool, typer.Option("--check", help="Check everything, then exit.")] = False,
) -> None:
    """Run the daemon: take records, serve API and page.

    Records come over HTTP or from Kafka, as the section [source] of the settings says. SIGTERM and
    Ctrl-C finish the current batch and stop it.
    """
    from engine.cli import parts
    from engine.cli import serve as command

    settings = chosen.settings()
    command.check(settings, parts.plan_source) if check else command.serve(settings)


@app.command()
def init(
    path: Annotated[Path, path_argument("FILE", "Where it goes.")] = Path("shoal.toml"),
) -> None:
    """Write a commented shoal.toml to start from."""
    from engine.cli import serve as command

    command.init(path)


@app.command()
@takes_records
def ingest(
    files: Annotated[list[Path], path_argument("FILE...", "Files, or - for standard input.")],
    chosen: IngestSettings,
    reading: FileOptions,
    json: Json = False,
) -> None:
    """Upsert files into a store.

    Formats: .npz, .npy, .parquet, .feather, .arrow, .jsonl, .ndjson, .csv, .tsv. Text may be compressed
    (.gz, .zst). Run again, the command continues an interrupted file, skips a
    finished one, and reads what a grown one has more. Rejected records are listed on standard error with
    line or row and reason; the others are ingested.
    """
    from connectors.files.source import Options
    from engine.cli.ingest import ingest
    from engine.config import BULK_BATCH
    from engine.records import FIELDS

    settings = chosen.settings()
    if reading.follow and len(files) != 1:
        raise typer.BadParameter("one file can be followed at a time", param_hint="--follow")
    named = {
        "key": reading.key_column,
        "vector": reading.vector_column,
        "time": reading.time_column,
        "payload": reading.payload_column,
    }
    options = Options(
        settings.batch.size or BULK_BATCH,
        settings.limits,
        FIELDS.named(**named),
        strict=reading.strict,
        again=reading.again,
        follow=reading.follow,
    )
    ingest(settings, files, options, json)


@app.command()
@takes_records
def query(
    key: Annotated[str, typer.Argument(metavar="KEY")],
    chosen: OfStore,
    level: AnyLevel = None,
    json: Json = False,
) -> None:
    """Print the cluster that an item is in."""
    from engine.cli import show

    show.query(chosen.settings(), key, level, json)


@app.command()
@takes_records
def clusters(
    chosen: OfStore,
    level: AnyLevel = None,
    order: Annotated[Literal["size", "newest", "id"], typer.Option("--order")] = "size",
    cursor: Cursor = None,
    limit: Limit = 20,
    json: Json = False,
) -> None:
    """List the clusters, by default the largest first."""
    from engine.cli import show

    show.clusters(chosen.settings(), level, order, cursor, limit, json)


@app.command()
@takes_records
def members(
    cluster: Annotated[int, typer.Argument(metavar="ID")],
    chosen: OfStore,
    cursor: Cursor = None,
    limit: Limit = 20,
    json: Json = False,
) -> None:
    """List the items of a cluster."""
    from engine.cli import show

    show.members(chosen.settings(), cluster, cursor, limit, json)


@app.command()
@takes_records
def export(
    chosen: OfStore,
    output: Annotated[
        Path | None, path_option("-o", "--output", metavar="FILE", about="Default: standard output.")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", metavar="ndjson|parquet", help="Default: by the file.")
    ] = None,
    level: Annotated[
        str | None, typer.Option("--level", help="0 is the finest. Default: final clusters.")
    ] = None,
    json: Json = False,
) -> None:
    """Write all items' clusters as NDJSON or Parquet.

    They are of one version of the store.
    """
    from engine.cli import export as exporting

    exporting.export(chosen.settings(), output, form, level, json)


@app.command()
@takes_records
def changes(
    chosen: OfStore,
    after: Annotated[
        str | None,
        typer.Option("--after", metavar="EVENT-ID", callback=event_id, help="Only later ones, like 12-0."),
    ] = None,
    limit: Limit = 20,
    json: Json = False,
) -> None:
    """List what happened to items and clusters, oldest first."""
    from engine.cli import show

    show.changes(chosen.settings(), after, limit, json)


@app.command()
@takes_records
def check(
    chosen: OfTaus,
    sample: Annotated[
        int, typer.Option("--sample", min=0, help="Lists compared with exact search; 0: all.")
    ] = 1_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the sample.")] = 0,
    json: Json = False,
) -> None:
    """Check every invariant of a store.

    Works while a daemon runs. Changes nothing; ends with exit code 8 where something is wrong.
    """
    from engine.cli import operate

    operate.check(chosen.settings(), sample, seed, json)


@app.command()
@takes_records
def backup(
    target: Annotated[Path, path_argument("DIR", "A folder that does not exist yet.")],
    chosen: OfStore,
    json: Json = False,
) -> None:
    """Copy a store, also while a daemon writes it.

    The copy is verified before it gets its name. It holds the input positions.
    """
    from engine.cli import operate

    operate.backup(chosen.settings(), target, json)


@app.command()
@takes_records
def restore(
    folder: Annotated[Path, path_argument("BACKUP", "Made by `shoal backup`.")],
    chosen: OfStore,
    force: Annotated[bool, typer.Option("--force", help="Move an existing store aside.")] = False,
    json: Json = False,
) -> None:
    """Replace a store by a backup, after verifying the backup."""
    from engine.cli import operate

    operate.restore(chosen.settings(), folder, force, json)


@app.command()
@takes_records
def rebuild(chosen: OfTaus, json: Json = False) -> None:
    """Cluster a store's items from scratch, in a new generation.

    For another model or setting, or a fresh calibration. Cluster ids follow their members, and what
    changed is in the event log. A daemon keeps running meanwhile.
    """
    from engine.cli import operate

    operate.rebuild(chosen.settings(), json, chosen.beyond_file())


@app.command()
@takes_records
def erase(key: Annotated[str, typer.Argument(metavar="KEY")], chosen: OfModel, json: Json = False) -> None:
    """Remove an item and every trace of it from a store.

    Also from the event log, the index and unused space. Prints where else it may remain.
    """
    from engine.cli import operate

    operate.erase(chosen.settings(), key, json)


@app.command()
@takes_records
def compact(chosen: OfStore, json: Json = False) -> None:
    """Rewrite the file without unused space.

    Works while a daemon runs.
    """
    from engine.cli import operate

    operate.compact(chosen.settings(), json)


models.register(app)
spaces.register(app)


def main() -> None:
    """Run the command line; print one sentence for an expected error and exit with its code."""
    open_streams()
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    try:
        try:
            app(prog_name="shoal")
        finally:
            sys.stdout.flush()  # a full disk is reported here; when Python ends, it is too late
    except ShoalError as problem:
        complain(f"shoal: {printable(str(problem))}")
        sys.exit(problem.exit_code)
    except OSError as problem:
        from engine.system.files import FULL

        if problem.errno not in FULL:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python writes what is left there when it ends
        complain(f"shoal: the output cannot be written: {problem.strerror}.")
        sys.exit(StoreFull.exit_code)
    except Interrupted as stopped:
        complain(f"shoal: {stopped.sentence}")
        raise
