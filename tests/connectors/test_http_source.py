"""Records over HTTP: a ticket is answered when its records are durable, and only then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from connectors.http import HttpSource
from engine.config import Settings
from engine.errors import InputError, WriterAway, WriterBusy
from engine.streams import Ground
from engine.types import Applied, Batch
from engine.vectors import quantize

Answer = dict[str, Any]


class Desk:
    """A source, callers of it in threads, and a writer that commits when told."""

    def __init__(self, dim: int | None = None, **bounds: Any) -> None:
        self.dim, self.version, self.now = dim, 7, 100.0
        ground = Ground(
            Settings(bounds=bounds), "identity", lambda name: None, lambda: self.version, lambda: self.dim
        )
        self.source = HttpSource(ground, lambda: self.now)
        self._pool = ThreadPoolExecutor(8)

    def submit(
        self, *records: tuple[Any, ...], timeout_s: float = 10.0, waits: bool = True
    ) -> Future[Answer]:
        """(key, vector or None, payload); returns once it waits in the queue or is refused; or at once,
        where somebody polls meanwhile.
        """
        vectors = [record[1] for record in records if record[1] is not None]
        body = {
            "keys": [record[0] for record in records],
            "rows": [-1 if record[1] is None else vectors.index(record[1]) for record in records],
            "payloads": [record[2] if len(record) > 2 else None for record in records],
            "timeout_s": timeout_s,
        }
        before = self.waiting
        matrix = np.array(vectors, np.float32) if vectors else None
        future = self._pool.submit(self.source.submit, body, matrix)
        if waits:
            until(lambda: future.done() or self.waiting > before)
        return future

    @property
    def waiting(self) -> int:
        return self.source.lag().total

    def poll(self, size: int = 1000) -> Batch:
        batch = self.source.poll(size, 5.0)
        assert batch is not None
        return batch

    def commit(self) -> None:
        self.version += 1
        self.source.committed(Applied(self.version))


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def still_open(future: Future[Answer]) -> bool:
    time.sleep(0.05)
    return not future.done()


def test_an_answer_comes_with_the_commit() -> None:
    desk = Desk()
    asked = desk.submit(("a", [1.0, 2.0], {"n": 1}), ("b", None))
    batch = desk.poll()
    assert list(batch.keys) == [b"a"]
    assert list(batch.deletes) == [b"b"]
    assert np.array_equal(batch.vectors, quantize([[1.0, 2.0]])[0])
    assert (list(batch.payloads), batch.times.tolist()) == ([b'{"n":1}'], [100_000])
    assert (dict(batch.positions), list(batch.rejected)) == ({}, [])
    assert still_open(asked)
    desk.commit()
    assert asked.result(5) == {"version": 8, "rejected": []}
    assert desk.source.poll(10, 0.01) is None


def test_the_last_record_of_a_key_counts() -> None:
    desk = Desk()
    first = desk.submit(("a", [1.0, 0.0]), ("b", [1.0, 1.0]), ("a", [0.0, 1.0]), ("c", None))
    second = desk.submit(("b", None), ("c", [1.0, 0.0]))
    batch = desk.poll()
    found = dict(zip(batch.keys, batch.vectors.tolist(), strict=True))
    assert found == {b"a": [0, 2**14], b"c": [2**14, 0]}
    assert list(batch.deletes) == [b"b"]
    desk.commit()
    assert first.result(5)["version"] == second.result(5)["version"] == 8


def test_a_ticket_larger_than_a_batch_is_answered_after_its_last_part() -> None:
    desk = Desk()
    large = desk.submit(*((f"k{i}", [1.0, float(i)]) for i in range(10)))
    small = desk.submit(("z", [1.0, 0.0]))
    assert [len(desk.poll(4).keys), desk.waiting] == [4, 7]
    desk.commit()
    assert still_open(large)
    assert len(desk.poll(4).keys) == 4
    desk.commit()
    assert list(desk.poll(4).keys) == [b"k8", b"k9", b"z"]
    assert still_open(large)
    desk.commit()
    assert large.result(5)["version"] == small.result(5)["version"] == 10


def test_what_cannot_be_used_is_named_and_the_rest_goes_on() -> None:
    desk = Desk(key_max_bytes=5, payload_max_bytes=20)
    asked = desk.submit(
        ("", [1.0, 0.0]),
        ("too long", [1.0, 1.0]),
        ("nan", [float("nan"), 1.0]),
        ("zero", [0.0, 0.0]),
        ("big", [1.0, 2.0], "x" * 30),
        ("good", [1.0, 3.0]),
    )
    assert list(desk.poll().keys) == [b"good"]
    desk.commit()
    rejected = asked.result(5)["rejected"]
    assert [one["index"] for one in rejected] == [0, 1, 2, 3, 4]
    for one, words in zip(rejected, ("empty", "8 bytes", "NaN", "zero", "payload"), strict=True):
        assert words in one["reason"]


def test_a_ticket_without_a_usable_record_is_answered_at_once() -> None:
    desk = Desk(dim=3)
    assert desk.submit(("a", [1.0, 2.0])).result(5) == {
        "version": 7,
        "rejected": [{"index": 0, "reason": "the embedding has 2 dimensions, not the collection's 3"}],
    }
    assert desk.waiting == 0


def test_two_dimensions_race_for_an_empty_collection() -> None:
    desk = Desk()
    two, three = desk.submit(("a", [1.0, 2.0])), desk.submit(("b", [1.0, 2.0, 3.0]))
    gone = desk.submit(("c", None))
    batch = desk.poll()
    assert (list(batch.keys), list(batch.deletes)) == ([b"a"], [b"c"])
    desk.commit()
    assert two.result(5)["version"] == gone.result(5)["version"] == 8
    with pytest.raises(InputError, match="2 dimensions by now"):
        three.result(5)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"keys": ["a"], "rows": []},
        {"keys": ["a"], "rows": [0]},
        {"keys": ["a"], "rows": ["x"]},
        {"keys": ["a"], "rows": [-1], "times": [1, 2]},
        {"keys": ["a"] * 9, "rows": [-1] * 9},
    ],
)
def test_a_ticket_in_another_form_is_refused(body: Answer) -> None:
    with pytest.raises(InputError):
        Desk(queue_records=8).source.submit({**body, "timeout_s": 0.1}, None)


def test_a_full_queue_waits_and_then_refuses() -> None:
    desk = Desk(queue_records=4)
    first = desk.submit(*((f"k{i}", None) for i in range(4)))
    start = time.monotonic()
    with pytest.raises(WriterBusy, match="4 records wait already"):
        desk.submit(("z", None), timeout_s=0.2).result(5)
    assert time.monotonic() - start >= 0.2
    patient = desk._pool.submit(desk.source.submit, {"keys": ["y"], "rows": [-1], "timeout_s": 5.0}, None)
    assert still_open(patient)
    desk.poll()
    desk.commit()
    assert first.result(5)["version"] == 8
    assert list(desk.poll().deletes) == [b"y"]
    desk.commit()
    assert patient.result(5)["version"] == 9


def test_bytes_are_bounded_but_a_large_ticket_fits_alone() -> None:
    desk = Desk(queue_bytes=2**16)
    payload = "x" * 50_000
    desk.submit(*((f"k{i}", [1.0, 2.0], payload) for i in range(3)))
    with pytest.raises(WriterBusy):
        desk.submit(("z", [1.0, 2.0]), timeout_s=0.1).result(5)
    desk.poll()
    desk.commit()
    assert still_open(desk.submit(("z", [1.0, 2.0])))


def test_who_gives_up_is_not_taken() -> None:
    desk = Desk()
    hasty = desk.submit(("a", None), timeout_s=0.1)
    with pytest.raises(WriterBusy, match="not durable in time; send them again"):
        hasty.result(5)
    desk.submit(("b", None))
    assert list(desk.poll().deletes) == [b"b"]


def test_closing_tells_everyone() -> None:
    desk = Desk(queue_records=4)
    handed = desk.submit(("a", None))
    desk.poll()
    queued = desk.submit(*((f"k{i}", None) for i in range(4)))
    waiting = desk._pool.submit(desk.source.submit, {"keys": ["y"], "rows": [-1], "timeout_s": 5.0}, None)
    time.sleep(0.05)
    desk.source.close()
    for future in (handed, queued, waiting):
        with pytest.raises(WriterAway, match="stopping"):
            future.result(5)
    with pytest.raises(WriterAway):
        desk.submit(("z", None)).result(5)
    assert desk.waiting == 0


def test_lag_is_what_waits_and_how_long() -> None:
    desk = Desk()
    assert (desk.source.lag().total, desk.source.lag().oldest_unread_s) == (0, 0.0)
    desk.submit(("a", None), ("b", None))
    desk.now += 3.5
    assert (desk.source.lag().records, desk.source.lag().oldest_unread_s) == ({"http": 2}, 3.5)


def test_a_poll_waits_for_the_first_record_only() -> None:
    desk = Desk()
    start = time.monotonic()
    assert desk.source.poll(10, 0.1) is None
    assert 0.1 <= time.monotonic() - start < 1.0
    threading.Timer(0.1, lambda: desk.submit(("a", None), waits=False)).start()
    start = time.monotonic()
    assert list(desk.poll().deletes) == [b"a"]
    assert time.monotonic() - start < 1.0
