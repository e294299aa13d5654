"""What a training tells while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Progress:
    """What a callback learns now and then."""

    share: float  # of the training
    step: int
    loss: float
    held_out: Mapping[str, float] = field(default_factory=dict)  # BCubed F; empty: not judged at this step
