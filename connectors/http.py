"""The HTTP source: a bounded queue of tickets, each answered when its records are durable.

Delivery: an answer means that the records are in the store. Without one (the daemon ended, the time was up)
they may be in or not; sending them again is safe, because upserts and deletes are idempotent. Records of one
ticket, and successive tickets, keep their order: the last record of a key counts. All tickets that wait when
the writer polls share its batch, and so one commit.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine import submissions
from engine.errors import ShoalError, WriterAway, WriterBusy
from engine.records import Record
from engine.rows import Rows
from engine.streams import Handler, Lag, SourceContext
from engine.types import Applied, Batch, Float32

PARTITION = "http"
TIMEOUT_S = 10.0  # of a caller that names none
STOPPING = "the daemon is stopping; send it again when it is back"


@dataclass(eq=False, slots=True)
class Ticket:
    """The records of one call and their outcome."""

    records: Sequence[Record]
    size: int  # bytes, about
    arrived: float
    taken: int = 0  # records handed over
    pending: int = 0  # of those, not durable yet
    version: int = 0  # that has the last of them
    rejected: dict[int, str] = field(default_factory=dict)  # index -> reason
    doubts: dict[int, str] = field(default_factory=dict)  # index -> why its time is implausible
    unknown: list[int] = field(default_factory=list)  # deletes of keys that no item had
    error: ShoalError | None = None
    given_up: bool = False
    done: threading.Event = field(default_factory=threading.Event)

    def settle(self, count: int, version: int) -> None:
        """Count `count` records as durable in `version`."""
        self.pending -= count
        self.version = version
        if self.taken == len(self.records) and not self.pending:
            self.done.set()

    def fail(self, error: ShoalError) -> None:
        self.error = error
        self.done.set()


@dataclass(frozen=True, slots=True)
class Part:
    """Records of a ticket that are in the current batch."""

    ticket: Ticket
    first: int
    count: int


class HttpSource:
    """A bounded queue between the callers of `submit` and the writer. `clock` gives seconds since 1970."""

    name = "http"

    def __init__(self, context: SourceContext, clock: Callable[[], float] = time.time) -> None:
        self._context, self._limits, self._clock = context, context.settings.limits, clock
        self._change = threading.Condition()
        self._queue: deque[Ticket] = deque()
        self._records = self._bytes = 0  # of records not handed over
        self._handed: list[Part] = []  # the current batch
        self._closed = False

    @property
    def handlers(self) -> Mapping[str, Handler]:
        return {"submit": self.submit}

    def submit(self, body: dict[str, Any], vectors: Float32 | None = None) -> dict[str, Any]:
        """Apply upserts and deletes packed by `submissions.pack`; return when they are durable.

        The answer has the `version`; `rejected`, `index` and `reason` of records that cannot be used;
        `doubts`, those of records taken with an implausible time; and `unknown`, the indices of deletes of
        keys that no item had. Raises InputError (not of this form), WriterBusy (no room or time left),
        WriterAway (stopping).
        """
        deadline = time.monotonic() + float(body.get("timeout_s", TIMEOUT_S))
        records = submissions.unpack(body, self._limits.queue_records)
        if not records:
            return {"version": self._context.version(), "rejected": [], "doubts": [], "unknown": []}
        ticket = Ticket(records, sum(record.size for record in records), self._clock())
        self._wait(ticket, deadline)
        return {
            "version": ticket.version,
            "rejected": _named(ticket.rejected),
            "doubts": _named(ticket.doubts),
            "unknown": ticket.unknown,
        }

    def poll(self, size: int, timeout_s: float) -> Batch | None:
        assert not self._handed, "a batch is in progress"
        with self._change:
            self._change.wait_for(lambda: self._records or self._closed, timeout_s)
            self._handed = list(self._take(size))
            self._change.notify_all()
        if not self._handed:
            return None
        batch = self._settle(self._handed)
        if not len(batch.keys) and not len(batch.deletes):  # all rejected: nothing to commit
            self._finish(self._context.version())
            return None
        return batch

    def committed(self, applied: Applied) -> None:
        self._finish(applied.version)

    def lag(self) -> Lag:
        with self._change:
            oldest = max(0.0, self._clock() - self._queue[0].arrived) if self._queue else 0.0
            return Lag({PARTITION: self._records}, oldest)

    def close(self) -> None:
        with self._change:
            self._closed = True
            tickets = [*self._queue, *(part.ticket for part in self._handed)]
            self._queue.clear()
            self._records = self._bytes = 0
            for ticket in tickets:
                ticket.fail(WriterAway(STOPPING))
            self._change.notify_all()

    def _wait(self, ticket: Ticket, deadline: float) -> None:
        """Queue a ticket and wait until it is answered."""
        with self._change:
            fits = self._change.wait_for(lambda: self._closed or self._has_room(ticket), _left(deadline))
            if self._closed:
                raise WriterAway(STOPPING)
            if not fits:
                raise WriterBusy(f"{self._records} records wait already; try again")
            self._queue.append(ticket)
            self._records += len(ticket.records)
            self._bytes += ticket.size
            self._change.notify_all()
        if not ticket.done.wait(_left(deadline)):
            with self._change:
                ticket.given_up = True
            raise WriterBusy("the records were not durable in time; send them again")
        if ticket.error:
            raise ticket.error

    def _has_room(self, ticket: Ticket) -> bool:
        """Return whether a ticket fits into the queue; an empty queue accepts any."""
        limits = self._limits
        fits = self._records + len(ticket.records) <= limits.queue_records
        return not self._queue or (fits and self._bytes + ticket.size <= limits.queue_bytes)

    def _take(self, size: int) -> Iterator[Part]:
        """Take the records of the next batch from the queue; tickets without a caller are dropped."""
        taken = 0
        while self._queue and taken < size:
            ticket = self._queue[0]
            left = len(ticket.records) - ticket.taken
            count = left if ticket.given_up else min(size - taken, left)
            part = Part(ticket, ticket.taken, count)
            ticket.taken += count
            self._records -= count
            if ticket.taken == len(ticket.records):
                self._bytes -= ticket.size
                self._queue.popleft()
            if not ticket.given_up:
                ticket.pending += count
                taken += count
                yield part

    def _settle(self, parts: Sequence[Part]) -> Batch:
        """Return the net effect of some records; note on the tickets what was rejected or unknown."""
        rows = Rows(self._limits, int(self._clock() * 1000))
        places = [(part.ticket, part.first + at) for part in parts for at in range(part.count)]
        for number, (ticket, index) in enumerate(places):
            rows.add(number, ticket.records[index])
        settled = rows.settle(self._context.dim())
        for number, reason in settled.rejected:
            ticket, index = places[number]
            ticket.rejected[index] = reason
        for number, reason in settled.doubts:
            ticket, index = places[number]
            ticket.doubts[index] = reason
        self._find_unknown(places)
        return settled.batch

    def _find_unknown(self, places: Sequence[tuple[Ticket, int]]) -> None:
        """Note deletes of keys that neither the store nor an earlier record of the batch has."""
        present: dict[bytes, bool] = {}
        for ticket, index in places:
            record = ticket.records[index]
            if record.vector is not None:
                if index not in ticket.rejected:
                    present[record.key] = True
                continue
            if not present.get(record.key, self._context.holds(record.key)):
                ticket.unknown.append(index)
            present[record.key] = False

    def _finish(self, version: int) -> None:
        """Mark the current batch as durable on its tickets."""
        with self._change:
            handed, self._handed = self._handed, []
            for part in handed:
                part.ticket.settle(part.count, version)


def _named(reasons: Mapping[int, str]) -> list[dict[str, Any]]:
    return [{"index": index, "reason": reason} for index, reason in sorted(reasons.items())]


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
