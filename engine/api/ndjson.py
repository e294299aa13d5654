"""NDJSON: records line by line, taken in pieces; a broken line is named and the rest goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import orjson
from fastapi import Request

from engine import records
from engine.api import bodies
from engine.api.problems import Problem, of_error
from engine.api.store_reader import StoreReader
from engine.api.writer_client import WriterClient
from engine.config import Settings
from engine.errors import ShoalError
from engine.streams import Body
from engine.types import Float32

MEDIA_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl")
ERRORS_TOLD = 1_000
SLICE_BYTES = 2**14  # parsed at once: a millisecond or less


@dataclass(slots=True)
class Taken:
    """What has come of the lines so far."""

    version: int
    written: int = 0
    lines: int = 0
    refused: int = 0
    errors: list[Body] = field(default_factory=list)

    def refuse(self, line: int, reason: str) -> None:
        self.refused += 1
        if len(self.errors) < ERRORS_TOLD:
            self.errors.append({"line": line, "reason": reason})


class Piece:
    """Records of some lines, as the writer's `submit` takes them. `last`: the line before them."""

    def __init__(self, dim: int | None, last: int = 0) -> None:
        self.last = last
        self.count = self.bytes = 0  # of lines, whatever is in them
        self.lines: list[int] = []  # that have a record, from 1 on
        self.body: dict[str, list[Any]] = {"keys": [], "rows": [], "payloads": [], "times": []}
        self.refused: list[tuple[int, str]] = []
        self._dim = dim  # None: that of the first vector here
        self._vectors: list[Float32] = []

    @property
    def matrix(self) -> Float32 | None:
        return np.stack(self._vectors) if self._vectors else None

    def take(self, line: bytes | None) -> None:
        """A line; None: it was too long."""
        self.last += 1
        self.count += 1
        self.bytes += len(line or b"")
        reason = "the line is longer than [bounds] record_max_bytes" if line is None else self._parse(line)
        if reason:
            self.refused.append((self.last, reason))

    def _parse(self, line: bytes) -> str | None:
        """Takes the record in a line, or says why not."""
        if not line.strip():
            return None
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            return f"broken JSON: {str(error).splitlines()[0]}"
        if not isinstance(record, dict):
            return f"the line must be a JSON object, not {type(record).__name__}"
        key, time = record.get("key"), record.get("time")
        if not isinstance(key, str):
            return "the field key is missing, or is not a string"
        for name in "payload", "time":
            if fault := records.fault(record.get(name)):
                return f"the {name} is not JSON: {fault}"
        if record.get("delete") is True:
            self._add(key, -1, None, time)
            return None
        if "embedding" not in record:
            return "the field embedding is missing"
        vector = bodies.as_vector(record["embedding"], self._dim)
        if isinstance(vector, str):
            return vector
        self._dim = len(vector)
        self._add(key, len(self._vectors), record.get("payload"), time)
        self._vectors.append(vector)
        return None

    def _add(self, key: str, row: int, payload: Any, time: int | None) -> None:
        self.lines.append(self.last)
        for name, value in ("keys", key), ("rows", row), ("payloads", payload), ("times", time):
            self.body[name].append(value)


class Lines:
    """Cuts a body into lines as it comes. Holds no more of one than `most` bytes."""

    def __init__(self, most: int) -> None:
        self._most, self._rest, self._long = most, b"", False

    def feed(self, chunk: bytes) -> list[bytes | None]:
        """The lines that have ended by now; None for one of more than `most` bytes."""
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        found = [None if len(line) > self._most else line for line in whole]
        if found and self._long:
            found[0], self._long = None, False
        if len(self._rest) > self._most:
            self._rest, self._long = b"", True
        return found

    def end(self) -> list[bytes | None]:
        """The last line, where it does not end with a line break."""
        return [None] if self._long else [self._rest] if self._rest else []


async def take(request: Request, settings: Settings, reader: StoreReader, writer: WriterClient) -> Body:
    """Raises Problem; what came before it is in the store.

    Lines are parsed in the event loop, a few at a time: a thread would hold the interpreter longer.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in MEDIA_TYPES:
        raise Problem("wrong-type", f"The body must be {MEDIA_TYPES[0]}, not {kind or 'of no type'}.")
    view = reader.view()
    taken = Taken(view.version)
    try:
        async for piece in _pieces(request, settings, reader):
            await _submit(writer, piece, taken, settings.api.bulk_timeout_s)
    except (Problem, ShoalError) as error:
        problem = of_error(error) if isinstance(error, ShoalError) else error
        problem.extra |= {"lines": taken.lines, "version": taken.version}
        raise problem from None
    return {"collection": view.collection, **asdict(taken)}


async def _pieces(request: Request, settings: Settings, reader: StoreReader) -> AsyncIterator[Piece]:
    """The lines of the body, in pieces bounded in lines and bytes."""
    bounds = settings.api
    lines = Lines(settings.bounds.record_max_bytes)
    piece = Piece(reader.view().dim)
    async for chunk in bodies.chunks(request, bounds.bulk_max_bytes, bounds.patience_s):
        for start in range(0, len(chunk), SLICE_BYTES):
            for line in lines.feed(chunk[start : start + SLICE_BYTES]):
                piece.take(line)
                if piece.count == bounds.bulk_batch or piece.bytes > bounds.body_max_bytes:
                    yield piece
                    piece = Piece(reader.view().dim, piece.last)
            await asyncio.sleep(0)
    for line in lines.end():
        piece.take(line)
    if piece.count:
        yield piece


async def _submit(writer: WriterClient, piece: Piece, taken: Taken, timeout_s: float) -> None:
    refused = list(piece.refused)
    if piece.lines:
        answer = await writer.call("submit", piece.body, piece.matrix, timeout_s)
        refused += [(piece.lines[one["index"]], one["reason"]) for one in answer["rejected"]]
        taken.version = answer["version"]
        taken.written += len(piece.lines) - len(answer["rejected"])
    for line, reason in sorted(refused):
        taken.refuse(line, reason)
    taken.lines = piece.last
