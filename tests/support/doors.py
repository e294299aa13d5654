"""The five doors by which a record may come, each called as the product calls it, in this process.

A record is given as a mapping of names to Python values, or to `Raw` JSON where Python has no such value.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson

from connectors.files.source import FileSource, Options
from connectors.http import HttpSource
from connectors.kafka.values import Decoder
from engine import submissions
from engine.api import bodies
from engine.api.ndjson import Piece
from engine.api.problems import Problem
from engine.collection import arguments
from engine.config import KafkaSettings, Settings
from engine.errors import InputError
from engine.records import Parser, Record
from engine.streams import SourceContext
from engine.types import Applied, Batch

NOW_MS = 1_760_000_000_000
DIM = 2
SETTINGS = Settings()
Values = Mapping[str, Any]


class Raw(bytes):
    """A value as it stands in JSON."""


@dataclass(frozen=True)
class Outcome:
    """What a door made of one record: kept, deleted, or refused for a reason."""

    key: bytes = b""
    vector: tuple[int, ...] | None = None  # on the grid; None: not kept
    time_ms: int = 0
    payload: bytes = b""
    deleted: bool = False
    doubtful: bool = False
    reason: str = ""


def document(values: Values) -> bytes:
    """A JSON object."""
    parts = [
        orjson.dumps(name) + b": " + (value if isinstance(value, Raw) else orjson.dumps(value))
        for name, value in values.items()
    ]
    return b"{" + b", ".join(parts) + b"}"


def without_key(values: Values) -> bytes:
    return document({name: value for name, value in values.items() if name != "key"})


def outcome(batch: Batch | None, reasons: Sequence[str], doubtful: bool = False) -> Outcome:
    """Of a batch that holds one record at most."""
    if reasons:
        assert batch is None or not (len(batch.keys) or len(batch.deletes))
        return Outcome(reason=reasons[0])
    if batch is None or (not len(batch.keys) and not len(batch.deletes)):
        return Outcome()
    if len(batch.deletes):
        return Outcome(batch.deletes[0], deleted=True)
    vector = tuple(batch.vectors[0].tolist())
    return Outcome(batch.keys[0], vector, int(batch.times[0]), bytes(batch.payloads[0]), doubtful=doubtful)


class Doors:
    """`folder`: for files."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "records.jsonl"
        self._pool = ThreadPoolExecutor(1)

    def all(self) -> dict[str, Callable[[bytes, bytes], Outcome]]:
        """Each door as it takes bytes: the key where it stands beside the document, and the document."""
        return {
            "file": lambda key, raw: self.file(raw),
            "bulk": lambda key, raw: self.bulk(raw),
            "put": lambda key, raw: self.put(key.decode(), raw),
            "kafka": self.kafka,
        }

    def file(self, raw: bytes) -> Outcome:
        self._path.write_bytes(raw + b"\n")
        os.utime(self._path, (NOW_MS / 1000, NOW_MS / 1000))
        try:
            source = FileSource(self._path, Options(100, SETTINGS.limits, clock=lambda: NOW_MS / 1000))
            source.begin({})
            chunks = list(source.chunks(DIM))
        except InputError as problem:  # the file as a whole: UTF-16
            return Outcome(reason=str(problem))
        reasons = [remark.reason for chunk in chunks for remark in chunk.rejects]  # type: ignore[attr-defined]
        batches = [chunk.batch for chunk in chunks if len(chunk.batch.keys) or len(chunk.batch.deletes)]
        return outcome(batches[0] if batches else None, reasons, any(chunk.doubts for chunk in chunks))

    def bulk(self, raw: bytes) -> Outcome:
        piece = Piece(Parser(SETTINGS.limits))
        for line in raw.split(b"\n"):
            piece.take(line)
        if piece.refused:
            return Outcome(reason=piece.refused[0][1])
        return self._submit(piece.records)

    def put(self, key: str, raw: bytes) -> Outcome:
        try:
            record = bodies.parse_record(Parser(SETTINGS.limits), raw, key)
        except Problem as problem:
            return Outcome(reason=str(problem.detail).rstrip("."))
        return self._submit([record])

    def kafka(self, key: bytes, raw: bytes) -> Outcome:
        place = {"topic": "t", "partition": 0, "offset": 0, "timestamp": -1, "headers": []}
        record = SimpleNamespace(key=key, value=raw, **place)
        settings = KafkaSettings(bootstrap="127.0.0.1:9", topic="t")
        settled, letters = Decoder(settings, SETTINGS.limits).settle([record], DIM, NOW_MS)
        return outcome(settled.batch, [letter.reason for letter in letters], bool(settled.doubts))

    def library(self, values: Values) -> Outcome:
        """As `Engine.upsert` and `Engine.delete` read their arguments."""
        given = {name: bytes(value) if isinstance(value, Raw) else value for name, value in values.items()}
        try:
            if given.get("delete") is True:
                [key] = arguments.keys_of([given["key"]], SETTINGS.limits)
                return Outcome(key, deleted=True)
            times = [given["time"]] if "time" in given else None
            payloads = [given["payload"]] if "payload" in given else None
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                columns = arguments.columns_of([given["key"]], [given["embedding"]], times, payloads)
                batch = arguments.batch_of(columns, SETTINGS.limits, DIM, NOW_MS)
            return outcome(batch, [], bool(told))
        except InputError as problem:
            return Outcome(reason=str(problem))

    def _submit(self, records: Sequence[Record]) -> Outcome:
        """Over the writer's socket format, into the source, to the batch."""
        if not records:
            return Outcome()
        context = SourceContext(SETTINGS, "id", lambda name: None, lambda: 1, lambda: DIM, lambda key: True)
        source = HttpSource(context, lambda: NOW_MS / 1000)
        body, blob = submissions.pack(records)
        asked = self._pool.submit(source.submit, {**body, "blob": blob, "timeout_s": 60.0})
        batch = source.poll(100, 60.0)
        if batch is not None:
            source.committed(Applied(2))
        answer = asked.result(60)
        source.close()
        return outcome(batch, [one["reason"] for one in answer["rejected"]], bool(answer["doubts"]))

    def close(self) -> None:
        self._pool.shutdown()
