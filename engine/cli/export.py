"""`export`: all assignments of one version, as NDJSON or Parquet, to a file or to standard output."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path

from engine.cli.console import print_json
from engine.config import Settings
from engine.errors import InputError, counted
from engine.levels import checked, read_finer
from engine.storage.export import FORMATS
from engine.storage.export import export as write
from engine.system.files import written

SUFFIXES = dict.fromkeys(("", ".ndjson", ".jsonl", ".json"), "ndjson") | dict.fromkeys(
    (".parquet", ".pq"), "parquet"
)


def export(
    settings: Settings, output: Path | None, form: str | None, level: str | None, as_json: bool
) -> None:
    """Export all assignments; a file appears when complete. Raises InputError, NoStore, CorruptStore."""
    granularity = checked(level, read_finer, "--level")
    ending = output.suffix.lower() if output else ""
    chosen = form or SUFFIXES.get(ending)
    if chosen is None:
        raise InputError(f"{output} ends in {ending}: name a .ndjson or .parquet file, or a --format.")
    if chosen not in FORMATS:
        raise InputError(f"--format is {' or '.join(FORMATS)}, not {chosen!r}.")
    if output is None:
        if as_json:
            raise InputError("--json prints a summary: name a file with -o for the export.")
        if chosen == "parquet" and sys.stdout.isatty():
            raise InputError("Parquet is not for a terminal: name a file with -o.")
        write(settings.store.path, sys.stdout.buffer, chosen, granularity)
        return
    with written(output) as file:
        head = write(settings.store.path, file, chosen, granularity)
    if as_json:
        print_json({**asdict(head), "file": os.fspath(output)})
    else:
        print(f"{output}: {counted(head.items, 'item')} of version {head.version}.")
