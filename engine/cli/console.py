"""What all commands print: JSON for programs, tables and sentences for people."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

from engine.errors import InputError


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    import orjson

    sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode())
    sys.stdout.write("\n")


def home_path(text: str) -> Path:
    """Read a path of the command line: shells leave the ~ in --store=~/folder alone. Raises InputError."""
    try:
        return Path(text).expanduser()
    except RuntimeError as problem:
        raise InputError(f"{text} cannot be used: {problem}") from None


def need_outputs(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Raise InputError where files cannot be written, or would replace another one of these: before the work.

    Outputs' folders have to exist.
    """
    taken = {each.resolve() for each in inputs}
    for out in outputs:
        if not out.parent.is_dir():
            raise InputError(f"{out.parent} is not a folder: name a file in one that exists.")
        if out.is_dir():
            raise InputError(f"{out} is a folder: name a file.")
        if out.resolve() in taken:
            raise InputError(f"{out} is read or written by this command already: name another file.")
        taken.add(out.resolve())


def need_companions(out: Path, companions: Sequence[Path]) -> None:
    """Raise InputError where companions of `out` are there without it: they are the user's."""
    if out.exists():
        return
    for each in companions:
        if each.exists():
            raise InputError(
                f"{each} is there already, and would be replaced by what belongs to {out}: move it, or name "
                "another file."
            )


def complain(sentence: str) -> None:
    """A sentence on standard error."""
    print(sentence, file=sys.stderr, flush=True)


def print_table(title: str, columns: Mapping[str, str], rows: Sequence[Sequence[object]]) -> None:
    """`columns`: heading -> "left" or "right"."""
    from rich.console import Console
    from rich.table import Table

    print(printable(title))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, side in columns.items():
        table.add_column(heading, justify="right" if side == "right" else "left", overflow="fold")
    for row in rows:
        table.add_row(*(printable(str(value)) for value in row))
    Console(highlight=False, markup=False).print(table)


def printable(text: str) -> str:
    """Keys are the users' bytes: control characters must not reach the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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
    """A signal handler for commands that have nothing to finish."""
    raise Interrupted(number)
