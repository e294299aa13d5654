"""The lock of an HNSW graph: one insert alone, or any number of searches together.

A batch inserts in slices, and waiting searches run between two slices: a query waits for a slice, not
for a batch. An insert waits for those searches, but only for `PATIENCE_S`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE_S = 0.02  # for so long an insert lets new searches in; then they wait
ASKED_S = 1.0  # for so long after a search from another thread, expect another one


class GraphLock:
    """Searches share the graph, an insert has it alone. `clock` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._change = threading.Condition()
        self._clock = clock
        self._searching = self._waiting = 0
        self._inserting = self._pressing = False
        self._asked = -ASKED_S  # when another thread last searched
        self._writer = 0  # the thread that inserts

    @property
    def busy(self) -> bool:
        """Return whether searches are to be expected during inserts: slices should then be short."""
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
