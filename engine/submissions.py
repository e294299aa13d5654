"""Records on the writer's socket: one JSON body with their keys, times and sizes, one blob with the rest.

Vectors and payloads cross the socket as bytes: they are neither parsed nor written again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.config import LMDB_KEY_MAX_BYTES
from engine.errors import InputError
from engine.records import Record

NUMBER = np.dtype("<f8")


def pack(records: Sequence[Record]) -> tuple[dict[str, Any], bytes]:
    """Pack records into a body and a blob; the blob has all vectors first, then all payloads."""
    vectors = [record.vector for record in records if record.vector is not None]
    body = {
        "keys": [record.key.decode() for record in records],
        "dims": [0 if record.vector is None else len(record.vector) for record in records],
        "times": [record.time_ms for record in records],
        "payloads": [len(record.payload) for record in records],
    }
    numbers = [np.ascontiguousarray(vector, NUMBER).tobytes() for vector in vectors]
    return body, b"".join([*numbers, *(record.payload for record in records)])


def unpack(body: dict[str, Any], most: int) -> list[Record]:
    """Unpack the records of a body, its blob under "blob"; at most `most`. Raises InputError."""
    columns = [body.get(name) for name in ("keys", "dims", "times", "payloads")]
    blob = body.get("blob", b"")
    if not all(isinstance(column, list) for column in columns) or len({len(c or ()) for c in columns}) != 1:
        raise InputError("a submission needs as many dims, times and payloads as keys")
    keys, dims, times, sizes = (column or [] for column in columns)
    if len(keys) > most:
        raise InputError(f"{len(keys)} records at once, at most {most}: send fewer")
    if not set(map(type, [*dims, *sizes])) <= {int} or min([*dims, *sizes], default=0) < 0:
        raise InputError("the dims and payloads of a submission are sizes")
    if not set(map(type, times)) <= {int, type(None)} or not set(map(type, keys)) <= {str}:
        raise InputError("the keys of a submission are strings, its times integers or null")
    if not all(1 <= len(key.encode(errors="replace")) <= LMDB_KEY_MAX_BYTES for key in keys):
        raise InputError(f"a key has 1 to {LMDB_KEY_MAX_BYTES} bytes")
    split = sum(dims) * NUMBER.itemsize
    if split + sum(sizes) != len(blob):
        raise InputError(f"a submission of {split + sum(sizes)} bytes came with {len(blob)}")
    numbers, at, records, payload = np.frombuffer(blob[:split], NUMBER), 0, [], split
    for key, dim, time_ms, size in zip(keys, dims, times, sizes, strict=True):
        vector = numbers[at : at + dim] if dim else None
        records.append(Record(key.encode(), vector, time_ms, blob[payload : payload + size]))
        at, payload = at + dim, payload + size
    return records
