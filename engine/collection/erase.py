"""Erase an item with every trace of it: in items, event log, index, snapshots and unused pages.

A deleted item leaves its key in the event log, its vector (unless another item has the same) in the HNSW
graph, and both in unused pages of the file. So `Engine.erase` rewrites all of these; this module has its
parts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from engine.clustering.state import State
from engine.collection.build import index_of
from engine.config import Settings
from engine.errors import StoreError
from engine.index.columns import Nodes
from engine.index.hnsw import HnswIndex
from engine.storage.store import Store
from engine.types import Int64

PUBLISH_WAIT_S = 30.0  # for the publisher to publish the deletion


@dataclass(frozen=True, slots=True)
class Erasure:
    """What was found of the item, and the store afterwards."""

    found: bool  # there was such an item
    events: int  # that mentioned it
    version: int
    bytes: int  # of the store's file


def await_publisher(store: Store, version: int, wait_s: float) -> None:
    """Block until events up to a version are published, where any are. Raises StoreError: not in time."""
    deadline = time.monotonic() + wait_s
    while store.retain_from_version is not None and store.retain_from_version <= version:
        if time.monotonic() > deadline:
            raise StoreError(
                "the item is deleted, but its last event is not published yet, so the log still has it; "
                "run it again when it is published"
            )
        time.sleep(0.05)


class FreshIndex:
    """An HNSW index of the live nodes alone, to replace one that has deleted ones in its graph.

    `FreshIndex(...)` and `put_into` read the state: let no batch run meanwhile. `build` works on a copy of
    the vectors and may run during batches; `put_into` applies what has changed since.
    """

    def __init__(self, settings: Settings, state: State) -> None:
        nodes = state.hierarchy.base.nodes
        self._rows = nodes.all_rows()
        copy = Nodes(nodes.vectors.shape[1])
        copy.reserve(nodes.capacity)
        copy.vectors[self._rows], copy.alive[self._rows] = nodes.vectors[self._rows], True
        self._held = _node_ids(state)
        index = index_of(settings)(copy)
        assert isinstance(index, HnswIndex)
        self._index = index

    def build(self) -> None:
        """Insert the copied vectors."""
        self._index.insert(self._rows)

    def put_into(self, state: State) -> None:
        """Bring the index up to date and make it the state's."""
        now = _node_ids(state)
        before = np.zeros_like(now)
        before[: len(self._held)] = self._held
        differs = before != now
        self._index.remove(np.flatnonzero(differs & (before > 0)).astype(np.int32))
        self._index.points = state.hierarchy.base.nodes
        self._index.insert(np.flatnonzero(differs & (now > 0)).astype(np.int32))
        state.hierarchy.base.lists.index = self._index


def _node_ids(state: State) -> Int64:
    """Return the node's id by row, (capacity,); zeros where there is none."""
    rows = state.hierarchy.base.nodes.all_rows()
    ids = np.zeros(state.hierarchy.base.nodes.capacity, np.int64)
    ids[rows] = state.node_ids[rows]
    return ids
