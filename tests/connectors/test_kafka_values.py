"""The formats of Kafka records, read as the source reads them; the schema registry is a real HTTP server."""

from __future__ import annotations

import base64
import io
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import fastavro
import numpy as np
import orjson
import pytest

from connectors.kafka.registry import RegistryAway
from connectors.kafka.values import Decoder
from engine.config import KafkaSettings, LimitsSettings, load
from engine.errors import BrokerError, ConfigError
from engine.vectors import quantize

NOW_MS = 1_760_000_000_000
SCHEMA = {
    "type": "record",
    "name": "Item",
    "fields": [
        {"name": "embedding", "type": {"type": "array", "items": "float"}},
        {"name": "text", "type": ["null", "string"], "default": None},
        {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "metadata", "type": {"type": "map", "values": "string"}},
    ],
}


class Schemas:
    """A registry: `GET /schemas/ids/{id}` as Confluent's answers."""

    def __init__(self) -> None:
        self.answers: dict[int, Any] = {}
        self.asked: list[int] = []
        self.status, self.login = 200, ""
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                number = int(self.path.removeprefix("/schemas/ids/"))
                registry.asked.append(number)
                login = base64.b64encode(registry.login.encode()).decode()
                status = registry.status
                if registry.login and self.headers.get("Authorization") != f"Basic {login}":
                    status = 401
                elif number not in registry.answers:
                    status = 404
                body = orjson.dumps(registry.answers.get(number, {"error_code": 40403, "message": "none"}))
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *words: Any) -> None:
                """Nothing: a test reads what was asked."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def add(self, number: int, schema: Any, **more: Any) -> None:
        self.answers[number] = {"schema": orjson.dumps(schema).decode(), **more}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def schemas() -> Iterator[Schemas]:
    made = Schemas()
    yield made
    made.close()


def settings_of(**more: Any) -> KafkaSettings:
    return KafkaSettings(bootstrap="127.0.0.1:9", topic="t", **more)


def record(key: bytes | None, value: bytes | None, *headers: tuple[str, bytes], time_ms: int = 0) -> Any:
    """As kafka-python gives one."""
    place = {"topic": "t", "partition": 0, "offset": 5, "timestamp": time_ms or NOW_MS}
    return SimpleNamespace(key=key, value=value, headers=list(headers), **place)


def decoded(given: Any, **settings: Any) -> tuple[list[bytes], list[str]]:
    """Keys, and the reasons of dead letters."""
    settled, letters = Decoder(settings_of(**settings), LimitsSettings()).settle([given], None, NOW_MS)
    return [*settled.batch.keys, *settled.batch.deletes], [letter.reason for letter in letters]


def framed(number: int, body: bytes) -> bytes:
    return struct.pack(">bI", 0, number) + body


def avro(value: Any, schema: Any = SCHEMA) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), value)
    return stream.getvalue()


ITEM = {"embedding": [1.0, 2.0], "text": "hello", "ts": 1_700_000_000_123, "metadata": {"a": "b"}}
VALUE = b'{"embedding": [1, 2]}'


@pytest.mark.parametrize(
    ("key_format", "raw", "expected"),
    [
        ("int32", struct.pack(">i", -7), b"-7"),
        ("int32", struct.pack(">i", 0x41424344), b"1094861636"),
        ("int64", struct.pack(">q", 2**40), b"1099511627776"),
        ("uuid", UUID(int=5).bytes, b"00000000-0000-0000-0000-000000000005"),
        ("utf8", str(UUID(int=5)).encode(), b"00000000-0000-0000-0000-000000000005"),
    ],
)
def test_keys_of_kafkas_own_serializers(key_format: str, raw: bytes, expected: bytes) -> None:
    assert decoded(record(raw, VALUE), key_format=key_format) == ([expected], [])
    assert decoded(record(raw, None), key_format=key_format) == ([expected], [])


@pytest.mark.parametrize(
    ("key_format", "raw", "words"),
    [
        (
            "utf8",
            struct.pack(">i", 7),
            "has a control character; is it an int32? then set key_format = int32",
        ),
        ("utf8", struct.pack(">q", 7), "then set key_format = int64"),
        ("utf8", UUID(int=5).bytes, "then set key_format = uuid"),
        ("int32", b"abc", "the key has 3 bytes, and key_format = int32 has 4"),
        ("int64", None, "the key is missing"),
    ],
)
def test_a_key_in_another_format_is_named_so(key_format: str, raw: bytes | None, words: str) -> None:
    keys, [reason] = decoded(record(raw, VALUE), key_format=key_format)
    assert not keys
    assert words in reason


@pytest.mark.parametrize(
    ("value_format", "value"),
    [
        ("json", VALUE),
        ("json-schema", framed(7, VALUE)),
        ("float32", np.array([1, 2], "<f4").tobytes()),
        ("float64", np.array([1, 2], "<f8").tobytes()),
    ],
)
def test_values(value_format: str, value: bytes) -> None:
    decoder = Decoder(settings_of(value_format=value_format), LimitsSettings())
    settled, letters = decoder.settle([record(b"a", value)], None, NOW_MS)
    assert letters == []
    assert np.array_equal(settled.batch.vectors, quantize([[1, 2]])[0])


def test_a_header_tells_the_format_of_one_record() -> None:
    raw = np.array([1, 2], "<f4").tobytes()
    assert decoded(record(b"a", raw, ("content-type", b"application/x-float32")))[0] == [b"a"]
    assert decoded(record(b"a", VALUE, ("content-type", b"application/json")), value_format="float32")[0]
    _, [reason] = decoded(record(b"a", raw, ("content-type", b"text/csv")))
    assert reason.startswith("the content-type is 'text/csv', not one of application/json")


@pytest.mark.parametrize(
    ("value_format", "value", "words"),
    [
        ("json", framed(7, VALUE), "looks framed by a schema registry (the byte 0, then schema 7): set"),
        (
            "json-schema",
            VALUE,
            "the value is not framed by a schema registry, and value_format = json-schema is",
        ),
        ("json-schema", framed(7, b"{"), "broken JSON"),
        ("float64", b"1234567", "a value of 7 bytes holds no float64 numbers"),
        ("json", b'{"embedding": [1, true]}', "there is True in it"),
    ],
)
def test_a_value_in_another_format_is_named_so(value_format: str, value: bytes, words: str) -> None:
    keys, [reason] = decoded(record(b"a", value), value_format=value_format)
    assert not keys
    assert words in reason


def test_avro_with_the_registrys_schema(schemas: Schemas) -> None:
    schemas.add(3, SCHEMA)
    decoder = Decoder(settings_of(value_format="avro", registry_url=schemas.url + "/"), LimitsSettings())
    sent = [record(b"k%d" % i, framed(3, avro({**ITEM, "embedding": [1.0, i]}))) for i in range(3)]
    sent.append(record(b"gone", None))
    settled, letters = decoder.settle(sent, None, NOW_MS)
    assert letters == []
    batch = settled.batch
    assert (batch.keys, batch.deletes) == ([b"k0", b"k1", b"k2"], [b"gone"])
    assert np.array_equal(batch.vectors, quantize([[1, 0], [1, 1], [1, 2]])[0])
    assert batch.times.tolist() == [1_700_000_000_123] * 3
    assert batch.payloads[0] == b'{"text":"hello","a":"b"}'
    assert schemas.asked == [3]  # once


@pytest.mark.parametrize(
    ("number", "body", "words"),
    [
        (9, b"", "the registry has no schema 9"),
        (3, avro(ITEM)[:-4], "the value is not Avro of its schema"),
        (4, b"x", "schema 4 is of the kind PROTOBUF, not AVRO"),
        (5, b"x", "schema 5 refers to other schemas"),
        (6, b"x", "schema 6 cannot be used"),
        (7, avro(5, "int"), "the value must be an Avro record, not int"),
    ],
)
def test_avro_that_cannot_be_read(schemas: Schemas, number: int, body: bytes, words: str) -> None:
    schemas.add(3, SCHEMA)
    schemas.add(4, "", schemaType="PROTOBUF")
    schemas.add(5, SCHEMA, references=[{"name": "other", "subject": "o", "version": 1}])
    schemas.add(6, {"type": "no such type"})
    schemas.add(7, "int")
    given = record(b"a", framed(number, body or b"x"))
    keys, [reason] = decoded(given, value_format="avro", registry_url=schemas.url)
    assert not keys
    assert words in reason


def test_a_registry_that_is_away_costs_no_record(schemas: Schemas) -> None:
    schemas.add(3, SCHEMA)
    schemas.status = 500
    decoder = Decoder(settings_of(value_format="avro", registry_url=schemas.url), LimitsSettings())
    sent = [record(b"a", framed(3, avro(ITEM)))]
    with pytest.raises(RegistryAway, match="answers 500"):
        decoder.settle(sent, None, NOW_MS)
    schemas.status = 200
    assert decoder.settle(sent, None, NOW_MS)[0].batch.keys == [b"a"]
    nobody = Decoder(settings_of(value_format="avro", registry_url="http://127.0.0.1:1"), LimitsSettings())
    with pytest.raises(RegistryAway):
        nobody.settle(sent, None, NOW_MS)


def test_a_registry_with_a_login(schemas: Schemas) -> None:
    schemas.add(3, SCHEMA)
    schemas.login = "me:secret"
    given = record(b"a", framed(3, avro(ITEM)))
    avro_at = {"value_format": "avro", "registry_url": schemas.url}
    with pytest.raises(BrokerError, match="refuses \\(401\\): set registry_username"):
        decoded(given, **avro_at)
    assert decoded(given, **avro_at, registry_username="me", registry_password="secret")[0] == [b"a"]


def test_avro_needs_a_registry() -> None:
    kafka = {"bootstrap": "a:1", "topic": "t", "value_format": "avro"}
    with pytest.raises(ConfigError, match="value_format avro needs registry_url"):
        load(None, {"source.kafka": kafka})  # type: ignore[dict-item]


def test_the_time_of_a_record() -> None:
    decoder = Decoder(settings_of(), LimitsSettings())
    sent = [
        record(b"header", b'{"embedding": [1], "time": 5}', ("x-time", b"1700000000")),
        record(b"value", b'{"embedding": [1], "time": "2024-05-01"}'),
        record(b"record", VALUE[:15] + b"1]}", time_ms=7),
    ]
    settled, letters = decoder.settle(sent, None, NOW_MS)
    assert letters == []
    assert settled.batch.times.tolist() == [1_700_000_000_000, 1_714_521_600_000, 7]
