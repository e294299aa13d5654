"""Group commit: what waits shares a call; each request learns what came of its own records."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import numpy as np
import pytest

from engine import submissions
from engine.api.write_queue import Outcome, WriteQueue
from engine.api.writer_client import WriterClient
from engine.config import load
from engine.errors import StoreFull, WriterBusy
from engine.records import Record


class Writer:
    """Answers when it is told; remembers what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Record], asyncio.Future[dict[str, Any]]]] = []

    async def call(self, op: str, body: Any, vectors: None, timeout_s: float, blob: bytes) -> dict[str, Any]:
        assert op == "submit"
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.calls.append((submissions.unpack({**body, "blob": blob}, 10**6), answer))
        return await answer

    def keys(self, call: int) -> list[str]:
        return [record.key.decode() for record in self.calls[call][0]]

    def answer(self, call: int, version: int, **named: Any) -> None:
        self.calls[call][1].set_result(
            {"version": version, "rejected": [], "doubts": [], "unknown": [], **named}
        )


def records(*keys: str, payload: int = 0) -> list[Record]:
    return [Record(key.encode(), np.array([1.0]), None, b"x" * payload) for key in keys]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def queue_of(writer: Writer, **settings: int) -> WriteQueue:
    """`submits_max=1` sets `[api] submits_max`, `limits__queue_records=2` a setting of another section."""
    named = {name if "__" in name else f"api__{name}": value for name, value in settings.items()}
    chosen = load(None, {name.replace("__", "."): value for name, value in named.items()})
    return WriteQueue(cast(WriterClient, writer), chosen)


def test_what_comes_meanwhile_shares_the_next_call() -> None:
    async def story() -> None:
        writer = Writer()
        queue = queue_of(writer, submits_max=1)
        tasks = [asyncio.create_task(queue.submit(records(str(n)), 60.0)) for n in range(5)]
        await settle()
        assert writer.keys(0) == ["0"]
        writer.answer(0, 8)
        await settle()
        assert writer.keys(1) == ["1", "2", "3", "4"]
        writer.answer(1, 9)
        assert [(await task).version for task in tasks] == [8, 9, 9, 9, 9]
        assert len(writer.calls) == 2

    asyncio.run(story())


def test_each_request_learns_of_its_own_records() -> None:
    async def story() -> None:
        writer = Writer()
        queue = queue_of(writer, submits_max=1)
        first = asyncio.create_task(queue.submit(records("x"), 60.0))
        await settle()
        tasks = [asyncio.create_task(queue.submit(records(*keys), 60.0)) for keys in ("ab", "cde")]
        await settle()
        writer.answer(0, 8)
        await settle()
        assert writer.keys(1) == list("abcde")
        rejected = [{"index": 1, "reason": "b"}, {"index": 4, "reason": "e"}]
        writer.answer(1, 9, rejected=rejected, doubts=[{"index": 2, "reason": "c"}], unknown=[0, 3])
        assert await tasks[0] == Outcome(9, {1: "b"}, {}, frozenset({0}))
        assert await tasks[1] == Outcome(9, {2: "e"}, {0: "c"}, frozenset({1}))
        assert (await first).written(1) == 1
        assert (await tasks[1]).written(3) == 1

    asyncio.run(story())


@pytest.mark.parametrize(
    "bound",
    [
        {"bulk_batch": 3},
        {"limits__queue_records": 3},  # what the writer takes at once
        {"control__frame_max_bytes": 2**16, "size": 5000},  # and what fits into a frame of its socket
    ],
)
def test_a_call_is_bounded_and_a_large_request_goes_alone(bound: dict[str, int]) -> None:
    size_of_each = bound.pop("size", 0)

    async def story() -> None:
        writer = Writer()
        queue = queue_of(writer, submits_max=1, **bound)
        sizes = [1, 2, 2, 9, 1]
        tasks = [
            asyncio.create_task(
                queue.submit(records(*(f"{n}:{at}" for at in range(size)), payload=size_of_each), 60.0)
            )
            for n, size in enumerate(sizes)
        ]
        for call, count in enumerate([1, 2, 2, 9, 1]):
            await settle()
            assert len(writer.calls[call][0]) == count
            writer.answer(call, call)
        await asyncio.gather(*tasks)

    asyncio.run(story())


def test_who_gave_up_is_not_sent_and_an_error_reaches_everyone() -> None:
    async def story() -> None:
        writer = Writer()
        queue = queue_of(writer, submits_max=1)
        first = asyncio.create_task(queue.submit(records("a"), 60.0))
        await settle()
        with pytest.raises(WriterBusy, match="send them again"):
            await queue.submit(records("hasty"), 0.01)
        others = [asyncio.create_task(queue.submit(records(key), 60.0)) for key in "bc"]
        await settle()
        writer.answer(0, 8)
        await settle()
        assert writer.keys(1) == ["b", "c"]
        writer.calls[1][1].set_exception(StoreFull("the disk is full"))
        for task in others:
            with pytest.raises(StoreFull):
                await task
        assert (await first).version == 8

    asyncio.run(story())
