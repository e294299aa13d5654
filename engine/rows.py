"""Records on their way to a batch: checked one by one or column by column, the last one of a key counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.config import MAX_DIM, LimitsSettings
from engine.errors import Unusable
from engine.records import (
    Record,
    dump_json,
    join_payload,
    read_key,
    read_payload,
    read_vector,
    text_vector,
    wrong_dimension,
)
from engine.times import is_doubtful, read_times, shown_time
from engine.types import Batch, Int16
from engine.vectors import quantize

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Columns:
    """Records side by side: n vectors and, where there are such columns, n of everything else."""

    vectors: Array | Sequence[Any]  # (n, d) of numbers, or n vectors, None: missing
    keys: Sequence[Any]
    times: Any = None  # array or sequence
    payloads: Sequence[Any] | None = None
    extras: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # role -> values; see `records.EXTRAS`


@dataclass(frozen=True, slots=True)
class Settled:
    """The batch made from rows, and what was rejected or flagged."""

    batch: Batch  # without positions
    rejected: Sequence[tuple[int, str]]  # row and reason, by row
    doubts: Sequence[tuple[int, str]]  # rows that were taken although their time is hardly right
    superseded: int  # usable records that a later one of the same key replaced
    dim: int | None  # of the vectors; None: not known yet


@dataclass(frozen=True, slots=True)
class Kept:
    """Usable records side by side, in the order they came; a key may come twice, dimensions may differ."""

    numbers: Sequence[int]
    keys: Sequence[bytes]
    vectors: Array | Sequence[Array]
    times: Sequence[int]  # ms
    payloads: Sequence[bytes]
    deletes: Sequence[tuple[int, bytes]]  # number and key
    rejected: Sequence[tuple[int, str]]


class Rows:
    """Gathers records under rising numbers. `default_ms`: the time of records that have none."""

    def __init__(self, limits: LimitsSettings, default_ms: int, now_ms: int | None = None) -> None:
        self._limits, self._default_ms = limits, default_ms
        self._now_ms = default_ms if now_ms is None else now_ms
        self._numbers: list[int] = []
        self._keys: list[bytes] = []
        self._vectors: Array | list[Array] = []  # (n, d), or n of (d_i,)
        self._times: list[int] = []
        self._payloads: list[bytes] = []
        self._deletes: list[tuple[int, bytes]] = []
        self._rejected: list[tuple[int, str]] = []
        self._doubts: list[tuple[int, str]] = []

    def add(self, number: int, record: Record) -> None:
        """Append one record."""
        if record.vector is None:
            self._deletes.append((number, record.key))
            return
        time_ms = self._default_ms if record.time_ms is None else record.time_ms
        self._keep(number, record.key, time_ms, record.payload)
        if record.time_ms is not None and is_doubtful(time_ms, self._now_ms):
            self._doubt(number, time_ms)
        self._loose().append(record.vector)

    def refuse(self, number: int, reason: str) -> None:
        """Record a rejected row."""
        self._rejected.append((number, reason))

    def extend(self, first: int, columns: Columns) -> None:
        """Append columns; rows are numbered from `first`."""
        count, kept = len(columns.keys), []
        times, told, wrong = _times(columns.times, count)
        doubtful = told & is_doubtful(times, self._now_ms)
        vectors = columns.vectors
        for row in range(count):
            try:
                key = read_key(columns.keys[row], self._limits)
                vector = None if isinstance(vectors, np.ndarray) else _present(vectors[row])
                if row in wrong:
                    raise Unusable(wrong[row])
                payload = self._payload(columns, row)
            except Unusable as problem:
                self.refuse(first + row, str(problem))
                continue
            kept.append(row)
            time_ms = int(times[row]) if told[row] else self._default_ms
            self._keep(first + row, key, time_ms, payload)
            if vector is not None:
                self._loose().append(vector)
            if doubtful[row]:
                self._doubt(first + row, time_ms)
        if isinstance(vectors, np.ndarray):
            self._vectors = [*self._vectors, *vectors[kept]] if len(self._vectors) else vectors[kept]

    def kept(self) -> Kept:
        """Return all usable records, whatever their dimensions."""
        columns = (self._numbers, self._keys, self._vectors, self._times, self._payloads)
        return Kept(*columns, self._deletes, self._rejected)

    def settle(self, dim: int | None) -> Settled:
        """Return the net effect of all rows. `dim`: the collection's, None: that of most of these vectors."""
        grid, kept, wrong, dim = _on_grid(self._vectors, dim)
        refused = self._rejected + [(self._numbers[row], reason) for row, reason in wrong.items()]
        last = last_of_each(((self._numbers[row], self._keys[row]) for row in kept), self._deletes)
        chosen = [at for at, row in enumerate(kept) if last[self._keys[row]] == self._numbers[row]]
        rows = [kept[at] for at in chosen]
        batch = Batch(
            keys=[self._keys[row] for row in rows],
            vectors=grid[chosen],
            times=np.array([self._times[row] for row in rows], np.int64),
            payloads=[self._payloads[row] for row in rows],
            deletes=[key for number, key in self._deletes if last[key] == number],
        )
        superseded = len(kept) + len(self._deletes) - len(batch.keys) - len(batch.deletes)
        return Settled(batch, sorted(refused), sorted(self._doubts), superseded, dim)

    def _keep(self, number: int, key: bytes, time_ms: int, payload: bytes) -> None:
        self._numbers.append(number)
        self._keys.append(key)
        self._times.append(time_ms)
        self._payloads.append(payload)

    def _loose(self) -> list[Array]:
        """Convert the vectors to a list, so that rows of other dimensions can be appended."""
        if isinstance(self._vectors, np.ndarray):
            self._vectors = list(self._vectors)
        return self._vectors

    def _payload(self, columns: Columns, row: int) -> bytes:
        payload = b"" if columns.payloads is None else read_payload(columns.payloads[row], self._limits)
        if not columns.extras:
            return payload
        extras = {role: dump_json(values[row], role) for role, values in columns.extras.items()}
        return join_payload(payload, extras, self._limits)

    def _doubt(self, number: int, time_ms: int) -> None:
        side = "more than a day ahead" if time_ms > self._now_ms else "before 1990"
        self._doubts.append((number, f"the time {shown_time(time_ms)} is {side}"))


def _times(column: Any, count: int) -> tuple[Any, Any, dict[int, str]]:
    if column is None:
        return np.zeros(count, np.int64), np.zeros(count, np.bool_), {}
    return read_times(column)


def _present(vector: Any) -> Array:
    """Return the vector of one row. Raises Unusable: it is missing or malformed."""
    if vector is None:
        raise Unusable("the embedding is missing")
    return read_vector(text_vector(vector) if isinstance(vector, str) else vector)


def last_of_each(
    upserts: Iterable[tuple[int, bytes]], deletes: Iterable[tuple[int, bytes]]
) -> dict[bytes, int]:
    """Return the number of each key's last record; `upserts` come by rising number."""
    last = {key: number for number, key in upserts}
    for number, key in deletes:
        last[key] = max(number, last.get(key, -1))
    return last


def majority(lengths: NDArray[np.int64]) -> int | None:
    """Return the dimension that most vectors have; on a tie, the one that came first; None without any."""
    counts = Counter(lengths[(lengths >= 1) & (lengths <= MAX_DIM)].tolist())
    return counts.most_common(1)[0][0] if counts else None


def _on_grid(
    vectors: Array | list[Array], dim: int | None
) -> tuple[Int16, list[int], dict[int, str], int | None]:
    """Return the valid vectors on the grid, their rows, the reasons of the others, and the dimension."""
    if isinstance(vectors, np.ndarray):
        lengths = np.full(len(vectors), vectors.shape[1], np.int64)
    else:
        lengths = np.fromiter(map(len, vectors), np.int64, len(vectors))
    wanted = dim or majority(lengths)
    wrong = {
        int(row): wrong_dimension(int(lengths[row]), wanted) for row in np.flatnonzero(lengths != wanted)
    }
    fits = np.flatnonzero(lengths == wanted)
    if not len(fits):
        return np.zeros((0, wanted or 1), np.int16), [], wrong, dim
    rows = vectors[fits] if isinstance(vectors, np.ndarray) else np.stack([vectors[row] for row in fits])
    grid, bad = quantize(rows)
    wrong |= {int(fits[place]): reason for place, reason in bad.items()}
    good = np.array([place for place in range(len(fits)) if place not in bad], np.int64)
    return grid[good], fits[good].tolist(), wrong, wanted if len(good) else dim
