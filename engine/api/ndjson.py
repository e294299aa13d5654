"""Bulk writes: NDJSON, processed in pieces as it arrives; bad lines are reported, the others are written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field

from fastapi import Request

from engine.api import bodies
from engine.api.problems import Problem, of_error
from engine.api.store_reader import StoreReader
from engine.api.write_queue import WriteQueue
from engine.config import Settings
from engine.errors import ShoalError, Unusable
from engine.records import Parser, Record
from engine.streams import Body, Lines

MEDIA_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl")
ERRORS_NAMED = 1_000
SLICE_BYTES = 2**14  # parsed at once: a millisecond or less


@dataclass(slots=True)
class Taken:
    """The answer, as it grows with the lines."""

    version: int
    written: int = 0
    lines: int = 0
    refused: int = 0
    errors: list[Body] = field(default_factory=list)
    doubts: list[Body] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)

    def refuse(self, line: int, reason: str) -> None:
        self.refused += 1
        if len(self.errors) < ERRORS_NAMED:
            self.errors.append({"line": line, "reason": reason})

    def doubt(self, line: int, reason: str) -> None:
        if len(self.doubts) < ERRORS_NAMED:
            self.doubts.append({"line": line, "reason": reason})


class Piece:
    """The records of some lines. `last`: the number of the line before them."""

    def __init__(self, parser: Parser, last: int = 0) -> None:
        self.last = last
        self.count = self.bytes = 0  # of lines, whatever is in them; bytes of a record, if it has more
        self.records: list[Record] = []
        self.lines: list[int] = []  # of the records, from 1 on
        self.refused: list[tuple[int, str]] = []
        self._parser = parser

    def take(self, line: bytes | None) -> None:
        """Add a line; None: it was too long."""
        self.last += 1
        self.count += 1
        self.bytes += len(line or b"")
        if line is None:
            self.refused.append((self.last, "the line is longer than [limits] record_max_bytes"))
        elif line.strip():
            try:
                record = self._parser.parse(line)
                self.records.append(record)
                self.lines.append(self.last)
                self.bytes += max(0, record.size - len(line))
            except Unusable as problem:
                self.refused.append((self.last, str(problem)))


async def take(request: Request, settings: Settings, reader: StoreReader, writes: WriteQueue) -> Body:
    """Write the lines of a body. Raises Problem; the lines that it counts are in the store.

    Lines are parsed in the event loop, a few at a time: a thread would hold the interpreter longer.
    """
    bodies.check_type(request, MEDIA_TYPES)
    view, parser = reader.view(), Parser(settings.limits)
    taken = Taken(view.version)
    try:
        async for piece in _pieces(request, settings, parser, writes):
            await _submit(piece, taken, writes, settings.api.bulk_timeout_s)
    except (Problem, ShoalError) as error:
        problem = of_error(error) if isinstance(error, ShoalError) else error
        problem.extra |= {"lines": taken.lines, "version": taken.version}
        raise problem from None
    taken.ignored = dict(parser.ignored)
    return {"collection": view.collection, **asdict(taken)}


async def _pieces(
    request: Request, settings: Settings, parser: Parser, writes: WriteQueue
) -> AsyncIterator[Piece]:
    """Yield the lines of the body in pieces, bounded in lines and bytes."""
    bounds, lines, piece = settings.api, Lines(settings.limits.record_max_bytes), Piece(parser)
    async for chunk in bodies.chunks(request, bounds.bulk_max_bytes, bounds.patience_s):
        for start in range(0, len(chunk), SLICE_BYTES):
            for line in lines.feed(chunk[start : start + SLICE_BYTES]):
                piece.take(line.text)
                if piece.count == writes.records_max or piece.bytes > writes.bytes_max:
                    yield piece
                    piece = Piece(parser, piece.last)
            await asyncio.sleep(0)
    for line in lines.end():
        piece.take(line.text)
    if piece.count:
        yield piece


async def _submit(piece: Piece, taken: Taken, writes: WriteQueue, timeout_s: float) -> None:
    refused = list(piece.refused)
    writes.rejected += len(refused)
    if piece.records:
        outcome = await writes.submit(piece.records, timeout_s)
        refused += [(piece.lines[at], reason) for at, reason in outcome.rejected.items()]
        taken.version = outcome.version
        taken.written += outcome.written(len(piece.records))
        for at, reason in sorted(outcome.doubts.items()):
            taken.doubt(piece.lines[at], reason)
    for line, reason in sorted(refused):
        taken.refuse(line, reason)
    taken.lines = piece.last
