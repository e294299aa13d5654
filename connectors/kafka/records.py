"""The formats of Kafka records: an embedding as JSON or as raw float32, or a null that deletes its key.

What cannot be used becomes a dead letter, with the record's own bytes and where it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson

from connectors.files.chunks import Origin, to_chunk
from connectors.files.records import (
    Array,
    Rows,
    Unusable,
    brief,
    checked_key,
    checked_numbers,
    checked_payload,
    checked_time,
)
from engine.config import BoundsSettings
from engine.types import Batch, DeadLetter

JSON, RAW = "application/json", "application/x-float32"
TIME_HEADER, TYPE_HEADER = "x-time", "content-type"
_ORIGIN = Origin("kafka", "kafka")


def to_batch(
    records: Sequence[Any], dim: int | None, bounds: BoundsSettings, now_ms: int
) -> tuple[Batch, int | None]:
    """The net effect of kafka-python's records, without positions; and the dimension, once it is known."""
    rows = Rows(0, len(records))
    for number, record in enumerate(records):
        try:
            _take(record, number, rows, bounds, now_ms)
        except Unusable as problem:
            rows.rejected.append((number, str(problem)))
    chunk = to_chunk(rows, dim, _ORIGIN)
    most = bounds.dead_letter_max_bytes
    letters = [_dead_letter(records[reject.number], reject.reason, most) for reject in chunk.rejects]
    return replace(chunk.batch, positions={}, rejected=letters), chunk.dim


def _take(record: Any, number: int, rows: Rows, bounds: BoundsSettings, now_ms: int) -> None:
    if record.key is None:
        raise Unusable("the key is missing")
    key = checked_key(record.key, bounds)
    if record.value is None:
        rows.deletes.append((number, key))
        return
    if len(record.value) > bounds.record_max_bytes:
        size = len(record.value)
        raise Unusable(f"the value has {size} bytes, more than the {bounds.record_max_bytes} allowed")
    headers = dict(record.headers)
    vector, payload = _parse(record.value, headers, bounds)
    time = _time(record, headers, now_ms)
    rows.numbers.append(number)
    rows.keys.append(key)
    rows.add_vector(vector)
    rows.times.append(time)
    rows.payloads.append(payload)


def _parse(value: bytes, headers: dict[str, bytes | None], bounds: BoundsSettings) -> tuple[Array, bytes]:
    kind = (headers.get(TYPE_HEADER) or JSON.encode()).decode(errors="backslashreplace")
    name = kind.partition(";")[0].strip().lower()
    if name == RAW:
        if len(value) % 4:
            raise Unusable(f"{len(value)} bytes are no float32 numbers")
        return np.frombuffer(value, "<f4").astype(np.float64), b""
    if name != JSON:
        raise Unusable(f"the content-type is {kind!r}, not {JSON} or {RAW}")
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError as problem:
        raise Unusable(f"broken JSON: {brief(problem)}") from None
    if not isinstance(document, dict) or "embedding" not in document:
        raise Unusable("the value must be a JSON object with an embedding")
    payload = document.get("payload")
    if payload is not None and not isinstance(payload, dict):
        raise Unusable("the payload must be a JSON object")
    return checked_numbers(document["embedding"]), checked_payload(payload, bounds)


def _time(record: Any, headers: dict[str, bytes | None], now_ms: int) -> int:
    """Of the header, else of the record; records of old producers have none."""
    told = headers.get(TIME_HEADER)
    if told is None:
        return int(record.timestamp) if (record.timestamp or 0) > 0 else now_ms
    try:
        return checked_time(int(told), now_ms)
    except ValueError:
        raise Unusable(f"the header {TIME_HEADER} must be milliseconds since 1970, not {told!r}") from None


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
