"""What a record is: every value read alone and in a column, with one wording for every mistake."""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID

import numpy as np
import orjson
import pytest

from engine.config import LimitsSettings
from engine.errors import Unusable
from engine.records import (
    FIELDS,
    Parser,
    Record,
    read_document,
    read_key,
    read_payload,
    read_vector,
    text_payload,
)
from engine.rows import Columns, Rows, Settled
from engine.times import read_time, read_times

BOUNDS = LimitsSettings()
NOW_MS = 1_760_000_000_000


def parsed(raw: bytes, **fields: str) -> Record | str:
    """The record in a document, or why there is none."""
    try:
        return Parser(BOUNDS, FIELDS.named(**fields)).parse(raw)
    except Unusable as problem:
        return str(problem)


KEYS: list[tuple[Any, bytes | str]] = [
    ("a", b"a"),
    ("schlüssel", "schlüssel".encode()),
    (b"raw", b"raw"),
    (17, b"17"),
    (np.int32(-3), b"-3"),
    (np.str_("a"), b"a"),
    (UUID(int=1), b"00000000-0000-0000-0000-000000000001"),
    ("k" * 511, b"k" * 511),
    ("no\u00a0break", "no\u00a0break".encode()),
    ("k" * 512, "the key has 512 bytes, more than the 511 allowed"),
    ("", "the key is empty"),
    (None, "the key is missing"),
    (True, "the key True must be a string or an integer, not true or false"),
    (1.5, "the key 1.5 must be a string or an integer, not a number"),
    (
        np.timedelta64(5, "s"),
        "the key np.timedelta64(5,'s') must be a string or an integer, not timedelta64",
    ),
    (b"\xff", r"the key b'\xff' is not valid UTF-8"),
    ("\ud800", r"the key '\ud800' is not valid Unicode"),
    ("a\x00", r"the key 'a\x00' has a control character"),
    (b"\x00\x00\x00\x07", r"the key '\x00\x00\x00\x07' has a control character"),
    ("a\x85", r"the key 'a\x85' has a control character"),
]


@pytest.mark.parametrize(("value", "expected"), KEYS)
def test_a_key(value: Any, expected: bytes | str) -> None:
    if isinstance(expected, bytes):
        assert read_key(value, BOUNDS) == expected
    else:
        with pytest.raises(Unusable) as caught:
            read_key(value, BOUNDS)
        assert str(caught.value) == expected
    rows = Rows(BOUNDS, NOW_MS)
    rows.extend(0, Columns(np.ones((1, 2)), [value]))
    settled = rows.settle(None)
    if isinstance(expected, bytes):
        assert (settled.batch.keys, settled.rejected) == ([expected], [])
    else:
        assert settled.rejected == [(0, expected)]


TIMES: list[tuple[Any, int | str | None]] = [
    (1_700_000_000, 1_700_000_000_000),
    (1_700_000_000.1234, 1_700_000_000_123),
    (1_700_000_000_123, 1_700_000_000_123),
    (1_700_000_000_123_456, 1_700_000_000_123),
    (1_700_000_000_123_456_789, 1_700_000_000_123),
    (np.int64(1_700_000_000), 1_700_000_000_000),
    (np.float32(5), 5000),
    (-5.5, -5500),
    (0, 0),
    (None, None),
    (float("nan"), None),
    (np.datetime64("NaT"), None),
    ("", None),
    ("1700000000", 1_700_000_000_000),
    ("2024-05-01T10:00:00Z", 1_714_557_600_000),
    ("2024-05-01T12:00:00+02:00", 1_714_557_600_000),
    ("2024-05-01 10:00:00.123456+00", 1_714_557_600_123),
    ("2024-05-01T10:00:00.1234567890-0000", 1_714_557_600_123),
    ("2024-05-01t10:00", 1_714_557_600_000),
    ("2024-05-01", 1_714_521_600_000),
    (dt.date(2024, 5, 1), 1_714_521_600_000),
    (dt.datetime(2024, 5, 1, 10), 1_714_557_600_000),
    (dt.datetime(2024, 5, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=2))), 1_714_557_600_000),
    *(
        (np.datetime64("2024-05-01T10:00:00", unit), 1_714_557_600_000)
        for unit in ("h", "m", "s", "ms", "us", "ns")
    ),
    (np.datetime64("2024-05-01", "D"), 1_714_521_600_000),
    (np.datetime64("2024", "Y"), 1_704_067_200_000),
    ("noon", "the time must be a number or an ISO 8601 string, not 'noon'"),
    ("2024-13-01", "the time must be a number or an ISO 8601 string, not '2024-13-01'"),
    (True, "the time must be a number or an ISO 8601 string, not True"),
    ([1], "the time must be a number or an ISO 8601 string, not [1]"),
    (
        np.timedelta64(5, "s"),
        "the time must be a number or an ISO 8601 string, not np.timedelta64(5,'s')",
    ),
    (1e30, "the time 1e+30 is out of range"),
    (float("inf"), "the time inf is out of range"),
]


def told(value: Any) -> int | str | None:
    try:
        return read_time(value)
    except Unusable as problem:
        return str(problem)


def in_column(column: Any) -> int | str | None:
    """What the first row of a column is."""
    times, has, wrong = read_times(column)
    return wrong.get(0, int(times[0]) if has[0] else None)


@pytest.mark.parametrize(("value", "expected"), TIMES)
def test_a_time_alone_and_in_a_column(value: Any, expected: int | str | None) -> None:
    assert told(value) == expected
    assert in_column([value, None]) == expected
    if not isinstance(value, (list, dt.date)) and value is not None:
        assert in_column(np.array([value])) == expected


def test_random_times_agree_alone_and_in_a_column() -> None:
    rng = np.random.default_rng(3)
    sizes = 10.0 ** rng.uniform(0, 18.5, 500) * rng.choice([-1, 1], 500)
    narrow = 10.0 ** rng.uniform(0, 4.8, 500)
    for column in (
        sizes,
        sizes.astype(np.int64),
        sizes.astype("datetime64[us]"),
        sizes.astype(np.float32),
        narrow.astype(np.float16),
        narrow.astype(np.uint16),
    ):
        times, has, wrong = read_times(column)
        for row, value in enumerate(column):
            assert wrong.get(row, int(times[row]) if has[row] else None) == told(value), value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([1, True], "the embedding must be a list of numbers, and there is True in it"),
        ([1, "2"], "the embedding must be a list of numbers, and there is '2' in it"),
        ([1, None], "the embedding must be a list of numbers, and there is None in it"),
        ([[1, 2], [3, 4]], "the embedding must be a list of numbers, and there is [1, 2] in it"),
        ("1,2", "the embedding must be a list of numbers, not string"),
        ({"a": [1]}, "the embedding must be a list of numbers, not object"),
        (None, "the embedding must be a list of numbers, not null"),
        (np.array([True]), "the embedding must be a list of numbers, and there is np.True_ in it"),
        (np.ma.array([1, 2], mask=[0, 1]), "the embedding has masked values"),
        ([], "the embedding has 0 dimensions, not 1 to 16384"),
        ([1] * 16_385, "the embedding has 16385 dimensions, not 1 to 16384"),
        ([1.0, float("nan")], "the embedding has a NaN or an infinity"),
        ([1, 10**400], "the embedding has a NaN or an infinity"),
        ([0, 0.0], "the embedding is zero"),
    ],
)
def test_what_is_no_vector(value: Any, reason: str) -> None:
    with pytest.raises(Unusable) as caught:
        read_vector(value)
    assert str(caught.value) == reason


@pytest.mark.parametrize("value", [[1, 2.5], (1, 2.5), np.array([1, 2.5], np.float32), [np.float32(1), 2.5]])
def test_what_is_a_vector(value: Any) -> None:
    assert read_vector(value).tolist() == [1.0, 2.5]


def test_a_payload_is_kept_as_the_bytes_it_came_in() -> None:
    raw = b'{ "price": 1.10, "big": 123456789012345678901234567890 }'
    found = parsed(b'{"key":"a","embedding":[1],"payload":' + raw + b"}")
    assert isinstance(found, Record)
    assert found.payload == raw
    for nothing in (b"null", b"{}", b" "):
        assert read_document(nothing, BOUNDS) == b""
    for value in (b'"text"', b"17", b"[1,2]", b"false"):
        assert read_document(value, BOUNDS) == value
    assert read_document(b'{\n"a":\r\n1}', BOUNDS) == b'{ "a":  1}'


@pytest.mark.parametrize("levels", [246, 250, 300, 1000, 5000])
def test_a_payload_that_no_answer_could_hold_is_refused(levels: int) -> None:
    reason = parsed(b'{"key":"a","embedding":[1],"payload":' + b"[" * levels + b"]" * levels + b"}")
    assert isinstance(reason, str)
    assert "nests too deep" in reason or "recursion" in reason.lower()


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"scores": [1.0, float("nan")]}, " at scores.1"),
        ([None, {"x": np.float32("inf")}], " at 1.x"),
        ({"a": np.array([1.0, np.nan])}, " at a.1"),
        (float("-inf"), ""),
    ],
)
def test_a_payload_of_a_program_has_no_number_that_json_has_not(value: Any, place: str) -> None:
    """It would come back as null."""
    with pytest.raises(Unusable, match=f"it has a NaN or an infinity{place}; give None"):
        read_payload(value, LimitsSettings())
    assert read_payload({"a": None, "b": 1.5}, LimitsSettings()) == b'{"a":null,"b":1.5}'


def test_a_deep_payload_is_kept() -> None:
    deep = b"[" * 245 + b"1" + b"]" * 245
    found = parsed(b'{"key":"a","embedding":[1],"payload":' + deep + b"}")
    assert isinstance(found, Record)
    assert found.payload == deep


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"text": "t", "payload": {"a": 1}}, {"text": "t", "a": 1}),
        ({"text": "t", "payload": {"text": "own"}}, {"text": "own"}),
        ({"title": "T", "labels": 3}, {"title": "T", "label": 3}),
        ({"text": "t", "metadata": "s"}, {"text": "t", "payload": "s"}),
        ({"text": None, "payload": {"a": 1}}, {"a": 1}),
        ({"text": "t", "payload": None}, {"text": "t"}),
    ],
)
def test_text_and_title_beside_the_embedding_join_the_payload(document: Any, expected: Any) -> None:
    found = parsed(orjson.dumps({"key": "a", "embedding": [1], **document}))
    assert isinstance(found, Record)
    assert orjson.loads(found.payload) == expected
    assert found == Parser(BOUNDS).of({"key": "a", "embedding": [1], **document})


def test_a_column_of_text_holds_json_or_text() -> None:
    assert text_payload('{"a": 1.0}') == b'{"a": 1.0}'
    assert text_payload("{no json") == "{no json"
    assert text_payload("17") == "17"
    assert text_payload("") is None


@pytest.mark.parametrize("key", FIELDS.key)
@pytest.mark.parametrize("vector", FIELDS.vector)
def test_the_usual_names(key: str, vector: str) -> None:
    for time in FIELDS.time:
        for payload in FIELDS.payload:
            document = {key.upper(): 5, vector: [1, 2], time: 1_700_000_000, payload: {"a": 1}}
            found = parsed(orjson.dumps(document))
            assert isinstance(found, Record), found
            assert (found.key, found.time_ms, found.payload) == (b"5", 1_700_000_000_000, b'{"a":1}')


def test_a_name_may_be_chosen_and_what_has_no_role_is_counted() -> None:
    parser = Parser(BOUNDS, FIELDS.named(key="sku"))
    for row in range(3):
        record = parser.parse(orjson.dumps({"sku": row, "id": "no", "emb": [1], "color": "red"}))
        assert record.key == b"%d" % row
    assert dict(parser.ignored) == {"id": 3, "color": 3}
    assert parsed(b'{"id": 1, "emb": [1]}', key="sku") == "the field key is missing"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"[1]", "the record must be a JSON object, not list"),
        (b"1", "the record must be a JSON object, not a number"),
        (b"1" * 400, "the record must be a JSON object, not a number"),
        (b"1e999", "the record must be a JSON object, not a number"),
        (b'"a"', "the record must be a JSON object, not string"),
        (b'{"key": "\xe4", "embedding": [1]}', "the text is not UTF-8"),
        (b'{"\xe4": "a", "embedding": [1]}', "the text is not UTF-8"),
        (b'{"key": "a"', "broken JSON"),
        (b'{"key": "a", "embedding": [1, NaN]}', "broken JSON"),
        (b'{"key": "a", "embedding": [1, 1e999]}', "broken JSON"),
        ('{"key": "a"}'.encode("utf-16"), "the text is UTF-16, not UTF-8"),
        (b'{"embedding": [1]}', "the field key is missing"),
        (b'{"key": "a"}', "the field embedding is missing"),
        (b'{"key": "a", "embedding": [1], "delete": 1}', "delete must be true or false, not 1"),
        (b'{"key": "a", "embedding": [1], "time": "noon"}', "the time must be"),
    ],
)
def test_what_is_no_record(raw: bytes, reason: str) -> None:
    found = parsed(raw)
    assert isinstance(found, str)
    assert found.startswith(reason)


def test_a_key_in_the_document_does_not_name_another_item_without_a_word() -> None:
    parser = Parser(BOUNDS, FIELDS)
    for document, ignored in (
        ({"key": "a"}, {}),
        ({"key": 7}, {}),
        ({"id": "b"}, {"id": 1}),
        ({"key": [1]}, {"id": 1, "key": 1}),
    ):
        key = str(document.get("key", "a")) if document.get("key") != [1] else "a"
        record = parser.parse(orjson.dumps({**document, "emb": [1, 2]}), key)
        assert record.key == key.encode()
        assert dict(parser.ignored) == ignored


def test_a_record_that_says_delete_deletes() -> None:
    assert parsed(b'{"key": "a", "embedding": [1, 2], "delete": true}') == Record(b"a", None)
    assert parsed(b'\xef\xbb\xbf{"key": "a", "delete": true}') == Record(b"a", None)
    kept = parsed(b'{"key": "a", "embedding": [1, 2], "delete": false}')
    assert isinstance(kept, Record)
    assert kept.vector is not None


def settled(one_by_one: bool) -> Settled:
    """The same records, singly and as columns."""
    vectors: list[Any] = [[1, 2], [0, 0], [3, 4], [1, 2, 3], None, [5, 6], [1, float("nan")], [7, 8]]
    keys: list[Any] = ["a", "b", "a", "c", "d", "", "e", 8]
    times = [1_700_000_000, 2, "2024-05-01", None, None, 1, 1, "2099-01-01"]
    payloads: list[Any] = [{"x": 1}, None, "s", 1, 2, 3, 4, [5]]
    rows = Rows(BOUNDS, NOW_MS)
    if not one_by_one:
        rows.extend(10, Columns(vectors, keys, times, payloads, {"text": list("abcdefgh")}))
        return rows.settle(None)
    parser = Parser(BOUNDS)
    for row, key in enumerate(keys):
        values = {"key": key, "time": times[row], "payload": payloads[row], "text": "abcdefgh"[row]}
        if vectors[row] is not None:
            values["embedding"] = vectors[row]
        try:
            rows.add(10 + row, parser.of(values))
        except Unusable as problem:
            rows.refuse(10 + row, str(problem).replace("the field embedding", "the embedding"))
    return rows.settle(None)


def test_columns_and_single_records_agree() -> None:
    one, many = settled(True), settled(False)
    assert one.rejected == many.rejected
    assert [number for number, _ in one.rejected] == [11, 13, 14, 15, 16]
    assert (one.doubts, one.dim) == (many.doubts, many.dim)
    assert one.doubts == [(17, "the time 2099-01-01T00:00:00Z is more than a day ahead")]
    assert one.batch.keys == many.batch.keys == [b"a", b"8"]
    assert np.array_equal(one.batch.vectors, many.batch.vectors)
    assert one.batch.times.tolist() == many.batch.times.tolist()
    assert one.batch.payloads == many.batch.payloads


def test_most_of_the_first_vectors_decide_the_dimension() -> None:
    rows = Rows(BOUNDS, NOW_MS)
    for number, dim in enumerate([3, 2, 2, 5, 2]):
        rows.add(number, Record(b"%d" % number, np.ones(dim)))
    found = rows.settle(None)
    assert found.dim == 2
    assert list(found.batch.keys) == [b"1", b"2", b"4"]
    assert found.rejected[0] == (0, "the embedding has 3 dimensions, not the collection's 2")


def test_vectors_that_are_all_unusable_fix_no_dimension() -> None:
    for vectors in (np.zeros((2, 3)), [[0, 0, 0], [0.0, 0, 0]]):
        rows = Rows(BOUNDS, NOW_MS)
        rows.extend(0, Columns(vectors, ["a", "b"]))
        found = rows.settle(None)
        assert found.dim is None
        assert found.rejected == [(0, "the embedding is zero"), (1, "the embedding is zero")]


def test_names_without_a_meaning_are_bounded() -> None:
    parser = Parser(BOUNDS)
    for number in range(1100):
        parser.of({"key": "a", "embedding": [1], f"{number}{'x' * 5000}": 1})
    assert len(parser.ignored) == 1000
    assert max(map(len, parser.ignored)) == 100


def test_deletes_and_upserts_of_a_key_in_order() -> None:
    rows = Rows(BOUNDS, NOW_MS)
    for number, (key, vector) in enumerate([("a", 1), ("b", 1), ("b", 0), ("c", 0), ("c", 1), ("d", 0)]):
        rows.add(number, Record(key.encode(), np.ones(2) if vector else None))
    batch = rows.settle(None).batch
    assert (batch.keys, batch.deletes) == ([b"a", b"c"], [b"b", b"d"])
