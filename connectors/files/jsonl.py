"""Embeddings as JSON lines: one record, or one deletion, a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import orjson

from connectors.files.records import (
    CHUNK_BYTES,
    Rows,
    Unusable,
    brief,
    checked_key,
    checked_numbers,
    checked_payload,
    checked_time,
    modified_ms,
)
from engine.config import BoundsSettings


class JsonLinesReader:
    """`{"key": .., "embedding": [..], "payload": .., "time": ms}`, or `{"key": .., "delete": true}`."""

    def __init__(self, path: Path, bounds: BoundsSettings) -> None:
        self._path, self._bounds = path, bounds
        self._default_ms = modified_ms(path)
        self.total = _count_lines(path)

    def rows(self, start: int, count: int) -> Iterator[Rows]:
        with self._path.open("rb") as stream:
            for _ in range(start):
                self._line(stream)
            at = start
            while at < self.total:
                rows = Rows(at, min(at + count, self.total))
                for number in range(rows.first, rows.end):
                    self._take(self._line(stream), number, rows)
                at = rows.end
                yield rows

    def _line(self, stream: BinaryIO) -> bytes | None:
        """The next line, None for one that is too long; never holds more than the bound."""
        most = self._bounds.record_max_bytes
        line = stream.readline(most + 1)
        if len(line) <= most or line.endswith(b"\n"):
            return line
        while line and not line.endswith(b"\n"):
            line = stream.readline(CHUNK_BYTES)
        return None

    def _take(self, line: bytes | None, number: int, rows: Rows) -> None:
        try:
            self._parse(line, number, rows)
        except Unusable as problem:
            rows.rejected.append((number, str(problem)))

    def _parse(self, line: bytes | None, number: int, rows: Rows) -> None:
        if line is None:
            raise Unusable(f"the line is longer than the {self._bounds.record_max_bytes} bytes allowed")
        if not line.strip():
            return
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as problem:
            raise Unusable(f"broken JSON: {brief(problem)}") from None
        if not isinstance(record, dict):
            raise Unusable(f"the line must be a JSON object, not {type(record).__name__}")
        if "key" not in record:
            raise Unusable("the field key is missing")
        key = checked_key(record["key"], self._bounds)
        if record.get("delete") is True:
            rows.deletes.append((number, key))
            return
        if "embedding" not in record:
            raise Unusable("the field embedding is missing")
        vector = checked_numbers(record["embedding"])
        time = checked_time(record.get("time"), self._default_ms)
        payload = checked_payload(record.get("payload"), self._bounds)
        rows.numbers.append(number)
        rows.keys.append(key)
        rows.add_vector(vector)
        rows.times.append(time)
        rows.payloads.append(payload)


def _count_lines(path: Path) -> int:
    lines, last = 0, b"\n"
    with path.open("rb") as stream:
        while piece := stream.read(CHUNK_BYTES):
            lines += piece.count(b"\n")
            last = piece[-1:]
    return lines + (last != b"\n")
