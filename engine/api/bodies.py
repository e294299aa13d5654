"""Request bodies: bounded in size and time, decompressed, parsed and checked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import numpy as np
import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from engine import records
from engine.api import encodings
from engine.api.problems import Problem
from engine.errors import Unusable, counted
from engine.types import Float32, Float64

MIN_BYTES_PER_S = 1024  # a slower client is cut off
JSON = ("application/json",)

M = TypeVar("M", bound=BaseModel)


def check_type(request: Request, allowed: Sequence[str]) -> None:
    """Raise Problem if the Content-Type is none of these."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in allowed:
        raise Problem("wrong-type", f"The body must be {allowed[0]}, not {kind or 'of no type'}.")


async def chunks(request: Request, limit: int, patience_s: float) -> AsyncIterator[bytes]:
    """Yield a body as it arrives, decompressed: at most `limit` bytes, before and after. Raises Problem.

    The chunks of a compressed body are of at most `encodings.CHUNK_BYTES`.
    """
    decoder, got = encodings.decoder_of(request.headers.get("content-encoding", "")), 0
    async for chunk in _received(request, limit, patience_s):
        for part in decoder.feed(chunk) if decoder else (chunk,):
            got += len(part)
            if got > limit:
                raise _too_large(limit)
            yield part
    if decoder:
        decoder.end()


async def _received(request: Request, limit: int, patience_s: float) -> AsyncIterator[bytes]:
    """Yield a body as the client sends it. Raises Problem: too large, too slow, ends early."""
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    # Only the client's time counts, not what the caller spends on a chunk.
    got, waited, stream = 0, 0.0, aiter(request.stream())
    while True:
        start, left = time.monotonic(), patience_s + got / MIN_BYTES_PER_S - waited
        try:
            chunk = await asyncio.wait_for(anext(stream), min(left, patience_s))
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            raise Problem("too-slow", f"The body came too slowly ({counted(got, 'byte')} so far).") from None
        except ClientDisconnect:  # the client is gone, but the problem is counted and logged
            told = f"The client left in mid-body ({counted(got, 'byte')} so far)."
            raise Problem("bad-request", told) from None
        waited += time.monotonic() - start
        got += len(chunk)
        if got > limit:
            raise _too_large(limit)
        yield chunk


async def read(request: Request, limit: int, patience_s: float) -> bytes:
    """Return a whole JSON body, unparsed. Raises Problem."""
    check_type(request, JSON)
    return b"".join([chunk async for chunk in chunks(request, limit, patience_s)])


def parse_object(raw: bytes) -> dict[str, Any]:
    """Parse a body that must be a JSON object. Raises Problem."""
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Problem("bad-json", f"The body is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise Problem("invalid", f"The body must be a JSON object, not {records.kind_of(found)}.")
    return found


def parse(model: type[M], raw: bytes) -> M:
    """Parse a body into a model. Raises Problem."""
    try:
        return model.model_validate(parse_object(raw))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise Problem("invalid", f"{where}: {first['msg']}.") from None


def parse_record(parser: records.Parser, raw: bytes, key: str) -> records.Record:
    """Parse a body into the record of the item `key`. Raises Problem."""
    try:
        return parser.parse(raw, key)
    except Unusable as problem:
        parse_object(raw)  # broken JSON is a problem of another kind
        raise Problem("invalid", f"{problem}.") from None


def matrix(rows: Any, most: int, dim: int | None) -> Float32:
    """Convert lists of numbers to (n, d), 1 <= n <= most. `dim` None: the first row's. Raises Problem.

    Only the direction of a row counts. So each is divided by its largest component, which keeps every
    float64 within float32.
    """
    if not isinstance(rows, list) or not rows:
        raise Problem("invalid", "embeddings must be a list of vectors, and not an empty one.")
    if len(rows) > most:
        found = f"{len(rows)} vectors in one request, at most {most} are allowed ([api] assign_max)."
        raise Problem("too-large", found)
    wanted, checked = dim, list[Float64]()
    for at, row in enumerate(rows):
        try:
            vector = records.read_vector(row)
            wanted = wanted or len(vector)
            if len(vector) != wanted:
                raise Unusable(records.wrong_dimension(len(vector), wanted))
        except Unusable as problem:
            raise Problem("invalid", f"vector {at}: {problem}.") from None
        checked.append(vector / np.abs(vector).max())
    return np.stack(checked).astype(np.float32)


def item_key(encoded: str, most: int) -> str:
    """Decode the key in a path, which is still percent-encoded. Raises Problem."""
    key = unquote_to_bytes(encoded)
    if not 1 <= len(key) <= most:
        raise Problem("bad-key", f"A key has 1 to {most} bytes, this one {len(key)}.")
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise Problem("bad-key", f"The key is not UTF-8 at byte {error.start}.") from None


def _too_large(limit: int) -> Problem:
    return Problem(
        "too-large",
        f"The body has more than {limit} bytes ([api] body_max_bytes and bulk_max_bytes, [limits] "
        "record_max_bytes).",
    )
