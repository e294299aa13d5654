"""Questions where vectors would go, answered by one thread: those that wait are answered together.

For the model a few vectors cost what one does, and more threads would only take the cores from the batch
that is at work.
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
from engine.model.linkage import use_one_thread
from engine.types import Int16

Probe = Callable[[Int16], tuple[int, list[Answer]]]


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    grid: Int16  # (m, d)
    answer: Future[tuple[int, list[Answer]]]


class Prober:
    """`probe` answers for vectors (m, d); at most `together` at once, and `waiting_max` wait."""

    def __init__(self, probe: Probe, together: int, waiting_max: int) -> None:
        self._probe, self._together, self._waiting_max = probe, together, waiting_max
        self._change = threading.Condition()
        self._waiting: list[_Question] = []
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="prober", daemon=True)
        self._thread.start()

    def ask(self, grid: Int16, timeout_s: float) -> tuple[int, list[Answer]]:
        """The version and the answers of vectors (m, d). Raises WriterBusy, WriterAway, and as `probe`."""
        question = _Question(grid, Future())
        with self._change:
            if self._closed:
                raise WriterAway("the writer is stopping; try again when it is back")
            if sum(len(other.grid) for other in self._waiting) > self._waiting_max:
                raise WriterBusy(f"more than {self._waiting_max} vectors wait already; try again")
            self._waiting.append(question)
            self._change.notify()
        try:
            return question.answer.result(timeout_s)
        except NotInTime:
            question.answer.cancel()
            raise WriterBusy("the writer has too much to do to answer in time; try again") from None
        except CancelledError:
            raise WriterAway("the writer is stopping; try again when it is back") from None

    def close(self) -> None:
        """Those that wait are told to come again."""
        with self._change:
            self._closed = True
            for question in self._waiting:
                question.answer.cancel()
            self._waiting.clear()
            self._change.notify()
        self._thread.join()

    def _work(self) -> None:
        use_one_thread()
        while questions := self._next():
            questions = [one for one in questions if one.answer.set_running_or_notify_cancel()]
            if questions:
                self._answer(questions)

    def _next(self) -> list[_Question]:
        """Some that fit together, at least one; none: closed."""
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._closed)
            count, total = 0, 0
            for question in self._waiting:
                total += len(question.grid)
                alike = question.grid.shape[1] == self._waiting[0].grid.shape[1]
                if count and (total > self._together or not alike):
                    break
                count += 1
            taken, self._waiting = self._waiting[:count], self._waiting[count:]
            return taken

    def _answer(self, questions: list[_Question]) -> None:
        try:
            version, answers = self._probe(np.concatenate([one.grid for one in questions]))
        except Exception as problem:
            for question in questions:
                question.answer.set_exception(problem)
            return
        at = 0
        for question in questions:
            question.answer.set_result((version, answers[at : at + len(question.grid)]))
            at += len(question.grid)
