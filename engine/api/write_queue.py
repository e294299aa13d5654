"""Group commit: writes that arrive while the writer is busy are gathered into one call of it.

At most `[api] submits_max` calls are under way. The records of all requests that wait then go to the writer
together, as many as fit, and become durable with one commit. So the number of clients does not bound how
many writes are served, and a request waits for two commits at most while the writer keeps up.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine import submissions
from engine.api.problems import Problem
from engine.api.writer_client import WriterClient
from engine.config import Settings
from engine.errors import ShoalError, WriterBusy
from engine.records import Record
from engine.streams import Body

FRAME_SHARE = 4  # of a frame to the writer: with one more record than fits, and what goes with each


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of some records, durable as of `version`; indices are those of the records given."""

    version: int
    rejected: Mapping[int, str]  # index -> reason
    doubts: Mapping[int, str]  # index -> why the time of a record that was taken is implausible
    unknown: frozenset[int]  # deletes of keys that no item had

    def written(self, count: int) -> int:
        """Return how many of `count` records changed or confirmed an item."""
        return count - len(self.rejected) - len(self.unknown)


@dataclass(eq=False, slots=True)
class _Waiting:
    """A request's records, and when it stops waiting (time.monotonic)."""

    records: Sequence[Record]
    size: int
    deadline: float
    outcome: asyncio.Future[Outcome]


class WriteQueue:
    """Used in the event loop only. `records_max`, `bytes_max`: what may go to the writer in one call."""

    def __init__(self, writer: WriterClient, settings: Settings) -> None:
        bounds = settings.api
        self._writer, self._calls_max = writer, bounds.submits_max
        self.records_max = min(bounds.bulk_batch, settings.limits.queue_records)
        self.bytes_max = min(bounds.body_max_bytes, settings.control.frame_max_bytes // FRAME_SHARE)
        self.rejected = 0  # records of requests that could not be used
        self._waiting: deque[_Waiting] = deque()
        self._calls: set[asyncio.Task[None]] = set()

    async def submit(self, records: Sequence[Record], timeout_s: float) -> Outcome:
        """Write records; returns once they are durable. Raises WriterBusy (no time left), WriterAway."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        size = sum(record.size for record in records)
        waiting = _Waiting(records, size, time.monotonic() + timeout_s, outcome)
        self._waiting.append(waiting)
        self._start()
        try:
            found = await asyncio.wait_for(outcome, timeout_s)
        except asyncio.TimeoutError:
            raise WriterBusy("the records were not durable in time; send them again") from None
        self.rejected += len(found.rejected)
        return found

    def _start(self) -> None:
        """Call the writer with what waits, while it may be called."""
        while len(self._calls) < self._calls_max and (group := self._take()):
            call = asyncio.create_task(self._send(group))
            self._calls.add(call)
            call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._start()

    def _take(self) -> list[_Waiting]:
        """Return requests whose records fit into one call; drop those that timed out."""
        group: list[_Waiting] = []
        count = size = 0
        while self._waiting:
            first = self._waiting[0]
            if first.outcome.done():
                self._waiting.popleft()
                continue
            count, size = count + len(first.records), size + first.size
            if group and (count > self.records_max or size > self.bytes_max):
                break
            group.append(self._waiting.popleft())
        return group

    async def _send(self, group: Sequence[_Waiting]) -> None:
        body, blob = submissions.pack([record for each in group for record in each.records])
        timeout_s = max(0.0, max(each.deadline for each in group) - time.monotonic())
        try:
            answer = await self._writer.call("submit", body, None, timeout_s, blob)
        except (Problem, ShoalError) as error:
            for each in group:
                if not each.outcome.done():
                    each.outcome.set_exception(error)
            return
        start = 0
        for each in group:
            if not each.outcome.done():
                each.outcome.set_result(_part(answer, range(start, start + len(each.records))))
            start += len(each.records)


def _part(answer: Body, indices: range) -> Outcome:
    """Return the outcome of the records at these indices."""
    rejected, doubts = (
        {one["index"] - indices.start: one["reason"] for one in answer[name] if one["index"] in indices}
        for name in ("rejected", "doubts")
    )
    unknown = frozenset(index - indices.start for index in answer["unknown"] if index in indices)
    return Outcome(answer["version"], rejected, doubts, unknown)
