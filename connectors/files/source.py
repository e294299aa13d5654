"""A file as a source of batches.

Delivery: each batch carries the file's next position. A store that commits both together takes every record
exactly once, however often it is interrupted. A finished file changes nothing when it is read again, and one
that has grown continues where it ended. A pipe has no position: records sent again are upserted again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from connectors.chunks import Chunk, Remark
from connectors.files.arrow import ArrowReader
from connectors.files.lines import COMPRESSED, Replaced, is_compressed, is_pipe
from connectors.files.npz import NumpyReader
from connectors.files.positions import Mark, Prefix, digest_of, name_of, own_stem, owner_bytes, tail_digest
from connectors.files.reading import STDIN, Part, Reader, Reading
from connectors.files.text import CSV, JSON_LINES, TextReader
from engine.config import LimitsSettings
from engine.errors import InputError, counted
from engine.records import FIELDS, Fields, Parser

NUMPY, ARROW = (".npz", ".npy"), (".parquet", ".feather", ".arrow")
TEXT = (*JSON_LINES, *CSV)


@dataclass(frozen=True, slots=True)
class Options:
    """How files are read. `clock` gives seconds since 1970."""

    size: int  # records of a batch, at most
    limits: LimitsSettings = field(default_factory=LimitsSettings)
    fields: Fields = FIELDS
    strict: bool = False  # raise InputError at the first record that cannot be used, without its chunk
    again: bool = False  # read from the beginning, whatever the stored position
    follow: bool = False  # wait for more at the end
    default_ms: int | None = None  # the time of records that have none; None: when the file was written
    clock: Callable[[], float] = time.time


class FileSource:
    """One file. Raises InputError where it as a whole cannot be used.

    `begin` says where reading starts, `chunks` reads. `notes`: sentences for people on how the file is taken.
    """

    def __init__(self, path: Path, options: Options) -> None:
        self.path, self._options = path, options
        self.shown = "standard input" if path == STDIN else str(path)
        self._piped = is_pipe(path)
        now_ms = int(options.clock() * 1000)
        try:
            if not self._piped:
                path.open("rb").close()
            written_ms = now_ms if self._piped else path.stat().st_mtime_ns // 1_000_000
            default_ms = written_ms if options.default_ms is None else options.default_ms
            self._parser = Parser(options.limits, options.fields)
            self._reader = self._open(Reading(path, options.limits, self._parser, now_ms, default_ms))
        except OSError as problem:
            raise InputError(f"{path} cannot be read: {problem.strerror or problem}.") from None
        self.notes: list[str] = []
        self._name: str | None = None  # of the position; None: it has none
        self._mark, self._stem = Mark(), path.stem

    def _open(self, reading: Reading) -> Reader:
        suffix, follow = format_of(self.path), self._options.follow
        if follow and (self._piped or suffix not in TEXT or is_compressed(self.path)):
            raise InputError(f"{self.path} cannot be followed: only {', '.join(TEXT)} can.")
        if self._piped:
            return TextReader(reading, suffix if suffix in TEXT else "")
        if suffix in TEXT:
            text = TextReader(reading, suffix, follow)
            if not follow and text.is_empty():
                raise self._without_records()
            return text
        if suffix in NUMPY + ARROW:
            table = NumpyReader(reading) if suffix in NUMPY else ArrowReader(reading)
            if table.total == 0:
                raise self._without_records()
            return table
        known = ", ".join((*NUMPY, *ARROW, *TEXT))
        raise InputError(
            f"{self.path} must end in one of {known}, or be text with {' or '.join(COMPRESSED)} appended."
        )

    def _without_records(self) -> InputError:
        return InputError(f"{self.path} holds no records: name another file.")

    @property
    def total(self) -> int | None:
        """Records of the whole file; None: not known before they are read."""
        return self._reader.total

    @property
    def ignored(self) -> Mapping[str, int]:
        """Names that were not understood, and in how many records."""
        return self._parser.ignored

    def begin(self, positions: Mapping[str, bytes]) -> Mark:
        """Return the position where reading starts, by a store's positions."""
        if not self._piped:
            self._mark = self._find(positions)
            self._stem = own_stem(self.path, positions)
        return self._mark

    def chunks(self, dim: int | None = None) -> Iterator[Chunk]:
        """Yield chunks from where `begin` said. `dim`: the collection's, None: that of most first vectors.

        A chunk without rows: nothing comes at the moment.
        """
        while True:
            try:
                for part in self._reader.parts(self._mark.row, self._options.size, self._stem):
                    chunk = self._chunk(part, dim)
                    dim = chunk.dim
                    yield chunk
                return
            except Replaced:
                self.notes.append(f"{self.path} was replaced: the new file is read from its beginning.")
                self._mark = Mark()
                self._seek(0)

    def parts(self) -> Iterator[Part]:
        """Yield all records from the first one on, as they are read, without regard to positions."""
        return self._reader.parts(0, self._options.size, self._stem)

    def _find(self, positions: Mapping[str, bytes]) -> Mark:
        """Return the position of this content, or of its longest known beginning."""
        path, size = self.path, self.path.stat().st_size
        grows = isinstance(self._reader, TextReader) and not is_compressed(path)
        digest, prefix = digest_of(path, positions, grows)
        follow = name_of("follow", str(path.absolute()))
        self._name = follow if self._options.follow else f"file:{digest}"
        if self._options.again:
            return Mark(size=size)
        if known := positions.get(f"file:{digest}"):
            return replace(Mark.load(known), size=size)
        mark = Mark.load(positions.get(follow))
        if mark.row and mark.offset <= size and mark.tail == tail_digest(path, mark.offset):
            self._seek(mark.offset)
            return replace(mark, size=size)
        return self._behind(prefix, size) if prefix else Mark(size=size)

    def _behind(self, prefix: Prefix, size: int) -> Mark:
        """Return where to continue in a file that begins as a known one does."""
        mark = prefix.mark
        ended = mark.offset == mark.size
        self.notes.append(
            f"{self.path} begins as a file that was read before: reading continues after "
            f"{counted(mark.row, 'record')}."
        )
        if not ended or prefix.breaks:
            self._seek(mark.offset)
        return replace(mark, row=mark.row - 1 if ended and prefix.cut else mark.row, size=size)

    def _seek(self, offset: int) -> None:
        if isinstance(self._reader, TextReader):
            self._reader.seek(offset)

    def _chunk(self, part: Part, dim: int | None) -> Chunk:
        settled = part.rows.settle(dim)
        rejects = [self.remark(number, reason) for number, reason in settled.rejected]
        if rejects and self._options.strict:
            raise InputError(f"{rejects[0]} (stopped there: --strict).")
        tail = tail_digest(self.path, part.offset) if self._options.follow else b""
        mark = self._mark
        batch, rows = settled.batch, part.end - part.first
        blank = rows - len(batch.keys) - len(batch.deletes) - settled.superseded - len(rejects)
        rejected = mark.rejected + len(rejects)
        self._mark = Mark(part.end, part.offset, mark.size, rejected, tail, mark.blank + blank)
        positions = {self._name: self._mark.dump()} if self._name else {}
        if self._name and not self._reader.has_keys:
            positions[name_of("keys", self._stem)] = owner_bytes(self.path)
            if not part.first and self._stem != self.path.stem:
                self.notes.append(
                    f"{self.path}: its keys are {self._stem}:0 and so on, for another file has"
                    f" {self.path.stem}:0."
                )
        return Chunk(
            replace(batch, positions=positions),
            rejects,
            [self.remark(number, reason) for number, reason in settled.doubts],
            rows,
            settled.superseded,
            settled.dim,
            blank,
        )

    def remark(self, number: int, reason: str) -> Remark:
        """Return a remark about a record, with its place for people."""
        name = self.shown if self.path == STDIN else self.path.name
        return Remark(name, self.place(number), reason)

    def place(self, number: int) -> str:
        """Return a record's place for people: a line from 1, or a row from 0."""
        return f"{self._reader.unit} {number + self._reader.first}"


def format_of(path: Path) -> str:
    """Return the suffix that names the format, in lower case: `.jsonl` for `a.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""
