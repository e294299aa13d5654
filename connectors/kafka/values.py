"""The formats of Kafka records: key, value and headers.

Keys are text or what Kafka's own serializers write; values are JSON, Avro or raw numbers, framed as schema
registries do it or not. What cannot be used becomes a dead letter, with the record's own bytes.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import fastavro
import numpy as np

from connectors.kafka.registry import Registry
from engine.config import KafkaSettings, LimitsSettings
from engine.errors import Unusable, counted
from engine.records import Parser, Record, brief, read_key, read_vector
from engine.rows import Rows, Settled
from engine.times import read_time
from engine.types import DeadLetter

FLOAT32, FLOAT64 = "application/x-float32", "application/x-float64"
TIME_HEADER, TYPE_HEADER = "x-time", "content-type"
FRAME = struct.Struct(">bI")  # a registry's: the byte 0, and the number of the schema
_OF_TYPE = {"application/json": "json", FLOAT32: "float32", FLOAT64: "float64"}
_NUMBERS = {"float32": "<f4", "float64": "<f8"}
_BINARY_KEYS: dict[str, tuple[int, Callable[[bytes], Any]]] = {
    "int32": (4, lambda raw: int.from_bytes(raw, "big", signed=True)),
    "int64": (8, lambda raw: int.from_bytes(raw, "big", signed=True)),
    "uuid": (16, lambda raw: UUID(bytes=raw)),
}


class Decoder:
    """Reads kafka-python's records in the formats of the settings."""

    def __init__(self, settings: KafkaSettings, limits: LimitsSettings) -> None:
        self._settings, self._limits = settings, limits
        self._parser = Parser(limits)
        self._registry = Registry(settings) if settings.registry_url else None
        self.ignored: Mapping[str, int] = self._parser.ignored  # names not understood, in how many records

    def settle(
        self, records: Sequence[Any], dim: int | None, now_ms: int
    ) -> tuple[Settled, list[DeadLetter]]:
        """Return the net effect of records, and the rejected ones. Raises RegistryAway, BrokerError."""
        rows = Rows(self._limits, now_ms)
        for number, record in enumerate(records):
            try:
                rows.add(number, self._record(record))
            except Unusable as problem:
                rows.refuse(number, str(problem))
        settled = rows.settle(dim)
        most = self._limits.dead_letter_max_bytes
        return settled, [_dead_letter(records[number], reason, most) for number, reason in settled.rejected]

    def _record(self, record: Any) -> Record:
        key = self._key(record.key)
        if record.value is None:
            return Record(key, None)
        if len(record.value) > self._limits.record_max_bytes:
            most = self._limits.record_max_bytes
            raise Unusable(f"the value has {len(record.value)} bytes, more than the {most} allowed")
        headers = dict(record.headers)
        found = self._value(record.value, key, self._format(headers))
        if (told := headers.get(TIME_HEADER)) is not None:
            return replace(found, time_ms=read_time(told.decode(errors="backslashreplace")))
        if found.time_ms is None and (record.timestamp or 0) > 0:
            return replace(found, time_ms=int(record.timestamp))
        return found

    def _key(self, raw: bytes | None) -> bytes:
        """Return the item's key. Raises Unusable."""
        chosen = self._settings.key_format
        if chosen in _BINARY_KEYS and raw is not None:
            size, read = _BINARY_KEYS[chosen]
            if len(raw) != size:
                raise Unusable(
                    f"the key has {counted(len(raw), 'byte')}, and key_format = {chosen} has {size}"
                )
            return read_key(read(raw), self._limits)
        try:
            return read_key(raw, self._limits)
        except Unusable as problem:
            likely = [name for name, (size, _) in _BINARY_KEYS.items() if raw and len(raw) == size]
            if not likely:
                raise
            raise Unusable(f"{problem}; is it an {likely[0]}? then set key_format = {likely[0]}") from None

    def _format(self, headers: Mapping[str, bytes | None]) -> str:
        """Return the format: the header's if there is one, else the settings'. Raises Unusable."""
        told, chosen = headers.get(TYPE_HEADER), self._settings.value_format
        if told is None:
            return chosen
        kind = told.decode(errors="backslashreplace")
        name = kind.partition(";")[0].strip().lower()
        if name not in _OF_TYPE:
            raise Unusable(f"the content-type is {kind!r}, not one of {', '.join(_OF_TYPE)}")
        found = _OF_TYPE[name]
        return chosen if found == "json" and chosen == "json-schema" else found

    def _value(self, raw: bytes, key: bytes, kind: str) -> Record:
        if kind in _NUMBERS:
            size = int(kind.removeprefix("float")) // 8
            if len(raw) % size:
                raise Unusable(f"a value of {counted(len(raw), 'byte')} holds no {kind} numbers")
            return Record(key, read_vector(np.frombuffer(raw, _NUMBERS[kind])))
        if kind == "json":
            if is_framed(raw):
                number = FRAME.unpack_from(raw)[1]
                raise Unusable(
                    f"the value looks framed by a schema registry (the byte 0, then schema {number}): set"
                    " value_format = json-schema or avro"
                )
            return self._parser.parse(raw, key)
        if not is_framed(raw):
            raise Unusable(f"the value is not framed by a schema registry, and value_format = {kind} is")
        if kind == "json-schema":
            return self._parser.parse(raw[FRAME.size :], key)
        return self._avro(raw, key)

    def _avro(self, raw: bytes, key: bytes) -> Record:
        assert self._registry is not None  # the settings see to it
        schema = self._registry.schema(FRAME.unpack_from(raw)[1])
        try:
            found = fastavro.schemaless_reader(io.BytesIO(raw[FRAME.size :]), schema, None)
        except Exception as problem:  # whatever bytes make fastavro raise
            raise Unusable(f"the value is not Avro of its schema: {brief(problem)}") from None
        if not isinstance(found, dict):
            raise Unusable(f"the value must be an Avro record, not {type(found).__name__}")
        return self._parser.of(found, key)


def is_framed(raw: bytes) -> bool:
    """Return whether a value begins with a schema registry's frame; no JSON does."""
    return len(raw) > FRAME.size and raw[0] == 0


def _dead_letter(record: Any, reason: str, most: int) -> DeadLetter:
    """Return a dead letter, with the record's bytes unless they are more than `most`."""
    origin = f"{record.topic}/{record.partition}/{record.offset}"
    headers = [(name, value or b"") for name, value in record.headers]
    size = len(record.key or b"") + len(record.value or b"") + sum(len(n) + len(v) for n, v in headers)
    if size > most:
        return DeadLetter(
            f"{reason}; its {size} bytes are left out, for {most} are allowed", origin, None, None
        )
    return DeadLetter(reason, origin, record.key, record.value, headers)
