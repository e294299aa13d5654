"""Request bodies that cannot be used: refused with a sentence, whatever is in them and however they come."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest
from fastapi import Request

from engine.api import bodies, ndjson
from engine.api.ndjson import Piece
from engine.api.problems import Problem
from engine.api.responses import PutRequest
from engine.api.store_reader import StoreReader
from engine.api.writer_client import WriterClient
from engine.config import BoundsSettings, load
from engine.errors import ShoalError, StoreFull, Unusable, WriterBusy
from engine.records import read_payload

NDJSON = "application/x-ndjson"


def nested(levels: int) -> Any:
    return orjson.loads(b"[" * levels + b"1" + b"]" * levels)


@pytest.mark.parametrize("levels", [250, 252, 254, 300, 1000])
def test_a_payload_that_no_answer_could_hold_is_refused(levels: int) -> None:
    with pytest.raises(Unusable, match="the payload is not JSON: it nests too deep"):
        read_payload(nested(levels), BoundsSettings())
    with pytest.raises(Problem, match="payload: it nests too deep"):
        bodies.fields(PutRequest, {"embedding": [1.0], "payload": nested(levels)})
    for name in "payload", "time":
        piece = Piece(1)
        piece.take(b'{"key": "a", "embedding": [1.0], "%b": %b}' % (name.encode(), deep(levels)))
        ((line, reason),) = piece.refused
        assert line == 1
        assert reason.startswith(f"the {name} ")


def deep(levels: int) -> bytes:
    return b"[" * levels + b"1" + b"]" * levels


def test_a_deep_payload_is_kept_as_it_is() -> None:
    assert read_payload(nested(245), BoundsSettings()) == deep(245)
    given = bodies.fields(PutRequest, {"embedding": [1.0], "payload": nested(245)})
    assert given["payload"] == nested(245)


@pytest.mark.parametrize("value", ["99999999999999999999", "5", True, 5.5, 2**62, 1e30])
def test_a_time_is_a_number_of_milliseconds(value: object) -> None:
    with pytest.raises(Problem, match="time: "):
        bodies.fields(PutRequest, {"embedding": [1.0], "time": value})
    assert bodies.fields(PutRequest, {"embedding": [1.0], "time": -5})["time"] == -5


def request_of(*pieces: bytes, ends: str = "http.request", pause_s: float = 0.0, kind: str = "") -> Request:
    """A body that comes in these pieces, and then ends so."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": ends})

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause_s)
        return messages.pop(0)

    return Request({"type": "http", "method": "POST", "headers": [(b"content-type", kind.encode())]}, receive)


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
    assert asyncio.run(sizes(request_of(b"a", b"b", b"c"), 0.2, busy_s=0.15)) == [1, 1, 1]
    with pytest.raises(Problem, match="too slowly"):
        asyncio.run(sizes(request_of(b"a", b"b", b"c", pause_s=0.15), 0.2))


class Refusing:
    """A writer that takes one piece and then fails."""

    def __init__(self, error: Exception) -> None:
        self._error, self._called = error, 0

    async def call(self, *arguments: Any) -> dict[str, Any]:
        self._called += 1
        if self._called > 1:
            raise self._error
        return {"version": 4, "rejected": []}


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
    view = SimpleNamespace(version=3, dim=1, collection="toy")
    reader, writer = (
        cast(StoreReader, SimpleNamespace(view=lambda: view)),
        cast(WriterClient, Refusing(error)),
    )
    with pytest.raises(Problem) as caught:
        asyncio.run(ndjson.take(request, load(None, {"api.bulk_batch": 1}), reader, writer))
    assert caught.value.kind.name == kind
    assert {"lines": 1, "version": 4}.items() <= caught.value.extra.items()
    assert caught.value.extra.get("more") == getattr(error, "extra", {}).get("more")
