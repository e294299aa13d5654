"""Exponential back-off: how long to wait before something that failed is tried again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Delays from `first_s` on, each twice the one before, up to `last_s`."""

    first_s: float
    last_s: float
    _failures: int = 0

    def next_s(self) -> float:
        """Count a failure; return the seconds to wait after it."""
        self._failures += 1
        return float(min(self.last_s, self.first_s * 2.0 ** min(self._failures - 1, 64)))

    def reset(self) -> None:
        """Begin at `first_s` again: it has worked."""
        self._failures = 0
