"""Compute themes while batches run, on a thread of their own, and keep the last ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime  # Python 3.10 has one of its own
from typing import Any, Protocol

import numba

from engine.collection.collection import Engine
from engine.collection.themes import check_step
from engine.errors import WriterBusy
from engine.model.blocks import use_one_thread
from engine.types import Themes


class Between(Protocol):
    """Runs work between two batches; see `engine.daemon.writer`."""

    def __call__(self, work: Callable[[], Any], timeout_s: float) -> Any: ...


class ThemeKeeper:
    """The themes of the live state, computed on request.

    Only their inputs are copied between two batches. They are computed again for another version, but for at
    most `[limits] theme_share` of the time; in between, the last ones, which say their version, are returned.
    """

    def __init__(self, engine: Engine, between: Between, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine, self._between, self._clock = engine, between, clock
        self._lock = threading.Lock()
        self._kept: Themes | None = None
        self._due_s = 0.0  # not computed again before
        self._computing: Future[Themes] | None = None

    def ask(self, step: int, timeout_s: float) -> Themes:
        """Return themes that have a level `step` above the final clusters.

        Raises InputError (there is no such level, or there are too many clusters), WriterBusy, WriterAway.
        """
        check_step(step, len(self._engine.settings.model.coarser))
        with self._lock:
            kept, computing = self._kept, self._computing
            if kept and (kept.version == self._engine.version or self._clock() < self._due_s):
                return kept
            if computing is None:
                computing = self._computing = Future()
                threading.Thread(target=self._work, args=(computing, timeout_s), daemon=True).start()
        try:
            return computing.result(timeout_s)
        except (NotInTime, WriterBusy):
            if kept:
                return kept
            raise WriterBusy("the themes are being computed; try again") from None

    def _work(self, computing: Future[Themes], timeout_s: float) -> None:
        use_one_thread()
        numba.set_num_threads(1)
        found: Themes | BaseException
        try:
            found = self._compute(timeout_s)
        except BaseException as problem:
            found = problem
        with self._lock:
            self._computing = None
        if isinstance(found, Themes):
            computing.set_result(found)
        else:
            computing.set_exception(found)

    def _compute(self, timeout_s: float) -> Themes:
        start = 0.0

        def prepare() -> Callable[[], Themes]:
            nonlocal start
            start = self._clock()
            return self._engine.prepare_themes()

        found: Themes = self._between(prepare, timeout_s)()
        end = self._clock()
        rest_s = (end - start) * (1 / self._engine.settings.limits.theme_share - 1)
        with self._lock:
            self._kept, self._due_s = found, end + rest_s
        return found
