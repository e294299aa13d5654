"""Progress reports of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a training, passed to its callback about every 50 steps and at each check."""

    share: float  # of the whole training, 0 to 1
    step: int
    loss: float
    held_out: Mapping[str, float] = field(default_factory=dict)  # BCubed F; empty: not judged at this step
