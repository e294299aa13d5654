"""Embeddings in text: JSON lines, one record or deletion a line, and tables of CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import Any, Protocol

from connectors.files.lines import count_lines, followed, is_compressed, is_pipe, lines, opened
from connectors.files.reading import Part, Reading, row_keys
from engine.errors import InputError, Unusable, counted
from engine.records import BOM, Plan, brief, is_utf8, text_payload, text_vector
from engine.rows import Rows
from engine.streams import Line

JSON_LINES = (".jsonl", ".ndjson")
CSV = (".csv", ".tsv")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BINARY = re.compile(rb"[\0-\x08\x0e-\x1f]")
_DELIMITERS = ",;\t|"
_FLAGS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


class Format(Protocol):
    """How lines encode records."""

    unit: str
    first: int
    has_keys: bool

    def entries(self, found: Iterator[Line | None]) -> Iterator[Line | None]:
        """Yield the text of one record each; None: nothing is available now."""
        ...

    def take(self, rows: Rows, number: int, entry: Line, stem: str) -> None:
        """Parse a record and add it to the rows. Raises Unusable."""
        ...


class TextReader:
    """Records in lines. `suffix`: of the format; "": the first line shows which it is."""

    def __init__(self, reading: Reading, suffix: str, follow: bool = False) -> None:
        self._reading, self._follow = reading, follow
        path = reading.path
        self.format: Format = JsonLines(reading) if suffix in ("", *JSON_LINES) else Csv(reading)
        self._sniffs = not suffix
        plain = not is_pipe(path) and not is_compressed(path)
        self.total = count_lines(path) if plain and not follow and suffix in JSON_LINES else None
        self._seekable = suffix in JSON_LINES and plain
        self._offset = 0  # of the record at which `parts` begins, where that is known

    def seek(self, offset: int) -> None:
        """Let `parts` begin at this byte. A table is read from its header nevertheless."""
        self._offset = offset if self._seekable else 0

    @property
    def unit(self) -> str:
        return self.format.unit

    @property
    def first(self) -> int:
        return self.format.first

    @property
    def has_keys(self) -> bool:
        return self.format.has_keys

    def parts(self, start: int, count: int, stem: str) -> Iterator[Part]:
        source = followed if self._follow else opened
        with source(self._reading.path, self._offset) as read:
            found = lines(read, self._reading.limits.record_max_bytes, self._offset)
            found = self._checked(found) if not self._offset else found
            number = start if self._offset else 0
            first, end, rows = start, self._offset, self._reading.rows()
            for entry in self._entries(found):
                if entry is not None:
                    end = entry.end
                    if number >= start:
                        try:
                            self.format.take(rows, number, entry, stem)
                        except Unusable as problem:
                            rows.refuse(number, str(problem))
                    number += 1
                if number >= first and (entry is None or number - first == count):
                    yield Part(first, number, rows, end)
                    first, rows = number, self._reading.rows()
            if number > first:
                yield Part(first, number, rows, end)

    def is_empty(self) -> bool:
        """Return whether there is no record. Raises InputError where a table's first line cannot be used."""
        with opened(self._reading.path) as read:
            entries = self._entries(self._checked(lines(read, self._reading.limits.record_max_bytes)))
            return not any(entry and (entry.text is None or entry.text.strip()) for entry in entries)

    def _checked(self, found: Iterator[Line | None]) -> Iterator[Line | None]:
        """Yield lines without the byte order mark. Raises InputError for UTF-16."""
        begun = False
        for line in found:
            if line is not None and line.text is not None and not begun:
                begun = True
                if line.text[:2] in _UTF16 or b"\0" in line.text[:4]:
                    raise InputError(
                        f"{self._reading.shown} is in UTF-16: convert it with iconv -f UTF-16 -t UTF-8."
                    )
                line = Line(line.text.removeprefix(BOM), line.end)
            yield line

    def _entries(self, found: Iterator[Line | None]) -> Iterator[Line | None]:
        """Yield the records; for a pipe the first line determines the format."""
        for line in found if self._sniffs else ():
            if line is not None and (line.text is None or line.text.strip()):
                if not (line.text or b"{").lstrip().startswith(b"{"):
                    self.format = Csv(self._reading, needs_keys=True)
                found = chain([line], found)
                break
            yield None
        yield from self.format.entries(found)


class JsonLines:
    """One JSON document a line: see `engine.records`. Blank lines are passed over."""

    unit, first, has_keys = "line", 1, True

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def entries(self, found: Iterator[Line | None]) -> Iterator[Line | None]:
        return found

    def take(self, rows: Rows, number: int, entry: Line, stem: str) -> None:
        if entry.text is None:
            most = self._reading.limits.record_max_bytes
            raise Unusable(f"the line is longer than the {most} bytes allowed")
        if entry.text.strip():
            rows.add(number, self._reading.parser.parse(entry.text))


class Csv:
    """A table: the first line names the columns, and separates them by comma, semicolon, tab or bar."""

    unit, first, has_keys = "row", 0, False

    def __init__(self, reading: Reading, needs_keys: bool = False) -> None:
        self._reading, self._needs_keys = reading, needs_keys
        self._delimiter, self._names = ",", list[str]()
        self._plan = Plan({}, ())

    def entries(self, found: Iterator[Line | None]) -> Iterator[Line | None]:
        """Yield rows of one line or, where a quoted field has breaks, of several."""
        held, end, most = b"", 0, self._reading.limits.record_max_bytes
        self._names = []
        for line in found:
            if line is None:
                yield None
            elif line.text is None or len(held) + len(line.text) > most:
                if not self._names:
                    raise InputError(
                        f"The first line of {self._reading.shown} is longer than the {most} bytes allowed:"
                        " it has to name the columns."
                    )
                held = b""
                yield Line(None, line.end)
            else:
                held, end = held + line.text, line.end
                if b'"' in held and (b'"' in line.text or held != line.text) and self._is_open(held):
                    held += b"\n"
                    continue
                text, held = held, b""
                if text.strip():
                    yield from self._headed(Line(text, end))
        if held:
            yield from self._headed(Line(held, end))

    def _headed(self, line: Line) -> Iterator[Line]:
        """Yield the row, unless it is the header."""
        if self._names:
            yield line
            return
        raw, shown = line.text or b"", self._reading.shown
        text = raw.decode(errors="replace")
        self._delimiter = self._delimiter_of(text)
        names, why = list[str](), "it is empty"
        try:
            names = _names(text, self._delimiter)
        except csv.Error as problem:
            if not _BINARY.search(raw) and b"\r" in raw:
                raise InputError(
                    f"{shown} ends its lines with carriage returns only: convert it with tr '\\r' '\\n'."
                ) from None
            why = brief(problem)
        if _BINARY.search(raw) or not (is_utf8(raw) or "vector" in self._reading.parser.plan(names).roles):
            raise InputError(
                f"{shown} is not text: a file of another format needs its own ending, like .parquet or .npz."
            )
        if not names:
            raise InputError(f"The first line of {shown} names no columns: {why}.")
        self._names = names
        self._plan = self._reading.plan(self._names, None, "column")
        self.has_keys = "key" in self._plan.roles
        if self._needs_keys and not self.has_keys:
            raise InputError("A table from a pipe needs a column of keys: name it with --key-column.")

    def _delimiter_of(self, head: str) -> str:
        """The most frequent one that tells a column of embeddings apart: names may have others in them."""
        ordered = sorted(_DELIMITERS, key=head.count, reverse=True)
        for each in ordered:
            with suppress(csv.Error):
                if "vector" in self._reading.parser.plan(_names(head, each)).roles:
                    return each
        return ordered[0]

    def take(self, rows: Rows, number: int, entry: Line, stem: str) -> None:
        if entry.text is None:
            most = self._reading.limits.record_max_bytes
            raise Unusable(f"the row is longer than the {most} bytes allowed")
        try:
            fields = _split(entry.text.decode(errors="surrogateescape"), self._delimiter)
        except csv.Error as problem:
            raise Unusable(f"broken CSV: {brief(problem)}") from None
        if len(fields) != len(self._names):
            raise Unusable(f"the row has {counted(len(fields), 'field')}, the first line {len(self._names)}")
        values = dict(zip(self._names, fields, strict=True))
        key = None if self.has_keys else row_keys(stem, number, 1)[0]
        rows.add(number, self._reading.parser.of(self._typed(values), key))

    def _typed(self, values: dict[str, str]) -> dict[str, Any]:
        """Convert the fields to values; an empty one is dropped, except for the key."""
        typed: dict[str, Any] = {name: values[name] for name in self._plan.ignored}
        for role, name in self._plan.roles.items():
            text = values[name]
            if role == "vector":
                typed[name] = text_vector(text)
            elif role == "delete":
                typed[name] = _FLAGS.get(text.strip().lower(), text or None)
            elif role == "payload":
                typed[name] = text_payload(text)
            elif text or role == "key":
                typed[name] = text
        return typed

    def _is_open(self, text: bytes) -> bool:
        """Return whether a quoted field continues in the next line."""
        shown = io.StringIO(text.decode(errors="surrogateescape"), newline="")
        try:
            for _ in csv.reader(shown, delimiter=self._delimiter, strict=True):
                pass
        except csv.Error as problem:
            return "unexpected end" in str(problem)
        return False


def _names(head: str, delimiter: str) -> list[str]:
    """The names of the columns. Raises csv.Error."""
    return [name.strip() for name in _split(head, delimiter)]


def _split(text: str, delimiter: str) -> list[str]:
    """The fields of a row. Raises csv.Error."""
    found = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    if len(found) > 1:
        raise csv.Error("a quotation mark stands inside a field")
    return found[0] if found else []
