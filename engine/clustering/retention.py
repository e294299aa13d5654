"""Selects the items that retention deletes, by event age or by number of items.

Retention deletes like any client: in a batch, in its transaction, with events. What is due depends on the
state and the clock alone; a bounded number of items is deleted at a time, oldest event first.
"""

from __future__ import annotations

import numpy as np

from engine.clustering.state import State
from engine.config import Settings
from engine.types import Batch


def due(state: State, settings: Settings, now_ms: int, batch: Batch) -> list[bytes]:
    """Return keys to delete together with a batch; none of them occurs in the batch."""
    kept = settings.retention
    if kept.max_age_s is None and kept.max_items is None:
        return []
    held = {*batch.keys, *batch.deletes}
    rows = np.setdiff1d(state.items.all_rows(), state.items.find([*held]))
    rows = rows[np.lexsort((state.items.ids[rows], state.items.times[rows]))]  # oldest event, then key, first
    count = 0
    if kept.max_age_s is not None:
        count = int(np.searchsorted(state.items.times[rows], now_ms - int(kept.max_age_s * 1000)))
    if kept.max_items is not None:
        count = max(count, len(rows) + len(batch.keys) - kept.max_items)
    most = max(settings.limits.expire_items, 2 * len(batch.keys))
    return state.items.named(rows[: min(count, most)])
