"""Tests wait for a condition, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(holds: Callable[[], T], limit_s: float = 60.0, pause_s: float = 0.01, most_s: float = 0.1) -> T:
    """What `holds` returns as soon as that is true; fails after `limit_s`, far longer than it can take.

    Pauses grow from `pause_s` to `most_s`: who waits takes no time from who works.
    """
    deadline = time.monotonic() + limit_s
    while not (found := holds()):
        assert time.monotonic() < deadline, f"nothing came of it within {limit_s} s"
        time.sleep(pause_s)
        pause_s = min(most_s, 1.5 * pause_s)
    return found
