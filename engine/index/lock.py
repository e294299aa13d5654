"""Who may use the HNSW graph: one insert alone, or any number of searches together.

A batch inserts in slices, and the searches that came meanwhile go in between two of them: so a question
waits for a slice, not for a batch. An insert waits for those searches, but not for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE_S = 0.02  # so long an insert lets more searches in; then they have to wait
ASKED_S = 1.0  # so long after a search from another thread there may be another one


class Turnstile:
    """`clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._change = threading.Condition()
        self._clock = clock
        self._searching = self._waiting = 0
        self._inserting = self._pressing = False
        self._asked = -ASKED_S  # when a search last found an insert at work
        self._writer = 0  # the thread that inserts

    @property
    def busy(self) -> bool:
        """Whether searches beside inserts are to be expected: then slices should be short."""
        return self._clock() - self._asked < ASKED_S

    @contextmanager
    def search(self) -> Iterator[None]:
        with self._change:
            if self._writer != threading.get_ident():
                self._asked = self._clock()
            self._waiting += 1
            self._change.wait_for(lambda: not (self._inserting or self._pressing))
            self._waiting -= 1
            self._searching += 1
        try:
            yield
        finally:
            with self._change:
                self._searching -= 1
                self._change.notify_all()

    @contextmanager
    def insert(self) -> Iterator[None]:
        with self._change:
            self._writer = threading.get_ident()
            self._change.wait_for(lambda: not (self._searching or self._waiting), PATIENCE_S)
            self._pressing = True
            self._change.wait_for(lambda: not (self._searching or self._inserting))
            self._pressing, self._inserting = False, True
        try:
            yield
        finally:
            with self._change:
                self._inserting = False
                self._change.notify_all()
