"""NDJSON: records line by line, taken in pieces; a broken line is named and the rest goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from fastapi import Request

from engine import bodies
from engine.errors import WriterAway, WriterBusy
from engine.problems import Problem
from engine.service import Body, Service
from engine.types import Float32

MEDIA_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl")
ERRORS_TOLD = 1_000

Line = tuple[int, "bytes | None"]  # its number from 1 on; None: too long


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


@dataclass(slots=True)
class Piece:
    """Records of some lines, as the writer's `submit` takes them."""

    lines: list[int] = field(default_factory=list)  # of each record
    body: dict[str, list[Any]] = field(
        default_factory=lambda: {"keys": [], "rows": [], "payloads": [], "times": []}
    )
    vectors: list[Float32] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)
    dim: int | None = None

    @property
    def matrix(self) -> Float32 | None:
        return np.stack(self.vectors) if self.vectors else None

    def add(self, line: int, key: str, row: int, payload: Any, time: int | None) -> None:
        self.lines.append(line)
        for name, value in ("keys", key), ("rows", row), ("payloads", payload), ("times", time):
            self.body[name].append(value)


async def take(service: Service, request: Request) -> Body:
    """Raises Problem; what came before it is in the store."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in MEDIA_TYPES:
        raise Problem("wrong-type", f"The body must be {MEDIA_TYPES[0]}, not {kind or 'of no type'}.")
    view = service.view()
    taken = Taken(view.version)
    try:
        async for lines in _pieces(service, request):
            dim = view.dim
            piece = await service.thread(lambda lines=lines, dim=dim: parse(lines, dim))  # type: ignore[misc]
            await _submit(service, piece, taken)
            taken.lines = lines[-1][0]
    except (WriterAway, WriterBusy) as error:
        kind = "writer-away" if isinstance(error, WriterAway) else "writer-busy"
        raise Problem(kind, f"{error}", lines=taken.lines, version=taken.version) from None
    names = ("version", "written", "lines", "refused", "errors")
    return {"collection": view.collection, **{name: getattr(taken, name) for name in names}}


def parse(lines: Sequence[Line], dim: int | None) -> Piece:
    """`dim`: of the collection; None: of the first vector here."""
    piece = Piece(dim=dim)
    for number, line in lines:
        reason = (
            "the line is longer than [bounds] record_max_bytes"
            if line is None
            else _parse(piece, number, line)
        )
        if reason:
            piece.refused.append((number, reason))
    return piece


def _parse(piece: Piece, number: int, line: bytes) -> str | None:
    """Takes a line into the piece, or says why not."""
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
    if record.get("delete") is True:
        piece.add(number, key, -1, None, time)
        return None
    if "embedding" not in record:
        return "the field embedding is missing"
    vector = bodies.as_vector(record["embedding"], piece.dim)
    if isinstance(vector, str):
        return vector
    piece.dim = len(vector)
    piece.add(number, key, len(piece.vectors), record.get("payload"), time)
    piece.vectors.append(vector)
    return None


async def _submit(service: Service, piece: Piece, taken: Taken) -> None:
    refused = list(piece.refused)
    if piece.lines:
        timeout_s = service.bounds.bulk_timeout_s
        answer = await service.call("submit", piece.body, piece.matrix, timeout_s)
        refused += [(piece.lines[one["index"]], one["reason"]) for one in answer["rejected"]]
        taken.version = answer["version"]
        taken.written += len(piece.lines) - len(answer["rejected"])
    for line, reason in sorted(refused):
        taken.refuse(line, reason)


async def _pieces(service: Service, request: Request) -> AsyncIterator[list[Line]]:
    """Lines of the body, in pieces bounded in lines and bytes."""
    bounds, most = service.bounds, service.settings.bounds.record_max_bytes
    lines: list[Line] = []
    size = number = 0
    async for line in _lines(request, bounds.bulk_max_bytes, most, bounds.patience_s):
        number += 1
        lines.append((number, line))
        size += len(line or b"")
        if len(lines) == bounds.bulk_batch or size > bounds.body_max_bytes:
            yield lines
            lines, size = [], 0
    if lines:
        yield lines


async def _lines(request: Request, limit: int, most: int, patience_s: float) -> AsyncIterator[bytes | None]:
    """None for a line of more than `most` bytes; holds no more than that and a chunk."""
    rest, long = b"", False
    async for chunk in bodies.chunks(request, limit, patience_s):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield None if long or len(line) > most else line
            long = False
        if len(rest) > most:
            rest, long = b"", True
    if rest or long:
        yield None if long or len(rest) > most else rest
