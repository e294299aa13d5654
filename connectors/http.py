"""What comes in over HTTP: callers' tickets, answered once they are durable.

Delivery: an answer means that the records are in the store. Without one (the daemon ended, the time was up)
they may be in or not; sending them again is safe, for upserts and deletes are idempotent. Records of one
ticket, and tickets one after the other, keep their order: the later one of a key counts.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.errors import InputError, ShoalError, Unusable, WriterAway, WriterBusy
from engine.records import read_key, read_payload, wrong_dimension
from engine.streams import Ground, Handler, Lag
from engine.times import read_time
from engine.types import Applied, Batch, Float32, Int16
from engine.vectors import quantize

PARTITION = "http"


@dataclass(frozen=True, slots=True)
class Entry:
    """One record that can be used. `vector` (d,) on the grid, None: delete."""

    key: bytes
    vector: Int16 | None
    time_ms: int
    payload: bytes


@dataclass(eq=False, slots=True)
class Ticket:
    """The records of one call, in order, and who waits for them."""

    entries: Sequence[Entry]
    size: int  # bytes, about
    arrived: float
    taken: int = 0  # entries handed over
    pending: int = 0  # of those, not durable yet
    version: int = 0  # that has the last of them
    error: ShoalError | None = None
    given_up: bool = False
    done: threading.Event = field(default_factory=threading.Event)

    def finish(self, error: ShoalError | None = None) -> None:
        self.error = error
        self.done.set()


class HttpSource:
    """A bounded queue between the callers of `submit` and the writer. `clock` gives seconds since 1970."""

    name = "http"

    def __init__(self, ground: Ground, clock: Callable[[], float] = time.time) -> None:
        self._bounds = ground.settings.bounds
        self._dim, self._version, self._clock = ground.dim, ground.version, clock
        self._change = threading.Condition()
        self._queue: deque[Ticket] = deque()
        self._records = self._bytes = 0  # of entries not handed over
        self._handed: list[tuple[Ticket, int]] = []  # the batch at work: tickets, and entries of each
        self._closed = False

    @property
    def handlers(self) -> Mapping[str, Handler]:
        return {"submit": self.submit}

    def submit(self, body: dict[str, Any], vectors: Float32 | None) -> dict[str, Any]:
        """Upserts and deletes; returns when they are durable.

        `keys`: n strings; `rows`: for each its row of `vectors`, -1 to delete; `payloads`, `times` (ms):
        n values or absent. Returns `version` and `rejected`: those that cannot be used, `index` and `reason`.
        Raises InputError (not in this form), WriterBusy (no place or time left), WriterAway (stopping).
        """
        deadline = time.monotonic() + float(body.get("timeout_s", 10.0))
        entries, rejected = self._read(body, vectors)
        version = self._version()
        if entries:
            size = sum(
                len(e.key) + len(e.payload) + (0 if e.vector is None else e.vector.nbytes) for e in entries
            )
            version = self._wait(Ticket(entries, size, self._clock()), deadline)
        return {"version": version, "rejected": rejected}

    def poll(self, size: int, timeout_s: float) -> Batch | None:
        assert not self._handed, "a batch is at work"
        with self._change:
            self._change.wait_for(lambda: self._records or self._closed, timeout_s)
            entries = list(self._take(size))
            self._change.notify_all()
        return _batch(entries) if entries else None

    def committed(self, applied: Applied) -> None:
        with self._change:
            handed, self._handed = self._handed, []
            for ticket, count in handed:
                ticket.pending -= count
                ticket.version = applied.version
                if ticket.taken == len(ticket.entries) and not ticket.pending:
                    ticket.finish()

    def lag(self) -> Lag:
        with self._change:
            oldest = max(0.0, self._clock() - self._queue[0].arrived) if self._queue else 0.0
            return Lag({PARTITION: self._records}, oldest)

    def close(self) -> None:
        with self._change:
            self._closed = True
            tickets = [*self._queue, *(ticket for ticket, _ in self._handed)]
            self._queue.clear()
            self._records = self._bytes = 0
            for ticket in tickets:
                ticket.finish(WriterAway("the daemon is stopping; send it again when it is back"))
            self._change.notify_all()

    def _read(
        self, body: Mapping[str, Any], vectors: Float32 | None
    ) -> tuple[list[Entry], list[dict[str, Any]]]:
        keys, rows = body.get("keys"), body.get("rows")
        if not isinstance(keys, list) or not isinstance(rows, list) or len(keys) != len(rows):
            raise InputError("submit needs as many rows as keys")
        payloads, times = (body.get(name) or [None] * len(keys) for name in ("payloads", "times"))
        if len(payloads) != len(keys) or len(times) != len(keys):
            raise InputError("submit needs as many payloads and times as keys, or none")
        if len(keys) > self._bounds.queue_records:
            raise InputError(f"{len(keys)} records at once, at most {self._bounds.queue_records}: send fewer")
        grid, wrong = self._on_grid(vectors)
        now_ms = int(self._clock() * 1000)
        entries, rejected = [], []
        for index, (key, row, payload, time_ms) in enumerate(zip(keys, rows, payloads, times, strict=True)):
            try:
                if type(row) is not int or row >= len(grid):
                    raise InputError(f"record {index} names row {row!r} of {len(grid)} vectors")
                if row in wrong:
                    raise Unusable(wrong[row])
                name = read_key(key, self._bounds)
                told = read_time(time_ms)
                when = now_ms if told is None else told
                vector = grid[row] if row >= 0 else None
                entries.append(Entry(name, vector, when, read_payload(payload, self._bounds)))
            except Unusable as problem:
                rejected.append({"index": index, "reason": str(problem)})
        return entries, rejected

    def _on_grid(self, vectors: Float32 | None) -> tuple[Int16, Mapping[int, str]]:
        if vectors is None or not len(vectors):
            return np.empty((0, 0), np.int16), {}
        known, given = self._dim(), vectors.shape[1]
        if known not in (None, given) or not given:
            reason = wrong_dimension(given, known)
            return np.empty((len(vectors), 0), np.int16), dict.fromkeys(range(len(vectors)), reason)
        return quantize(vectors)

    def _wait(self, ticket: Ticket, deadline: float) -> int:
        with self._change:
            fits = self._change.wait_for(lambda: self._closed or self._has_room(ticket), _left(deadline))
            if self._closed:
                raise WriterAway("the daemon is stopping; send it again when it is back")
            if not fits:
                raise WriterBusy(f"{self._records} records wait already; try again")
            self._queue.append(ticket)
            self._records += len(ticket.entries)
            self._bytes += ticket.size
            self._change.notify_all()
        if not ticket.done.wait(_left(deadline)):
            with self._change:
                ticket.given_up = True
            raise WriterBusy("the records were not durable in time; send them again")
        if ticket.error:
            raise ticket.error
        return ticket.version

    def _has_room(self, ticket: Ticket) -> bool:
        """A large ticket fits into an empty queue."""
        bounds = self._bounds
        fits = self._records + len(ticket.entries) <= bounds.queue_records
        return not self._queue or (fits and self._bytes + ticket.size <= bounds.queue_bytes)

    def _take(self, size: int) -> Iterator[Entry]:
        """Entries for a batch of one dimension, and the note of whose they are."""
        dim = self._dim()
        taken = 0
        while self._queue and taken < size:
            ticket = self._queue[0]
            count = min(size - taken, len(ticket.entries) - ticket.taken)
            part = ticket.entries[ticket.taken : ticket.taken + count]
            if not ticket.given_up:
                dim = dim or next((len(e.vector) for e in part if e.vector is not None), None)
                if any(e.vector is not None and len(e.vector) != dim for e in part):
                    ticket.finish(InputError(f"the collection has {dim} dimensions by now"))
                    ticket.given_up = True
            if ticket.given_up:
                count = len(ticket.entries) - ticket.taken
            else:
                self._handed.append((ticket, count))
                ticket.pending += count
                taken += count
                yield from part
            ticket.taken += count
            self._records -= count
            if ticket.taken == len(ticket.entries):
                self._bytes -= ticket.size
                self._queue.popleft()


def _batch(entries: Sequence[Entry]) -> Batch:
    """The net effect: of several records of a key the last one counts."""
    last = {entry.key: entry for entry in entries}
    upserts = [(entry, entry.vector) for entry in last.values() if entry.vector is not None]
    grid = np.stack([vector for _, vector in upserts]) if upserts else np.empty((0, 1), np.int16)
    return Batch(
        keys=[entry.key for entry, _ in upserts],
        vectors=grid,
        times=np.array([entry.time_ms for entry, _ in upserts], np.int64),
        payloads=[entry.payload for entry, _ in upserts],
        deletes=[entry.key for entry in last.values() if entry.vector is None],
    )


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
