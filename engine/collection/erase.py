"""An item and every trace of it: gone from the items, the event log, the index, the snapshots and the file.

A deleted item leaves its vector in the index until that is built anew, its key in the log until that is
forgotten, and both in pages of the file that are not used any more. So all of these are made anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.clustering.state import State
from engine.collection.collection import Engine, index_of
from engine.errors import InputError, StoreError
from engine.index.columns import Nodes
from engine.index.hnsw import HnswIndex
from engine.types import Int64

PUBLISH_WAIT_S = 30.0  # for whoever publishes the deletion


@dataclass(frozen=True, slots=True)
class Erasure:
    """What was found of the item, and the store afterwards."""

    found: bool  # there was such an item
    events: int  # that mentioned it
    version: int
    bytes: int  # of the store's file


def erase(
    engine: Engine,
    key: str | bytes,
    wait_s: float = PUBLISH_WAIT_S,
    between: Callable[[Callable[[], Any]], Any] = lambda work: work(),
) -> Erasure:
    """Remove an item and its traces. Batches may be applied from other threads meanwhile.

    `between` calls what must not meet a batch, in the thread that applies them if it is another. Where
    events are published, waits until the item's are. Raises InputError (no key), StoreError (not published
    in time, the item came back, no room to compact): the same call again goes on.
    """
    name = key.encode() if isinstance(key, str) else key
    if not 1 <= len(name) <= 511:
        raise InputError(f"a key has 1 to 511 bytes, this one {len(name)}")
    deleted = bool(between(lambda: engine.delete([name])).deleted)
    _await_publisher(engine, engine.version, wait_s)
    _renew_index(engine)
    mentions, size = between(lambda: _forget(engine, name))
    return Erasure(deleted, mentions, engine.version, size)


def _forget(engine: Engine, key: bytes) -> tuple[int, int]:
    """Everything on disk without the key; returns the events that had it, and the file's bytes."""
    with engine.exclusive() as state:
        if state is not None and key in state.row_of:
            raise StoreError("the item came back meanwhile: stop what sends it, then run it again")
        mentions = engine.store.erase_mentions(key)
        engine.snapshots.clear()
        compacted = engine.compact()
        engine.save()
        return mentions, compacted.after


def _await_publisher(engine: Engine, version: int, wait_s: float) -> None:
    """Events up to a version have left, if they are to."""
    deadline = time.monotonic() + wait_s
    while engine.store.keep_from is not None and engine.store.keep_from <= version:
        if time.monotonic() > deadline:
            raise StoreError(
                "the item is deleted, but its last event is not published yet, so the log still has it; "
                "run it again when it is published"
            )
        time.sleep(0.05)


def _renew_index(engine: Engine) -> None:
    """An HNSW graph of the live items alone takes the place of the old one, which has deleted ones in it.

    It is made of a copy of the vectors; what has changed meanwhile follows.
    """
    with engine.exclusive() as state:
        if state is None or not isinstance(state.hierarchy.base.lists.index, HnswIndex):
            return
        nodes = state.hierarchy.base.nodes
        rows = nodes.all_rows()
        copy = Nodes(nodes.vectors.shape[1])
        copy.reserve(nodes.capacity)
        copy.vectors[rows], copy.alive[rows] = nodes.vectors[rows], True
        held = _stamps(state)
    anew: Any = index_of(engine.settings, copy)
    anew.insert(rows)
    with engine.exclusive() as state:
        assert state is not None
        nodes = state.hierarchy.base.nodes
        now = _stamps(state)
        before = np.zeros_like(now)
        before[: len(held)] = held
        differs = (before != now).any(axis=1)
        anew.remove(np.flatnonzero(differs & (before[:, 0] > 0)).astype(np.int32))
        anew.points = nodes
        anew.insert(np.flatnonzero(differs & (now[:, 0] > 0)).astype(np.int32))
        state.hierarchy.base.lists.index = anew


def _stamps(state: State) -> Int64:
    """Item and version by row, (capacity, 2); zeros where there is none."""
    nodes = state.hierarchy.base.nodes
    stamps = np.zeros((nodes.capacity, 2), np.int64)
    rows = nodes.all_rows()
    stamps[rows, 0], stamps[rows, 1] = state.ids[rows], state.versions[rows]
    return stamps
