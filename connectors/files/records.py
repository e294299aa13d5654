"""What the readers of all file formats share: rows, and the checks of single values.

Vectors are checked afterwards, all alike. No reader holds more than the rows it was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from engine import records
from engine.config import BoundsSettings

Array = NDArray[Any]
CHUNK_BYTES = 2**20


class Unusable(Exception):
    """Why one record is rejected."""


@dataclass(slots=True)
class Rows:
    """Rows of a file, from `first` up to before `end`. Columns are parallel; `vectors` unchecked."""

    first: int
    end: int
    numbers: list[int] = field(default_factory=list)  # rows of the file, from 0
    keys: list[bytes] = field(default_factory=list)
    vectors: Array | list[Array] = field(default_factory=list)  # (n, d), or n of (d_i,)
    times: list[int] = field(default_factory=list)  # ms
    payloads: list[bytes] = field(default_factory=list)
    deletes: list[tuple[int, bytes]] = field(default_factory=list)  # row, key
    rejected: list[tuple[int, str]] = field(default_factory=list)  # row, reason

    def add_vector(self, vector: Array) -> None:
        """One more (d_i,), where vectors come singly."""
        assert isinstance(self.vectors, list)
        self.vectors.append(vector)


class Reader(Protocol):
    total: int  # rows

    def rows(self, start: int, count: int) -> Iterator[Rows]:
        """From row `start` on, `count` rows at a time."""
        ...


def checked_key(value: Any, bounds: BoundsSettings) -> bytes:
    """UTF-8 of a string, bytes or an integer; raises `Unusable`."""
    if isinstance(value, str):
        try:
            key = value.encode()
        except UnicodeEncodeError:
            raise Unusable("the key is not valid Unicode") from None
    elif isinstance(value, bytes):
        key = value
        try:
            key.decode()
        except UnicodeDecodeError:
            raise Unusable("the key is not valid UTF-8") from None
    elif isinstance(value, int) and not isinstance(value, bool):
        key = str(value).encode()
    else:
        raise Unusable(f"the key must be a string, not {type(value).__name__}")
    if not key:
        raise Unusable("the key is empty")
    if len(key) > bounds.key_max_bytes:
        raise Unusable(f"the key has {len(key)} bytes, more than the {bounds.key_max_bytes} allowed")
    return key


def checked_payload(document: Any, bounds: BoundsSettings) -> bytes:
    """The document as JSON, b"" for none; raises `Unusable`."""
    if document is None or document == {}:
        return b""
    try:
        payload = records.dump(document)
    except TypeError as problem:
        raise Unusable(f"the payload is not JSON: {problem}") from None
    if len(payload) > bounds.payload_max_bytes:
        raise Unusable(
            f"the payload has {len(payload)} bytes, more than the {bounds.payload_max_bytes} allowed"
        )
    return payload


def checked_time(value: Any, missing: int) -> int:
    """Milliseconds since 1970; raises `Unusable`."""
    if value is None:
        return missing
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**62:
        return int(value)
    raise Unusable(f"the time must be in milliseconds since 1970, not {value!r}")


def checked_numbers(value: Any) -> Array:
    """A list of numbers as an array; raises `Unusable`."""
    try:
        vector = np.asarray(value) if isinstance(value, list) else None
    except ValueError:
        vector = None
    if vector is None or vector.ndim != 1 or (len(vector) and vector.dtype.kind not in "fiu"):
        raise Unusable("the embedding must be a list of numbers")
    return vector


def checked_rows(
    stem: str,
    first: int,
    count: int,
    keys: list[Any] | None,
    vectors: Array | list[Array | None],
    times: Sequence[Any],
    documents: Sequence[Any],
    bounds: BoundsSettings,
) -> Rows:
    """Columns of `count` rows from `first` on, single values checked."""
    rows = Rows(first, first + count)
    kept = []
    for i in range(count):
        try:
            if vectors[i] is None:
                raise Unusable("the embedding is missing")
            key = checked_key(f"{stem}:{first + i}" if keys is None else keys[i], bounds)
            payload = checked_payload(documents[i], bounds)
            time = checked_time(times[i], 0)
        except Unusable as problem:
            rows.rejected.append((first + i, str(problem)))
            continue
        kept.append(i)
        rows.numbers.append(first + i)
        rows.keys.append(key)
        rows.times.append(time)
        rows.payloads.append(payload)
    if isinstance(vectors, np.ndarray):
        rows.vectors = vectors[kept]
    else:
        rows.vectors = [row for i in kept if (row := vectors[i]) is not None]
    return rows


def as_text(value: Any) -> str:
    raw = value.item() if isinstance(value, np.generic) else value
    return raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)


def as_object(text: str) -> dict[str, Any]:
    """The JSON object in a text, or the text under the name `text`."""
    if text.startswith("{"):
        try:
            found = orjson.loads(text)
        except orjson.JSONDecodeError:
            found = None
        if isinstance(found, dict):
            return found
    return {"text": text}


def modified_ms(path: Path) -> int:
    """The event time of records that tell none: when their file was written."""
    return path.stat().st_mtime_ns // 1_000_000


def brief(problem: BaseException) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0].rstrip(".")
