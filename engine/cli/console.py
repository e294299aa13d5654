"""What all commands print: JSON for programs, tables and sentences for people."""

from __future__ import annotations

import filecmp
import itertools
import json
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

from engine.errors import InputError, counted

FIRST = 5  # of a file's records that cannot be used are named where people read
PIPE_WIDTH = 10_000  # of a table that no terminal shows: nothing is wrapped


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    import orjson

    sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode())
    sys.stdout.write("\n")


def home_path(text: str) -> Path:
    """Read a path of the command line: shells leave the ~ in --store=~/folder alone. Raises InputError."""
    if not text:  # to Path it is the current folder
        raise InputError("A path on the command line is empty: name a file or a folder, or leave it out.")
    try:
        return Path(text).expanduser()
    except RuntimeError as problem:
        raise InputError(f"{text} cannot be used: {problem}") from None


def need_outputs(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Raise InputError where files cannot be written, or would replace another one of these: before the work.

    Outputs' folders have to exist, and to take a file.
    """
    taken = {each.resolve() for each in inputs}
    for out in outputs:
        if not out.parent.is_dir():
            raise InputError(f"{out.parent} is not a folder: name a file in one that exists.")
        if out.is_dir():
            raise InputError(f"{out} is a folder: name a file.")
        if out.is_file() or not out.exists():  # a device is written into
            _need_place(out)
        if out.resolve() in taken:
            raise InputError(f"{out} is read or written by this command already: name another file.")
        taken.add(out.resolve())


def _need_place(out: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=out.resolve().parent):
            pass
    except OSError as problem:
        raise InputError(f"{out} cannot be written: {problem.strerror or problem}.") from None


def need_ending(out: Path, ending: str) -> None:
    """Raise InputError where a file to write is not named for what it will hold: it may be the user's."""
    if out.suffix.lower() != ending and (out.is_file() or not out.exists()):  # a device has no ending
        raise InputError(f"{out} does not end in {ending}: name a file that does.")


def need_distinct(files: Sequence[Path]) -> None:
    """Raise InputError where one file is named twice to read, which would weigh it twice or judge on it.

    A copy under another name is the same file.
    """
    for other, each in itertools.combinations(files, 2):
        if each.resolve() == other.resolve():
            raise InputError(f"{each} is named twice: name each file once.")
        if each.is_file() and other.is_file() and filecmp.cmp(each, other, shallow=False):
            raise InputError(f"{each} and {other} are the same data: name them once.")


def need_companions(out: Path, companions: Sequence[Path]) -> None:
    """Raise InputError where companions of `out` exist without it: they are the user's."""
    if out.exists():
        return
    for each in companions:
        if each.exists():
            raise InputError(
                f"{each} exists already, and would be replaced by what belongs to {out}: move it, or name "
                "another file."
            )


def open_streams() -> None:
    """Open what the caller has closed of standard output and error, so that it can be written."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for as long as the process lives)


def complain(sentence: str) -> None:
    """Print a sentence on standard error."""
    print(sentence, file=sys.stderr, flush=True)


def tell_unused(source: object, left_out: Sequence[object], superseded: int) -> None:
    """Say how many records of a file have no part in what follows, and why; the first ones one by one."""
    for remark in left_out[:FIRST]:
        complain(f"left out: {printable(str(remark))}")
    if left_out:
        complain(f"{source}: left out {counted(len(left_out), 'record')} that cannot be used")
    if superseded:
        records = counted(superseded, "record")
        complain(f"{source}: left out {records}: a later one has the same key, and counts")


def tell_noise(source: object, names: Sequence[str], classes: Any) -> None:
    """Say that the label -1 is taken for a class, where others mean noise by it.

    `classes`: the index in `names` of each item's label. Where 1 is the only other one, -1 is its opposite.
    """
    if "-1" not in names or set(names) <= {"-1", "0", "1"}:
        return
    count = int((classes == list(names).index("-1")).sum())
    complain(
        f"{source}: the label -1 of {counted(count, 'item')} is taken for a class of its own; leave them out "
        "if it means that they have none"
    )


def print_table(title: str, columns: Mapping[str, str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table. `columns`: heading -> "left" or "right"."""
    from rich.console import Console
    from rich.table import Table

    print(printable(title))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, side in columns.items():
        table.add_column(heading, justify="right" if side == "right" else "left", overflow="fold")
    for row in rows:
        table.add_row(*(printable(str(value)) for value in row))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(table)


def printable(text: str) -> str:
    """Escape control characters, which must not reach the terminal: keys are the users' bytes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def toml_value(value: object) -> str:
    """Return a string, number, truth value or list of them as TOML has it; None as the empty string."""
    return json.dumps("" if value is None else value, ensure_ascii=False)


def moment(time_ms: int) -> str:
    try:
        return datetime.fromtimestamp(time_ms / 1000, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{time_ms} ms"


class Interrupted(SystemExit):
    """A signal ended the command; the exit code is 128 + its number, as shells have it."""

    def __init__(self, number: int, where: str = "") -> None:
        super().__init__(128 + number)
        self.sentence = f"stopped by {signal.Signals(number).name}{where}."


class Stop:
    """Within the block SIGTERM and SIGINT only set `asked`; a second one ends the process at once."""

    def __init__(self) -> None:
        self.asked = 0  # the signal's number
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *problem: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        signal.signal(number, signal.SIG_DFL)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal in a command that has nothing to finish: raise Interrupted."""
    raise Interrupted(number)
