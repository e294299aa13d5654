"""Request bodies: bounded in size and time, and what is in them checked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from engine import records
from engine.api.problems import Problem
from engine.config import MAX_DIM
from engine.types import Float32

LEAST_BYTES_PER_S = 1024  # slower is too slow
_STAND_INS = {"embedding": [0.0], "embeddings": [[0.0]]}  # many numbers are checked faster by numpy


async def chunks(request: Request, limit: int, patience_s: float) -> AsyncIterator[bytes]:
    """A body of at most `limit` bytes as it comes. Raises Problem: too large, too slow, ends early."""
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    got, waited, stream = 0, 0.0, aiter(request.stream())  # not what the taker of a chunk needs for it
    while True:
        start, left = time.monotonic(), patience_s + got / LEAST_BYTES_PER_S - waited
        try:
            chunk = await asyncio.wait_for(anext(stream), min(left, patience_s))
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            raise Problem("too-slow", f"The body came too slowly ({got} bytes so far).") from None
        except ClientDisconnect:  # nobody reads this, but it is counted and logged as what it is
            raise Problem("bad-request", f"The client left in mid-body ({got} bytes so far).") from None
        waited += time.monotonic() - start
        got += len(chunk)
        if got > limit:
            raise _too_large(limit)
        yield chunk


async def document(request: Request, limit: int, patience_s: float) -> Any:
    """A body that is JSON. Raises Problem."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem("wrong-type", f"The body must be application/json, not {kind or 'of no type'}.")
    parts = [chunk async for chunk in chunks(request, limit, patience_s)]
    try:
        return orjson.loads(b"".join(parts))
    except orjson.JSONDecodeError as error:
        raise Problem("bad-json", f"The body is not JSON: {error}.") from None


def fields(model: type[BaseModel], found: Any) -> dict[str, Any]:
    """A JSON object as the model wants it; its vectors are as they came, for `matrix`. Raises Problem."""
    if not isinstance(found, dict):
        raise Problem("invalid", f"The body must be a JSON object, not {type(found).__name__}.")
    if reason := records.fault(found.get("payload")):
        raise Problem("invalid", f"payload: {reason}.")
    vectors = {name: found[name] for name in _STAND_INS if name in found}
    try:
        known = model.model_validate({**found, **{name: _STAND_INS[name] for name in vectors}})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise Problem("invalid", f"{where}: {first['msg']}.") from None
    return {**known.model_dump(exclude_unset=True), **vectors}


def matrix(rows: Any, most: int, dim: int | None) -> Float32:
    """(n, d) of lists of numbers, 1 <= n <= most. Raises Problem, naming the row."""
    if not isinstance(rows, list) or not rows:
        raise Problem("invalid", "embeddings must be a list of vectors, and not an empty one.")
    if len(rows) > most:
        raise Problem("too-large", f"{len(rows)} vectors at once; {most} are taken ([api] assign_max).")
    wanted, checked = dim, []
    for at, row in enumerate(rows):
        vector = as_vector(row, wanted)
        if isinstance(vector, str):
            raise Problem("invalid", f"vector {at}: {vector}.")
        wanted = len(vector)
        checked.append(vector)
    return np.stack(checked)


def as_vector(value: Any, dim: int | None) -> Float32 | str:
    """(d,) of a JSON value; or why it is no vector of the collection."""
    if not isinstance(value, list):
        return f"a vector is a list of numbers, not {type(value).__name__}"
    if not value or len(value) > MAX_DIM:
        return f"a vector has 1 to {MAX_DIM} numbers, not {len(value)}"
    if not set(map(type, value)) <= {int, float}:
        odd = next(one for one in value if type(one) not in (int, float))
        return f"a vector is a list of numbers, and there is {odd!r:.40} in it"
    if dim and len(value) != dim:
        return f"the vector has {len(value)} dimensions, the collection {dim}"
    with np.errstate(over="ignore"):
        vector = np.array(value, np.float32)
    if not np.isfinite(vector).all():
        return "a number in the vector is too large for float32"
    if not vector.any():
        return "the vector is all zeros"
    return vector


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
        "too-large", f"The body has more than {limit} bytes ([api] body_max_bytes, bulk_max_bytes)."
    )
