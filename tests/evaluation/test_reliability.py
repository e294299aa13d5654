"""Calibration of p, against cases by hand and against a network that is right."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.reliability import reliability


def test_ten_edges_by_hand() -> None:
    p = np.array([0.05, 0.05, 0.15, 0.15, 0.95, 0.95, 0.95, 0.95, 1.0, 0.5], np.float32)
    target = np.array([0, 0, 0, 1, 1, 1, 1, 0, 1, 0], np.float32)
    found = reliability(p, target)
    assert found.edges.tolist() == [2, 2, 0, 0, 0, 1, 0, 0, 0, 5]
    assert found.predicted[9] == pytest.approx(0.96)
    assert found.observed[[0, 1, 5, 9]].tolist() == [0.0, 0.5, 0.0, 0.8]
    assert found.error == pytest.approx((2 * 0.05 + 2 * 0.35 + 0.5 + 5 * 0.16) / 10)


def test_p_that_is_right_has_no_error() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(200_000).astype(np.float32)
    target = (rng.random(200_000) < p).astype(np.float32)
    assert reliability(p, target).error < 0.01
    assert reliability(np.sqrt(p), target).error > 0.1


def test_no_edges() -> None:
    assert reliability(np.empty(0, np.float32), np.empty(0, np.float32)).error == 0.0
