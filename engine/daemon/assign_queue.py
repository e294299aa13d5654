"""Micro-batches `assign` requests on one thread.

For the model a few vectors cost what one does, and more threads would only take the cores from the batch
that is being applied.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as NotInTime  # Python 3.10 has one of its own
from dataclasses import dataclass

import numpy as np

from engine.collection.assign import Answer
from engine.errors import WriterAway, WriterBusy
from engine.model.blocks import use_one_thread
from engine.types import Int16

Answers = tuple[int, list[Answer]]  # of one version


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    grid: Int16  # (m, d)
    answer: Future[Answers]


class AssignQueue:
    """Queue of requests for the thread that answers them, `together` vectors per micro-batch.

    `assign` answers for grid vectors (m, d). At most `waiting_max` vectors wait.
    """

    def __init__(self, assign: Callable[[Int16], Answers], together: int, waiting_max: int) -> None:
        self._assign, self._together, self._waiting_max = assign, together, waiting_max
        self._change = threading.Condition()
        self._waiting: list[_Request] = []
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="assign", daemon=True)
        self._thread.start()

    def ask(self, grid: Int16, timeout_s: float) -> Answers:
        """Return the answers for vectors (m, d). Raises WriterBusy, WriterAway, and what `assign` raises."""
        request = _Request(grid, Future())
        with self._change:
            if self._closed:
                raise WriterAway("the writer is stopping; try again when it is back")
            if sum(len(other.grid) for other in self._waiting) > self._waiting_max:
                raise WriterBusy(f"more than {self._waiting_max} vectors wait already; try again")
            self._waiting.append(request)
            self._change.notify()
        try:
            return request.answer.result(timeout_s)
        except NotInTime:
            request.answer.cancel()
            raise WriterBusy("the writer is too busy to answer in time; try again") from None
        except CancelledError:
            raise WriterAway("the writer is stopping; try again when it is back") from None

    def close(self) -> None:
        """Refuse the requests that wait, and end the thread."""
        with self._change:
            self._closed = True
            for request in self._waiting:
                request.answer.cancel()
            self._waiting.clear()
            self._change.notify()
        self._thread.join()

    def _work(self) -> None:
        use_one_thread()
        while requests := self._next():
            requests = [one for one in requests if one.answer.set_running_or_notify_cancel()]
            if requests:
                self._answer(requests)

    def _next(self) -> list[_Request]:
        """Block for the next requests that fit together, at least one; return none when closed."""
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._closed)
            count, total = 0, 0
            for request in self._waiting:
                total += len(request.grid)
                alike = request.grid.shape[1] == self._waiting[0].grid.shape[1]
                if count and (total > self._together or not alike):
                    break
                count += 1
            taken, self._waiting = self._waiting[:count], self._waiting[count:]
            return taken

    def _answer(self, requests: list[_Request]) -> None:
        try:
            version, answers = self._assign(np.concatenate([one.grid for one in requests]))
        except Exception as problem:
            for request in requests:
                request.answer.set_exception(problem)
            return
        at = 0
        for request in requests:
            request.answer.set_result((version, answers[at : at + len(request.grid)]))
            at += len(request.grid)
