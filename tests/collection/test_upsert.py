"""What a collection takes, and what it refuses before anything has changed."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from engine.collection.assign import NEW
from engine.errors import (
    InputError,
)
from engine.types import Batch
from tests.collection.conftest import Open
from tests.support.collections import DIM, draw, labels, members, names, stored

pytestmark = pytest.mark.usefixtures("one_thread")


def test_counts_what_a_batch_did(opened: Open) -> None:
    engine = opened()
    vectors = draw(2, 30)
    applied = engine.upsert(names(30), vectors)
    assert (applied.version, applied.inserted, applied.moved, applied.unchanged) == (1, 30, 0, 0)
    again = vectors.copy()
    again[:4] = draw(3, 4)
    applied = engine.upsert(names(32), np.concatenate([again, draw(4, 2)]))
    assert (applied.version, applied.inserted, applied.moved, applied.unchanged) == (2, 2, 4, 26)
    applied = engine.delete(["item 0", "item 1", "nobody", "item 0"])
    assert (applied.version, applied.deleted, applied.unknown) == (3, 2, 1)
    assert len(engine) == 30
    assert engine.version == 3
    assert engine.dim == DIM
    assert labels(engine).keys() == set(names(32)[2:])


def test_another_payload_is_no_item_unchanged(opened: Open) -> None:
    engine, vectors = opened(), draw(2, 4)
    engine.upsert(names(4), vectors, payloads=[1, 2, None, None])
    vectors[3] = draw(3, 1)
    applied = engine.upsert(names(4), vectors, payloads=[1, 3, 4, 5])
    assert (applied.moved, applied.updated, applied.unchanged) == (1, 2, 1)
    applied = engine.upsert(names(2), vectors[:2])
    assert (applied.updated, applied.unchanged) == (2, 0)
    assert [engine[name].payload for name in names(4)] == [None, None, 4, 5]


def test_a_vector_of_another_length_is_the_same_vector(opened: Open) -> None:
    engine = opened()
    vectors = draw(2, 20)
    engine.upsert(names(20), vectors)
    assert engine.upsert(names(20), vectors * 37.0).unchanged == 20


def test_the_last_of_equal_keys_counts(opened: Open) -> None:
    one, other = opened("one"), opened("other")
    vectors = draw(5, 40)
    keys = [*names(20), *reversed(names(20))]
    times = 1_500_000_000 + np.arange(40)
    applied = one.upsert(keys, vectors, times=times, payloads=list(range(40)))
    assert (applied.inserted, len(one)) == (20, 20)
    other.upsert(keys[20:], vectors[20:], times=times[20:], payloads=list(range(20, 40)))
    assert stored(one) == stored(other)


def test_keys_of_any_kind_and_back_as_text(opened: Open) -> None:
    engine = opened()
    uuid = UUID("12345678-1234-5678-1234-567812345678")
    engine.upsert(["ä", b"b", 7, np.int64(8), uuid, np.str_("n")], draw(6, 6))
    assert set(labels(engine)) == {"ä", "b", "7", "8", str(uuid), "n"}
    again = engine.upsert(["ä".encode(), "b", "7", 8, str(uuid), "n"], draw(6, 6))
    assert again.unchanged == 6
    assert engine.delete(["ä".encode(), 7, uuid]).deleted == 3
    assert engine.upsert(np.array(["p", "q"]), draw(1, 2)).inserted == 2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_float_type_and_plain_lists(opened: Open, dtype: Any) -> None:
    engine = opened()
    vectors = draw(7, 10).astype(dtype)
    engine.upsert(names(10), vectors)
    assert engine.upsert(names(10), vectors.tolist()).unchanged == 10


def test_the_longest_key(opened: Open) -> None:
    engine = opened()
    engine.upsert([b"x" * 511, b"y"], draw(8, 2))
    assert "x" * 511 in labels(engine)


def test_the_time_is_now_where_none_is_given(opened: Open) -> None:
    engine = opened()
    engine.upsert(["a"], draw(9, 1))
    engine.upsert(["b"], draw(9, 1), times=[None])
    assert engine.store.load().items.times.tolist() == [1_500_000_000_000] * 2


@pytest.mark.parametrize(
    "time",
    [
        1_400_000_000,
        1.4e9,
        1_400_000_000_000,
        1_400_000_000_000_000_000,
        np.datetime64("2014-05-13T16:53:20", "ns"),
        np.datetime64("2014-05-13T16:53:20", "s"),
        datetime(2014, 5, 13, 16, 53, 20),
        datetime(2014, 5, 13, 16, 53, 20, tzinfo=timezone.utc),
        "2014-05-13T16:53:20Z",
    ],
)
def test_times_of_any_usual_form(opened: Open, time: Any) -> None:
    engine = opened()
    engine.upsert(["a"], draw(9, 1), times=[time])
    engine.upsert(["b"], draw(9, 1), times=np.array([time]))
    assert engine.store.load().items.times.tolist() == [1_400_000_000_000] * 2


def test_a_time_that_is_hardly_right_is_told(opened: Open) -> None:
    engine = opened()
    with pytest.warns(UserWarning, match=r"row 1 \('b'\): the time 1970-01-01T00:00:07Z is before 1990"):
        engine.upsert(["a", "b"], draw(9, 2), times=[1.4e9, 7])
    assert len(engine) == 2


def test_payloads_are_any_json(opened: Open) -> None:
    engine = opened()
    given = [{"a": [1, None, "ä"]}, "text", [1.5], 7, True, b'{"raw": 1}', np.arange(3), None, {}, b""]
    engine.upsert(names(10), draw(6, 10), payloads=given)
    found = [engine[name].payload for name in names(10)]
    assert found == [{"a": [1, None, "ä"]}, "text", [1.5], 7, True, {"raw": 1}, [0, 1, 2], None, None, None]


def test_an_empty_batch_is_a_version(opened: Open) -> None:
    """It carries the positions of a source that had nothing for us."""
    engine = opened()
    engine.upsert(names(20), draw(10, 20))
    before = labels(engine)
    applied = engine.upsert([], np.empty((0, DIM)), positions={"source": b"17"})
    assert (applied.version, applied.inserted, applied.unchanged) == (2, 0, 0)
    assert engine.store.position("source") == b"17"
    assert labels(engine) == before


@pytest.mark.parametrize("positions", [{"a": 3}, {"a": "3"}, {1: b"3"}])
def test_positions_that_are_no_bytes_are_refused(opened: Open, positions: Any) -> None:
    engine = opened()
    with pytest.raises(InputError, match="positions map a source's name to bytes"):
        engine.upsert(["a"], np.eye(1, DIM), positions=positions)
    with pytest.raises(InputError, match="positions map a source's name to bytes"):
        engine.delete(["a"], positions=positions)
    assert engine.version == 0


def test_deletes_before_the_first_item(opened: Open) -> None:
    engine = opened()
    applied = engine.delete(["a"], positions={"source": b"1"})
    assert (applied.version, applied.unknown, engine.dim) == (1, 1, None)
    engine.upsert(names(3), np.eye(3))  # the dimension is still open
    assert (engine.version, engine.dim, len(engine)) == (2, 3, 3)


def test_all_items_may_go(opened: Open) -> None:
    engine = opened()
    engine.upsert(names(25), draw(11, 25))
    engine.delete(names(25))
    assert len(engine) == 0
    assert labels(engine) == {}
    engine.close()
    engine = opened()
    assert (len(engine), engine.dim, engine.version) == (0, None, 2)
    assert engine.upsert(names(1), draw(11, 1)).inserted == 1
    assert len(members(labels(engine))) == 1


def test_an_empty_collection_answers(opened: Open) -> None:
    engine = opened()
    assert (engine.version, len(engine), engine.dim, labels(engine)) == (0, 0, None, {})
    assert engine.assign(draw(12, 2)) == [NEW, NEW]
    with pytest.raises(InputError, match="is empty"):
        _ = engine.state


GOOD = [1.0] * DIM
BIG = {"text": "x" * 2**18}
SELF: list[Any] = []
SELF.append(SELF)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dimension": (
        {"embeddings": [[1.0] * (DIM + 1)] * 2},
        "row 0 .*'a'.*9 dimensions, not .* 8",
    ),
    "ragged": ({"embeddings": [GOOD, GOOD[1:]]}, "row 1 .*'b'.*7 dimensions"),
    "not a matrix": ({"embeddings": GOOD}, r"the shape \(2, d\), not \(8,\)"),
    "too few rows": ({"embeddings": [GOOD]}, r"the shape \(2, d\), not \(1, 8\)"),
    "words": ({"embeddings": [["x"] * DIM, GOOD]}, "row 0 .*'a'.*'x'"),
    "booleans": ({"embeddings": [GOOD, [True] * DIM]}, "row 1 .*'b'.*True"),
    "text": ({"embeddings": "ab"}, r"the shape \(2, d\), not 'ab'"),
    "complex": ({"embeddings": np.ones((2, DIM), complex)}, "row 0 .*list of numbers"),
    "NaN": ({"embeddings": [GOOD, [np.nan] * DIM]}, "row 1 .*'b'.*NaN"),
    "infinity": ({"embeddings": [[*GOOD[1:], np.inf], GOOD]}, "row 0 .*'a'.*infinity"),
    "zero": ({"embeddings": [[0.0] * DIM, GOOD]}, "row 0 .*zero"),
    "empty key": ({"keys": ["a", ""]}, "row 1 .*key is empty"),
    "long key": ({"keys": ["a", "ä" * 256]}, "row 1 .*512 bytes, more than the 511 allowed"),
    "key no UTF-8": ({"keys": [b"\xff\xfe", "b"]}, "row 0 .*not valid UTF-8"),
    "surrogate key": ({"keys": ["a", "\ud800"]}, "row 1 .*not valid Unicode"),
    "float key": ({"keys": ["a", 1.5]}, "row 1 .*must be a string or an integer"),
    "None key": ({"keys": ["a", None]}, "row 1 .*key is missing"),
    "one string as keys": ({"keys": "ab"}, "keys must be a list, one for each row, not 'ab'"),
    "a number as keys": ({"keys": 2}, "keys must be a list"),
    "a set as keys": ({"keys": {"a", "b"}}, "keys must be a list"),
    "payload no JSON": ({"payloads": [b"{}", b"not json"]}, "row 1 .*payload is not JSON"),
    "payload no document": ({"payloads": [{"a": {1, 2}}, None]}, "row 0 .*payload is not JSON"),
    "endless payload": ({"payloads": [None, SELF]}, "row 1 .*nests too deep"),
    "payload over the bound": ({"payloads": [BIG, None]}, "row 0 .*more than the 262144 allowed"),
    "few payloads": ({"payloads": [None]}, "payloads must be as many as the keys, 2, not 1"),
    "one payload": ({"payloads": {"a": 1}}, "payloads must be a list"),
    "few times": ({"times": [1.5e9]}, "times must be as many as the keys, 2, not 1"),
    "no time": ({"times": [1.5e9, "yesterday"]}, "row 1 .*time must be .*'yesterday'"),
    "a time that is a list": ({"times": [[], 1.5e9]}, "row 0 .*time must be"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_named_and_changes_nothing(opened: Open, name: str) -> None:
    engine = opened()
    engine.upsert(names(30), draw(13, 30))
    before = stored(engine)
    given, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason):
        engine.upsert(**{"keys": ["a", "b"], "embeddings": [GOOD, GOOD], **given})
    assert stored(engine) == before
    assert len(engine) == 30
    assert engine.upsert(["a"], [GOOD]).inserted == 1  # and goes on


@pytest.mark.parametrize("key", ["", b"x" * 512, b"\xff", 1.5, None])
def test_a_delete_of_no_possible_key_is_refused(opened: Open, key: Any) -> None:
    with pytest.raises(InputError, match=r"row 1: the key .*; nothing has changed"):
        opened().delete(["a", key])


def test_a_batch_of_another_dimension_is_refused(opened: Open) -> None:
    engine = opened()
    engine.upsert(names(20), draw(14, 20))
    batch = Batch([b"a"], np.ones((1, 3), np.int16), np.zeros(1, np.int64), [b""])
    with pytest.raises(InputError, match="3 dimensions, not the collection's 8"):
        engine.apply(batch)
    assert engine.upsert(names(1), draw(14, 1)).version == 2


def test_a_dimension_that_was_set_holds_from_the_start(opened: Open) -> None:
    engine = opened(collection={"dim": 5})
    assert engine.dim == 5
    with pytest.raises(InputError, match="8 dimensions, not the collection's 5"):
        engine.upsert(["a"], [GOOD])
    with pytest.raises(InputError, match="8 dimensions, not the collection's 5"):
        engine.assign([GOOD])


@pytest.mark.parametrize(("times", "payloads"), [([1], None), (None, [b"{}"]), ([1, 2, 3], None)])
def test_columns_have_to_be_of_one_length(opened: Open, times: Any, payloads: Any) -> None:
    engine = opened()
    with pytest.raises(InputError, match=r"must be as many as the keys, 2, not [13]"):
        engine.upsert(["a", "b"], [GOOD, GOOD], times=times, payloads=payloads)
    assert engine.version == 0


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [([[np.nan] * DIM], "row 0: .*NaN"), ([GOOD, [0.0] * DIM], "row 1: .*zero"), ([[1.0]], "1 dimension,")],
)
def test_assign_refuses_bad_vectors(opened: Open, vectors: Any, reason: str) -> None:
    engine = opened()
    engine.upsert(names(20), draw(15, 20))
    with pytest.raises(InputError, match=reason):
        engine.assign(vectors)


def test_no_vectors_have_no_answers(opened: Open) -> None:
    engine = opened()
    assert engine.assign([]) == []
    engine.upsert(names(20), draw(15, 20))
    assert engine.assign([]) == []
    assert engine.assign(np.zeros((0, DIM))) == []


def test_tensors_that_numpy_cannot_read_are_refused(opened: Open) -> None:
    import torch

    engine, vectors = opened(), torch.tensor(draw(2, 3))
    for tensor in (vectors.to(torch.bfloat16), vectors.clone().float().requires_grad_()):
        for embeddings in (tensor, list(tensor)):
            with pytest.raises(InputError, match="Tensor cannot be read as a NumPy array: "):
                engine.upsert(names(3), embeddings)
            with pytest.raises(InputError, match="cannot be read as a NumPy array"):
                engine.assign(embeddings)
    assert engine.upsert(names(3), vectors).inserted == 3


class _Series:
    """A column as polars has it: its values are columns again, but in `to_list`."""

    def __init__(self, values: list[Any]) -> None:
        self._values = values

    def __iter__(self) -> Any:
        return (_Series(value) if isinstance(value, list) else value for value in self._values)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        values = np.empty(len(self._values), object)
        values[:] = list(self)
        return values

    def to_list(self) -> list[Any]:
        return self._values


def test_columns_of_lists_that_are_columns_again(opened: Open) -> None:
    engine, vectors = opened(), draw(2, 3)
    engine.upsert(_Series(names(3)), _Series(vectors.tolist()), payloads=_Series([[1], [2], None]))  # type: ignore[arg-type]
    assert [engine[name].payload for name in names(3)] == [[1], [2], None]
    assert engine.upsert(names(3), vectors).updated == 2


def test_a_dimension_beyond_the_bound_is_never_begun_with(opened: Open) -> None:
    engine = opened()
    with pytest.raises(InputError, match="16385 dimensions, not 1 to 16384"):
        engine.upsert(["a"], np.ones((1, 16_385)))
    assert engine.upsert(names(5), draw(1, 5)).inserted == 5


def test_what_is_masked_is_not_taken_for_a_value(opened: Open) -> None:
    engine, vectors = opened(), draw(2, 3)
    hidden = np.ma.array(vectors, mask=False)
    engine.upsert(names(3), hidden, times=np.ma.array([1.5e9, 1.5e9, 1.5e9]))  # nothing is masked
    hidden[1, 2] = np.ma.masked
    for embeddings in (hidden, list(hidden)):
        with pytest.raises(InputError, match="embeddings: some values are masked; fill them"):
            engine.upsert(names(3), embeddings)
        with pytest.raises(InputError, match="embeddings: some values are masked"):
            engine.assign(embeddings)
    with pytest.raises(InputError, match="times: some values are masked"):
        engine.upsert(names(3), vectors, times=np.ma.array([1.5e9] * 3, mask=[0, 1, 0]))
    with pytest.raises(InputError, match=r"row 1 .*: the key is missing"):
        engine.upsert(np.ma.array(names(3), mask=[0, 1, 0]), vectors)
    assert engine.version == 1
    engine.upsert(names(3), vectors, payloads=np.ma.array([1, 2, 3], mask=[0, 1, 0]))
    assert [engine[name].payload for name in names(3)] == [1, None, 3]
