"""Time spent in each stage of a batch."""

from __future__ import annotations

import time
from collections.abc import Callable


class Stopwatch:
    """Books time on stages: `lap(stage)` adds the seconds since the previous lap."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last = clock()
        self.seconds: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = self._clock()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
