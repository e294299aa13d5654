"""Seconds by stage of one batch."""

from __future__ import annotations

import time
from collections.abc import Callable


class Stopwatch:
    """`lap(stage)` books the time since the last lap on a stage; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last = clock()
        self.seconds: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = self._clock()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
