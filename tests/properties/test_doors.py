"""Every door alike: one table of records, one expectation each: files, bulk, PUT, Kafka, the library."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from engine.vectors import quantize
from tests.support.doors import NOW_MS, Doors, Outcome, Raw, Values, document, without_key

ALL = ("file", "bulk", "put", "kafka", "library")
JSON = ("file", "bulk", "put", "kafka")
KEYED = ("file", "bulk", "library")  # where a key may be other than text


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    made = Doors(tmp_path_factory.mktemp("doors"))
    yield made
    made.close()


def grid(vector: Any) -> tuple[int, ...]:
    return tuple(quantize([vector])[0][0].tolist())


def kept(
    vector: Any = (1, 2), time_ms: int = NOW_MS, payload: bytes = b"", doubtful: bool = False, key: str = "k"
) -> Outcome:
    return Outcome(key.encode(), grid(vector), time_ms, payload, doubtful=doubtful)


FINE = [1, 2]
SECONDS = 1_700_000_000
MS = SECONDS * 1000
DEEP = Raw(b"[" * 245 + b"]" * 245)
NO_NUMBERS = "the embedding must be a list of numbers"
NO_TIME = "the time must be a number or an ISO 8601 string"


def cases() -> dict[str, tuple[Values, Outcome | str]]:
    """Name -> record and what comes of it: an outcome, or how the reason begins. For all five doors."""
    found: dict[str, tuple[Values, Outcome | str]] = {}

    def key(name: str, value: str, expected: str = "") -> None:
        record = {"key": value, "embedding": FINE}
        found[f"key: {name}"] = record, expected or kept(key=value)

    def vector(name: str, value: Any, expected: Any = "") -> None:
        outcome = expected if isinstance(expected, str) and expected else kept(expected or value)
        found[f"embedding: {name}"] = {"key": "k", "embedding": value}, outcome

    def time(name: str, value: Any, expected: int | str, doubtful: bool = False) -> None:
        outcome = expected if isinstance(expected, str) else kept(time_ms=expected, doubtful=doubtful)
        found[f"time: {name}"] = {"key": "k", "embedding": FINE, "time": value}, outcome

    def payload(name: str, value: Any, expected: bytes | str) -> None:
        outcome = expected if isinstance(expected, str) else kept(payload=expected)
        found[f"payload: {name}"] = {"key": "k", "embedding": FINE, "payload": value}, outcome

    key("a word", "word")
    key("an umlaut", "schlüssel")
    key("a picture", "🐟")
    key("blanks and slashes", " a b/c?d#e ")
    key("digits", "17")
    key("a no-break space", "a\u00a0b")
    key("the longest", "k" * 511)
    key("too long", "k" * 512, "the key has 512 bytes, more than the 511 allowed")
    key("too long in bytes", "ü" * 256, "the key has 512 bytes, more than the 511 allowed")
    key("empty", "", "the key is empty")
    key("a NUL", "a\x00b", r"the key 'a\x00b' has a control character")
    key("a line break", "a\nb", r"the key 'a\nb' has a control character")
    key("a DEL", "a\x7f", r"the key 'a\x7f' has a control character")
    key("a C1 character", "a\x9b", r"the key 'a\x9b' has a control character")

    vector("floats", [0.1, 0.9])
    vector("integers", [3, -4])
    vector("beyond float32", [1e300, 2e300])
    vector("beneath float32", [1e-300, 2e-300])
    vector("minus zero", [-0.0, 1])
    vector("large integers", [2**60, 2**61])
    vector("true", [1, True], f"{NO_NUMBERS}, and there is True in it")
    vector("false", [False, 1], f"{NO_NUMBERS}, and there is False in it")
    vector("a string inside", [1, "2"], f"{NO_NUMBERS}, and there is '2' in it")
    vector("null inside", [1, None], f"{NO_NUMBERS}, and there is None in it")
    vector("nested", [[1, 2], [3, 4]], f"{NO_NUMBERS}, and there is [1, 2] in it")
    vector("an object", {"a": [1, 2]}, f"{NO_NUMBERS}, not object")
    vector("empty", [], "the embedding has 0 dimensions, not 1 to 16384")
    vector("beyond the bound", [1] * 16_385, "the embedding has 16385 dimensions, not 1 to 16384")
    vector("of another dimension", [1, 2, 3], "the embedding has 3 dimensions, not the collection's 2")
    vector("zero", [0, 0.0], "the embedding is zero")

    time("seconds", SECONDS, MS)
    time("fractions of seconds", SECONDS + 0.25, MS + 250)
    time("milliseconds", MS + 7, MS + 7)
    time("fractions of milliseconds", MS + 7.75, MS + 7)
    time("microseconds", MS * 1000, MS)
    time("nanoseconds", MS * 1_000_000, MS)
    time("digits in a string", str(SECONDS), MS)
    time("ISO 8601 in UTC", "2024-05-01T10:00:00Z", 1_714_557_600_000)
    time("ISO 8601 with a zone", "2024-05-01T12:00:00.5+02:00", 1_714_557_600_500)
    time("ISO 8601 without a zone", "2024-05-01 10:00", 1_714_557_600_000)
    time("a date", "2024-05-01", 1_714_521_600_000)
    time("null", None, NOW_MS)
    time("an empty string", "", NOW_MS)
    time("before 1990", 12_345, 12_345_000, doubtful=True)
    time("before 1970", -1, -1000, doubtful=True)
    time("far ahead", "2099-01-01", 4_070_908_800_000, doubtful=True)
    time("a word", "noon", f"{NO_TIME}, not 'noon'")
    time("no date", "2024-02-30", f"{NO_TIME}, not '2024-02-30'")
    time("true", True, f"{NO_TIME}, not True")
    time("a list", [1], f"{NO_TIME}, not [1]")
    time("an object", {"a": 1}, f"{NO_TIME}, not {{'a': 1}}")
    time("out of range", 1e30, "the time 1e+30 is out of range")

    payload("an object", {"a": 1}, b'{"a":1}')
    payload("a list", [1, {"b": None}], b'[1,{"b":null}]')
    payload("a string", "text", b'"text"')
    payload("a string that is JSON", '{"a": 1}', b'"{\\"a\\": 1}"')
    payload("a number", 1.5, b"1.5")
    payload("zero", 0, b"0")
    payload("false", False, b"false")
    payload("an empty list", [], b"[]")
    payload("an empty string", "", b'""')
    payload("nothing", None, b"")
    payload("an empty object", {}, b"")
    payload("its own bytes", Raw(b'{ "x": 1.10, "x": 12345678901234567890123 }'),
            b'{ "x": 1.10, "x": 12345678901234567890123 }')  # fmt: skip
    payload("escapes", Raw(b'"\\u00fc\\n"'), b'"\\u00fc\\n"')
    payload("umlauts", {"ü": "ß"}, '{"ü":"ß"}'.encode())
    payload("the largest", "x" * (2**18 - 2), b'"' + b"x" * (2**18 - 2) + b'"')
    payload("too large", "x" * 2**18, "the payload has 262146 bytes, more than the 262144 allowed")
    payload("deep", DEEP, bytes(DEEP))
    payload("too deep", Raw(b"[" * 246 + b"]" * 246), "the payload is not JSON: it nests too deep")
    payload("half a surrogate", Raw(b'"\\ud800"'), "JSON")
    return found


def some() -> dict[str, tuple[tuple[str, ...], Values, Outcome | str]]:
    """Records that not every door can be given."""
    gone = Outcome(b"k", deleted=True)
    return {
        "delete": (ALL, {"key": "k", "delete": True}, gone),
        "delete beside an embedding": (ALL, {"key": "k", "embedding": FINE, "delete": True}, gone),
        "no delete": (JSON, {"key": "k", "embedding": FINE, "delete": False}, kept()),
        "delete that is no flag": (JSON, {"key": "k", "delete": 1}, "delete must be true or false, not 1"),
        "no embedding": (JSON, {"key": "k"}, "the field embedding is missing"),
        "other names": (
            JSON,
            {"key": "k", "Vector": FINE, "ts": SECONDS, "metadata": {"a": 1}, "color": "red"},
            kept(time_ms=MS, payload=b'{"a":1}'),
        ),
        "text and title": (
            JSON,
            {"key": "k", "embedding": FINE, "text": "t", "title": "T", "payload": {"a": 1}},
            kept(payload=b'{"text":"t","title":"T","a":1}'),
        ),
        "text beside a payload of text": (
            JSON,
            {"key": "k", "embedding": FINE, "text": "t", "payload": "p"},
            kept(payload=b'{"text":"t","payload":"p"}'),
        ),
        "an infinite number": (
            JSON,
            {"key": "k", "embedding": Raw(b"[1, 1e999]")},
            "JSON",
        ),
        "an integer key": (KEYED, {"key": 17, "embedding": FINE}, kept(key="17")),
        "a negative key": (KEYED, {"key": -3, "embedding": FINE}, kept(key="-3")),
        "a key of null": (KEYED, {"key": None, "embedding": FINE}, "the key is missing"),
        "a key of true": (KEYED, {"key": True, "embedding": FINE}, "the key True must be a string"),
        "a key of a fraction": (KEYED, {"key": 1.5, "embedding": FINE}, "the key 1.5 must be a string"),
        "a key of a list": (KEYED, {"key": ["a"], "embedding": FINE}, "the key ['a'] must be a string"),
        "an id": (("file", "bulk"), {"id": 5, "embedding": FINE}, kept(key="5")),
        "no key": (("file", "bulk"), {"embedding": FINE}, "the field key is missing"),
        "NaN": (("library",), {"key": "k", "embedding": [1, float("nan")]}, "the embedding has a NaN"),
        "a moment of Python": (
            ("library",),
            {"key": "k", "embedding": FINE, "time": dt.datetime(2024, 5, 1, 10)},
            kept(time_ms=1_714_557_600_000),
        ),
        "a moment of NumPy": (
            ("library",),
            {"key": "k", "embedding": FINE, "time": np.datetime64("2024-05-01T10", "ns")},
            kept(time_ms=1_714_557_600_000),
        ),
    }  # fmt: skip


CASES = {name: (ALL, *case) for name, case in cases().items()} | some()


def through(doors: Doors, door: str, values: Values) -> Outcome:
    if door == "library":
        return doors.library(values)
    if door == "file":
        return doors.file(document(values))
    if door == "bulk":
        return doors.bulk(document(values))
    if door == "put":
        return doors.put(values["key"], without_key(values))
    return doors.kafka(values["key"].encode(), without_key(values))


def test_the_table_is_large_enough() -> None:
    assert len(cases()) >= 60


@pytest.mark.parametrize("name", CASES)
def test_every_door_makes_the_same_of_a_record(doors: Doors, name: str) -> None:
    through_doors, values, expected = CASES[name]
    for door in through_doors:
        found = through(doors, door, values)
        if isinstance(expected, str):
            assert expected in found.reason, f"{door}: {found}"
        else:
            assert found == expected, f"{door}: {found}"


SEEDS = [
    b'{"key": "k1", "time": "2024-05-01T10:00:00Z", "emb": [0.5, -1.25e3], "payload": {"t": "\xc3\xbc \\n"}}',
    b'{"key": "k2", "delete": true}',
    b'{"_id": 7, "values": [1, 2], "created_at": 1700000000.5, "metadata": "x", "title": "T"}',
]
PIECES = [
    *(b"NaN", b"1e999", b"-0", b"9" * 400, b"null", b"true", b"{}", b"[" * 300, b"]" * 300, b'"', b"\\"),
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"\\ud800"', b"\n", b"\r\n"),
    *(b'"key":', b'"embedding":'),
]


def mutated(raw: bytes, rng: np.random.Generator) -> bytes:
    """Bytes flipped, cut, doubled, and pieces of trouble put in, once or twice."""
    for _ in range(int(rng.integers(1, 3))):
        at, end = sorted(rng.integers(0, len(raw) + 1, 2).tolist())
        kind = int(rng.integers(5))
        if kind == 0 and raw:
            spot = int(rng.integers(len(raw)))
            raw = raw[:spot] + bytes([raw[spot] ^ int(rng.integers(1, 256))]) + raw[spot + 1 :]
        elif kind == 1:
            raw = raw[:at] + raw[end:]
        elif kind == 2:
            raw = raw[:end] + raw[at:]
        else:
            raw = raw[:at] + PIECES[int(rng.integers(len(PIECES)))] + raw[at if kind == 3 else end :]
    return raw


WILD: list[Any] = [
    *(None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**30, "", "k", "\ud800", "\x00", b"\xff"),
    *([], {}, [1], [[1, 2]], {"a": 1}, {1, 2}, range(2), [1, "2"], ["a"] * 3, object(), lambda: None),
    *(np.float32(1), np.array([1.0, 2]), np.array([], object), np.datetime64("NaT"), dt.date(2024, 5, 1)),
]


@pytest.mark.parametrize("door", ALL)
def test_mutated_records_are_refused_in_words(doors: Doors, door: str, long: bool) -> None:
    """No exception of Python's comes out of a door, whatever goes in."""
    rng = np.random.default_rng([11, ALL.index(door)])
    outcomes = {"kept": 0, "refused": 0}
    for number in range(2000 if long else 200):
        if door == "library":
            values = {"key": "k", "embedding": FINE, "time": SECONDS, "payload": {"a": 1}}
            for name in rng.permutation(list(values))[: rng.integers(1, 4)]:
                values[str(name)] = WILD[int(rng.integers(len(WILD)))]
            found = doors.library(values)
        else:
            raw = mutated(SEEDS[number % len(SEEDS)], rng)
            found = doors.all()[door](b"k", raw)
        assert "Traceback" not in found.reason
        outcomes["refused" if found.reason else "kept"] += 1
    assert min(outcomes.values()) > 3, outcomes  # the mutations are neither hopeless nor harmless
