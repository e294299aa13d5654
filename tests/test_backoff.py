"""Delays grow, have an end, and begin again after a success."""

from __future__ import annotations

from engine.backoff import Backoff


def test_delays_double_up_to_the_last_one() -> None:
    backoff = Backoff(0.2, 5.0)
    assert [backoff.next_s() for _ in range(7)] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    backoff.reset()
    assert backoff.next_s() == 0.2
    for _ in range(5000):  # no overflow
        backoff.next_s()
    assert backoff.next_s() == 5.0
