"""What the readers of all formats share: their settings, and the parts that they yield."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.config import LimitsSettings
from engine.errors import InputError
from engine.records import FIELDS, Parser, Plan
from engine.rows import Rows

Array = NDArray[Any]
STDIN = Path("-")
CHUNK_BYTES = 2**20
SHOWN_MAX = 200  # characters of the names that a file has instead
CHOSEN = ("key", "time", "payload")  # roles for which a column may be named, and that no file needs


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file is read. `now_ms`: the clock when reading began."""

    path: Path
    limits: LimitsSettings
    parser: Parser
    now_ms: int
    default_ms: int  # the time of records that have none

    @property
    def shown(self) -> str:
        return "standard input" if self.path == STDIN else str(self.path)

    def rows(self) -> Rows:
        return Rows(self.limits, self.default_ms, self.now_ms)

    def plan(self, names: list[str], count: int | None, what: str) -> Plan:
        """Return the roles of a file's columns. Raises InputError where none, or more than one, fits a role.

        `count`: rows, by which ignored columns are counted; None: the reader counts them.
        """
        plan = self.parser.plan(names)
        if "vector" not in plan.roles:
            wanted = self.parser.fields.vector
            raise InputError(
                f"{self.shown} is not an embedding file: it has no {what} {wanted[0]}, but {_listed(names)}. "
                "Rename the one that holds embeddings, or name it with `shoal ingest --vector-column`."
            )
        self.need_chosen(plan.roles, names, what)
        if twice := [name for name in plan.roles.values() if names.count(name) > 1]:
            raise InputError(f"{self.shown} has two columns {twice[0]}: rename one of them.")
        if count:
            self.parser.ignore(plan.ignored, count)
        return plan

    def need_chosen(self, roles: Mapping[str, str], names: Sequence[str], what: str) -> None:
        """Raise InputError where a name was chosen for a role, and no column has it: it may be misspelled."""
        for role in CHOSEN:
            wanted = getattr(self.parser.fields, role)
            if wanted != getattr(FIELDS, role) and role not in roles:
                raise InputError(
                    f"{self.shown} has no {what} {wanted[0]}, but {_listed(names)}: name another with "
                    f"--{role}-column, or leave that out."
                )


def _listed(names: Sequence[str]) -> str:
    held = ", ".join(names) or "nothing"
    return held if len(held) <= SHOWN_MAX else f"{held[:SHOWN_MAX]}..."


@dataclass(frozen=True, slots=True)
class Part:
    """Records from number `first` to before `end`. `offset`: the byte after them, 0: unknown."""

    first: int
    end: int
    rows: Rows
    offset: int = 0


class Reader(Protocol):
    """A file in one format."""

    @property
    def total(self) -> int | None:
        """Records; None: not known before they are read."""
        ...

    @property
    def has_keys(self) -> bool:
        """False: records are called after the file and their row."""
        ...

    @property
    def unit(self) -> str:
        """Of a record, for people: row or line."""
        ...

    @property
    def first(self) -> int:
        """The number of the first record, for people."""
        ...

    def parts(self, start: int, count: int, stem: str) -> Iterator[Part]:
        """Yield parts from record `start` on, of at most `count`. `stem`: begins keys where there are none.

        A part without records: nothing comes at the moment. Raises InputError.
        """
        ...


def row_keys(stem: str, first: int, count: int) -> list[str]:
    """Return keys for rows that have none."""
    return [f"{stem}:{row}" for row in range(first, first + count)]


def plain(value: Any) -> Any:
    """Convert a value of a column to Python's own; bytes become text."""
    raw = value.item() if isinstance(value, np.generic) and value.dtype.kind not in "Mm" else value
    return raw.decode(errors="replace") if isinstance(raw, bytes) else raw
