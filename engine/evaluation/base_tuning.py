"""Chooses level 0's tau, and the one above it with it, where labels of most items measure BCubed F.

A few judged pairs do not determine level 0's tau: they are about large clusters, and pieces differ in few
pairs. So the present one stays unless another is very likely better, by enough to be worth the change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from engine.collection.sweep import Sweep
from engine.evaluation.judgements import Labels
from engine.evaluation.tuning import PERCENTILES, SURE, Choice, measured

BASE_TAUS = (0.5, 0.6, 0.7, 0.8, 0.9)
BASE_SURE = 0.95  # least probability of a gain
BASE_GAIN = 0.005  # least expected gain


@dataclass(frozen=True, slots=True)
class BaseChoice:
    """Both taus, and what they gain over the best tau above the present level 0."""

    base_tau: float
    tau: float
    gain: float
    gain_low: float
    gain_high: float
    sure: float  # probability that there is a gain


def choose_base(
    own: Sweep, others: Iterable[Sweep], labels: Labels, choice: Choice, seed: int = 0
) -> BaseChoice | None:
    """Choose among sweeps at other taus of level 0; None: the present one stays.

    `choice`: of a tau above the present level 0, by the same labels.
    """
    kept = choice.chosen if choice.sure >= SURE else choice.current
    present = measured(own, labels, np.random.default_rng(seed))[:, kept]
    best = None
    for other in others:
        assert other.base_tau is not None
        gains = measured(other, labels, np.random.default_rng(seed)) - present[:, None]  # the same draws
        at = int(gains.mean(axis=0).argmax())
        gain, sure = float(gains[:, at].mean()), float((gains[:, at] > 0).mean())
        if sure >= BASE_SURE and gain >= max(BASE_GAIN, best.gain if best else 0.0):
            low, high = np.percentile(gains[:, at], PERCENTILES)
            best = BaseChoice(other.base_tau, other.taus[at], gain, float(low), float(high), sure)
    return best
