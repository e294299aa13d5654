"""Request bodies that cannot be used: refused with a sentence, whatever is in them and however they come."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi import Request

from engine.api import bodies, ndjson
from engine.api.problems import Problem
from engine.api.store_reader import StoreReader
from engine.api.write_queue import Outcome, WriteQueue
from engine.config import load
from engine.errors import ShoalError, StoreFull, WriterBusy

NDJSON = "application/x-ndjson"


def request_of(
    *pieces: bytes, ends: str = "http.request", pause_s: float = 0.0, kind: str = "", coding: str = ""
) -> Request:
    """A body that comes in these pieces, and then ends so."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": ends})

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause_s)
        return messages.pop(0)

    headers = [(b"content-type", kind.encode()), (b"content-encoding", coding.encode())]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


async def sizes(request: Request, patience_s: float, busy_s: float = 0.0) -> list[int]:
    """Of the chunks, each worked on for a while."""
    found = []
    async for chunk in bodies.chunks(request, 10**6, patience_s):
        found.append(len(chunk))
        await asyncio.sleep(busy_s)
    return [size for size in found if size]


def test_a_client_that_leaves_is_no_mistake_of_ours() -> None:
    with pytest.raises(Problem, match="left") as caught:
        asyncio.run(sizes(request_of(b"a", ends="http.disconnect"), 1.0))
    assert caught.value.kind.status == 400


def test_only_the_clients_own_time_counts() -> None:
    assert asyncio.run(sizes(request_of(b"a", b"b", b"c"), 1.0, busy_s=0.4)) == [1, 1, 1]
    with pytest.raises(Problem, match="too slowly"):
        asyncio.run(sizes(request_of(b"a", b"b", b"c", pause_s=0.4), 1.0))


class Refusing:
    """A queue of writes that takes one piece and then fails."""

    def __init__(self, error: Exception) -> None:
        self._error, self._calls, self.rejected = error, 0, 0
        self.records_max, self.bytes_max = 1, 2**20

    async def submit(self, records: Any, timeout_s: float) -> Outcome:
        self._calls += 1
        if self._calls > 1:
            raise self._error
        return Outcome(4, {}, {}, frozenset())


class Counting:
    """A queue of writes that notes how many records each piece has."""

    def __init__(self, records_max: int, bytes_max: int) -> None:
        self.records_max, self.bytes_max = records_max, bytes_max
        self.pieces: list[int] = []
        self.rejected = 0

    async def submit(self, records: Any, timeout_s: float) -> Outcome:
        self.pieces.append(len(records))
        return Outcome(4, {}, {}, frozenset())


@pytest.mark.parametrize(
    ("records_max", "bytes_max", "pieces"),
    [(3, 2**20, [3, 3, 1]), (100, 170, [3, 3, 1])],  # a record of (1 + 8 * 8) bytes in a line of 44
)
def test_a_piece_of_a_bulk_is_bounded_by_what_goes_to_the_writer_at_once(
    records_max: int, bytes_max: int, pieces: list[int]
) -> None:
    request = request_of(b'{"key":"a","embedding":[1,1,1,1,1,1,1,1]}\n' * 7, kind=NDJSON)
    view = SimpleNamespace(version=3, collection="toy")
    writes = Counting(records_max, bytes_max)
    reader = cast(StoreReader, SimpleNamespace(view=lambda: view))
    taken = asyncio.run(ndjson.take(request, load(), reader, cast(WriteQueue, writes)))
    assert (taken["lines"], writes.pieces) == (7, pieces)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StoreFull("the disk is full"), "not-ready"),
        (ShoalError("it failed inside the writer"), "bug"),
        (WriterBusy("not now"), "writer-busy"),
        (Problem("writer-busy", "2 requests wait for the writer already.", more=1), "writer-busy"),
    ],
)
def test_what_stops_a_bulk_says_how_far_it_came(error: Exception, kind: str) -> None:
    request = request_of(b'{"key": "a", "embedding": [1]}\n' * 2, kind=NDJSON)
    view = SimpleNamespace(version=3, collection="toy")
    reader, writes = cast(StoreReader, SimpleNamespace(view=lambda: view)), cast(WriteQueue, Refusing(error))
    with pytest.raises(Problem) as caught:
        asyncio.run(ndjson.take(request, load(), reader, writes))
    assert caught.value.kind.name == kind
    assert {"lines": 1, "version": 4}.items() <= caught.value.extra.items()
    assert caught.value.extra.get("more") == getattr(error, "extra", {}).get("more")
