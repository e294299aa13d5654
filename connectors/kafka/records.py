"""Kafka records on their way to a batch. What cannot be used becomes a dead letter, with its own bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from engine.config import BoundsSettings
from engine.errors import Unusable
from engine.records import Parser, Record, read_key, read_vector
from engine.rows import Rows
from engine.times import read_time
from engine.types import Batch, DeadLetter

JSON, RAW = "application/json", "application/x-float32"
TIME_HEADER, TYPE_HEADER = "x-time", "content-type"


def to_batch(
    records: Sequence[Any], dim: int | None, bounds: BoundsSettings, now_ms: int
) -> tuple[Batch, int | None]:
    """The net effect of kafka-python's records, without positions; and the dimension, once it is known."""
    rows = Rows(bounds, now_ms)
    for number, record in enumerate(records):
        try:
            rows.add(number, _parse(record, Parser(bounds), now_ms))
        except Unusable as problem:
            rows.refuse(number, str(problem))
    settled = rows.settle(dim)
    most = bounds.dead_letter_max_bytes
    letters = [_dead_letter(records[number], reason, most) for number, reason in settled.rejected]
    return replace(settled.batch, rejected=letters), settled.dim


def _parse(record: Any, parser: Parser, now_ms: int) -> Record:
    key = read_key(record.key, parser.bounds)
    if record.value is None:
        return Record(key, None)
    headers = dict(record.headers)
    found = _value(record.value, key, headers, parser)
    told = headers.get(TIME_HEADER)
    if told is not None:
        return replace(found, time_ms=read_time(told.decode(errors="backslashreplace")))
    if found.time_ms is None and (record.timestamp or 0) > 0:
        return replace(found, time_ms=int(record.timestamp))
    return found


def _value(value: bytes, key: bytes, headers: Mapping[str, bytes | None], parser: Parser) -> Record:
    if len(value) > parser.bounds.record_max_bytes:
        most = parser.bounds.record_max_bytes
        raise Unusable(f"the value has {len(value)} bytes, more than the {most} allowed")
    kind = (headers.get(TYPE_HEADER) or JSON.encode()).decode(errors="backslashreplace")
    name = kind.partition(";")[0].strip().lower()
    if name == RAW:
        if len(value) % 4:
            raise Unusable(f"{len(value)} bytes are no float32 numbers")
        return Record(key, read_vector(np.frombuffer(value, "<f4")))
    if name != JSON:
        raise Unusable(f"the content-type is {kind!r}, not {JSON} or {RAW}")
    return parser.parse(value, key)


def _dead_letter(record: Any, reason: str, most: int) -> DeadLetter:
    """With the record's bytes, unless they are more than `most`; the topic has them still."""
    origin = f"{record.topic}/{record.partition}/{record.offset}"
    headers = [(name, value or b"") for name, value in record.headers]
    size = len(record.key or b"") + len(record.value or b"") + sum(len(n) + len(v) for n, v in headers)
    if size > most:
        return DeadLetter(
            f"{reason}; its {size} bytes are left out, for {most} are allowed", origin, None, None
        )
    return DeadLetter(reason, origin, record.key, record.value, headers)
