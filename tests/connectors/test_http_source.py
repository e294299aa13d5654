"""Records over HTTP: a ticket is answered when its records are durable, and only then."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from connectors.http import HttpSource
from engine import submissions
from engine.config import Settings
from engine.errors import InputError, WriterAway, WriterBusy
from engine.records import Record
from engine.streams import SourceContext
from engine.types import Applied, Batch
from engine.vectors import quantize
from tests.support.waiting import until

Answer = dict[str, Any]
FINE = {"rejected": [], "doubts": [], "unknown": []}


def record(key: str, vector: list[float] | None = None, payload: bytes = b"") -> Record:
    """An upsert, or a delete without a vector."""
    return Record(key.encode(), None if vector is None else np.array(vector, np.float64), None, payload)


class Desk:
    """A source, callers of it in threads, and a writer that commits when told."""

    def __init__(self, dim: int | None = None, holds: set[bytes] = frozenset(), **bounds: Any) -> None:
        self.dim, self.version, self.now = dim, 7, 100.0
        context = SourceContext(
            Settings(limits=bounds),
            "identity",
            lambda name: None,
            lambda: self.version,
            lambda: self.dim,
            holds.__contains__,
        )
        self.source = HttpSource(context, lambda: self.now)
        self._pool = ThreadPoolExecutor(8)

    def call(self, *records: Record, timeout_s: float = 60.0) -> Future[Answer]:
        """`submit` in a thread."""
        body, blob = submissions.pack(records)
        return self._pool.submit(self.source.submit, {**body, "blob": blob, "timeout_s": timeout_s})

    def submit(self, *records: Record, timeout_s: float = 60.0) -> Future[Answer]:
        """The same; returns once the records wait in the queue, or are refused."""
        before = self.waiting
        future = self.call(*records, timeout_s=timeout_s)
        until(lambda: future.done() or self.waiting > before)
        return future

    @property
    def waiting(self) -> int:
        return self.source.lag().total

    def poll(self, size: int = 1000) -> Batch:
        batch = self.source.poll(size, 60.0)
        assert batch is not None
        return batch

    def commit(self) -> None:
        self.version += 1
        self.source.committed(Applied(self.version))


@pytest.fixture
def desks() -> Iterator[list[Desk]]:
    made: list[Desk] = []
    yield made
    for desk in made:
        desk.source.close()


def test_an_answer_comes_with_the_commit() -> None:
    desk = Desk(holds={b"b"})
    asked = desk.submit(record("a", [1.0, 2.0], b'{"n":1}'), record("b"))
    batch = desk.poll()
    assert list(batch.keys) == [b"a"]
    assert list(batch.deletes) == [b"b"]
    assert np.array_equal(batch.vectors, quantize([[1.0, 2.0]])[0])
    assert (list(batch.payloads), batch.times.tolist()) == ([b'{"n":1}'], [100_000])
    assert (dict(batch.positions), list(batch.rejected)) == ({}, [])
    assert not asked.done()
    desk.commit()
    assert asked.result(60) == {"version": 8, **FINE}
    assert desk.source.poll(10, 0.01) is None


def test_the_last_record_of_a_key_counts() -> None:
    desk = Desk()
    first = desk.submit(record("a", [1, 0]), record("b", [1, 1]), record("a", [0, 1]), record("c"))
    second = desk.submit(record("b"), record("c", [1, 0]))
    batch = desk.poll()
    found = dict(zip(batch.keys, batch.vectors.tolist(), strict=True))
    assert found == {b"a": [0, 2**14], b"c": [2**14, 0]}
    assert list(batch.deletes) == [b"b"]
    desk.commit()
    assert first.result(60) == {"version": 8, **FINE, "unknown": [3]}
    assert second.result(60) == {"version": 8, **FINE}


def test_tickets_that_wait_share_a_commit() -> None:
    desk = Desk()
    tickets = [desk.submit(record(f"k{n}", [1.0, n])) for n in range(8)]
    assert len(desk.poll().keys) == 8
    desk.commit()
    assert [ticket.result(60)["version"] for ticket in tickets] == [8] * 8


def test_deletes_of_unknown_keys_are_named() -> None:
    """Of the store's items and of the records before them, also within one batch."""
    desk = Desk(holds={b"old"})
    first = desk.submit(record("old"), record("none"), record("old"))
    second = desk.submit(record("new", [1.0, 0.0]), record("new"), record("bad", [0.0, 0.0]), record("bad"))
    desk.poll()
    desk.commit()
    assert first.result(60)["unknown"] == [1, 2]
    assert second.result(60)["unknown"] == [3]


def test_a_ticket_larger_than_a_batch_is_answered_after_its_last_part() -> None:
    desk = Desk()
    large = desk.submit(*(record(f"k{i}", [1.0, float(i)]) for i in range(10)))
    small = desk.submit(record("z", [1.0, 0.0]))
    assert [len(desk.poll(4).keys), desk.waiting] == [4, 7]
    desk.commit()
    assert len(desk.poll(4).keys) == 4
    desk.commit()
    assert list(desk.poll(4).keys) == [b"k8", b"k9", b"z"]
    assert not large.done()
    desk.commit()
    assert large.result(60)["version"] == small.result(60)["version"] == 10


def test_what_cannot_be_used_is_named_and_the_rest_goes_on() -> None:
    desk = Desk(dim=2)
    asked = desk.submit(
        record("nan", [float("nan"), 1.0]), record("zero", [0.0, 0.0]), record("long", [1.0, 2.0, 3.0]),
        record("good", [1.0, 3.0]),
    )  # fmt: skip
    assert list(desk.poll().keys) == [b"good"]
    desk.commit()
    rejected = asked.result(60)["rejected"]
    assert [one["index"] for one in rejected] == [0, 1, 2]
    for one, words in zip(rejected, ("NaN", "zero", "3 dimensions, not the collection's 2"), strict=True):
        assert words in one["reason"]


def test_a_ticket_without_a_usable_record_needs_no_commit() -> None:
    desk = Desk(dim=3)
    asked = desk.submit(record("a", [1.0, 2.0]))
    assert desk.source.poll(10, 60.0) is None
    assert asked.result(60) == {
        "version": 7,
        **FINE,
        "rejected": [{"index": 0, "reason": "the embedding has 2 dimensions, not the collection's 3"}],
    }
    assert desk.waiting == 0
    desk.submit(record("b", [1.0, 2.0, 3.0]))
    assert list(desk.poll().keys) == [b"b"], "the queue goes on"


def test_two_dimensions_race_for_an_empty_collection() -> None:
    desk = Desk()
    two, three = desk.submit(record("a", [1.0, 2.0])), desk.submit(record("b", [1.0, 2.0, 3.0]))
    batch = desk.poll()
    assert list(batch.keys) == [b"a"]
    desk.commit()
    assert two.result(60) == {"version": 8, **FINE}
    assert "3 dimensions" in three.result(60)["rejected"][0]["reason"]


def test_an_implausible_time_is_taken_and_named() -> None:
    desk = Desk()
    asked = desk.submit(Record(b"a", np.array([1.0, 0.0]), 5_000), record("b", [1.0, 0.0]))
    assert desk.poll().times.tolist() == [5_000, 100_000]
    desk.commit()
    (doubt,) = asked.result(60)["doubts"]
    assert doubt["index"] == 0
    assert "1970" in doubt["reason"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"keys": ["a"], "dims": [0], "times": [None]},
        {"keys": ["a"], "dims": [0], "times": [], "payloads": [0]},
        {"keys": ["a"], "dims": [1], "times": [None], "payloads": [0]},
        {"keys": ["a"], "dims": [-1], "times": [None], "payloads": [0], "blob": b"12345678"},
        {"keys": ["a"], "dims": ["x"], "times": [None], "payloads": [0]},
        {"keys": ["a"], "dims": [0], "times": ["now"], "payloads": [0]},
        {"keys": [1], "dims": [0], "times": [None], "payloads": [0]},
        {"keys": [""], "dims": [0], "times": [None], "payloads": [0]},
        {"keys": ["x" * 512], "dims": [0], "times": [None], "payloads": [0]},
        {"keys": ["a"] * 9, "dims": [0] * 9, "times": [None] * 9, "payloads": [0] * 9},
    ],
)
def test_a_ticket_in_another_form_is_refused(body: Answer) -> None:
    with pytest.raises(InputError):
        Desk(queue_records=8).source.submit({**body, "timeout_s": 0.1})


def test_a_submission_comes_out_as_it_went_in() -> None:
    records = [
        record("a", [1.5, -2.0], b'{"n": 1}'),
        record("\u00e4"),
        Record(b"c", np.array([0.1]), -5, b"[]"),
    ]
    body, blob = submissions.pack(records)
    for one, other in zip(submissions.unpack({**body, "blob": blob}, 3), records, strict=True):
        assert (one.key, one.time_ms, one.payload) == (other.key, other.time_ms, other.payload)
        assert np.array_equal(one.vector, other.vector)  # type: ignore[arg-type]


def test_a_full_queue_waits_and_then_refuses(desks: list[Desk]) -> None:
    desk = Desk(queue_records=4)
    desks.append(desk)
    first = desk.submit(*(record(f"k{i}") for i in range(4)))
    with pytest.raises(WriterBusy, match="4 records wait already"):
        desk.call(record("z"), timeout_s=0.05).result(60)
    patient = desk.call(record("y"))
    desk.poll()
    desk.commit()
    assert first.result(60)["version"] == 8
    assert list(desk.poll().deletes) == [b"y"]
    desk.commit()
    assert patient.result(60)["version"] == 9


def test_bytes_are_bounded_but_a_large_ticket_fits_alone(desks: list[Desk]) -> None:
    desk = Desk(queue_bytes=2**16)
    desks.append(desk)
    payload = b"x" * 50_000
    desk.submit(*(record(f"k{i}", [1.0, 2.0], payload) for i in range(3)))
    with pytest.raises(WriterBusy):
        desk.call(record("z", [1.0, 2.0]), timeout_s=0.05).result(60)
    desk.poll()
    desk.commit()
    assert not desk.submit(record("z", [1.0, 2.0])).done()


def test_who_gives_up_is_not_taken(desks: list[Desk]) -> None:
    desk = Desk()
    desks.append(desk)
    hasty = desk.submit(record("a"), timeout_s=0.1)
    with pytest.raises(WriterBusy, match="not durable in time; send them again"):
        hasty.result(60)
    desk.submit(record("b"))
    assert list(desk.poll().deletes) == [b"b"]


def test_closing_tells_everyone() -> None:
    desk = Desk(queue_records=4)
    handed = desk.submit(record("a"))
    desk.poll()
    queued = desk.submit(*(record(f"k{i}") for i in range(4)))
    waiting = desk.call(record("y"))
    desk.source.close()
    for future in (handed, queued, waiting):
        with pytest.raises(WriterAway, match="stopping"):
            future.result(60)
    with pytest.raises(WriterAway):
        desk.call(record("z")).result(60)
    assert desk.waiting == 0


def test_lag_is_what_waits_and_how_long(desks: list[Desk]) -> None:
    desk = Desk()
    desks.append(desk)
    assert (desk.source.lag().total, desk.source.lag().oldest_unread_s) == (0, 0.0)
    desk.submit(record("a"), record("b"))
    desk.now += 3.5
    assert (desk.source.lag().records, desk.source.lag().oldest_unread_s) == ({"http": 2}, 3.5)


def test_a_poll_waits_for_the_first_record_only(desks: list[Desk]) -> None:
    desk = Desk()
    desks.append(desk)
    assert desk.source.poll(10, 0.01) is None
    threading.Timer(0.05, lambda: desk.call(record("a"))).start()
    assert list(desk.poll().deletes) == [b"a"], "long before the time is up"
