"""Holds the items of a collection in memory: key, id, version, time, and the row of their node."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.index.columns import Table
from engine.types import Int32, Int64


class ItemTable(Table):
    """A table of items; any number of them may share a node."""

    ids: Int64
    versions: Int64  # of the vector
    times: Int64  # of the event
    nodes: Int32  # row of level 0, -1: no item

    def __init__(self) -> None:
        super().__init__(
            {
                "ids": (np.int64, 0, ()),
                "versions": (np.int64, 0, ()),
                "times": (np.int64, 0, ()),
                "nodes": (np.int32, -1, ()),
            }
        )
        self.keys: list[bytes] = []  # by row; b"" where free
        self.row_of: dict[bytes, int] = {}

    def find(self, keys: Sequence[bytes]) -> Int32:
        """Return the row of each key, int32 (n,); -1: there is no such item."""
        get = self.row_of.get
        return np.fromiter((get(key, -1) for key in keys), np.int32, len(keys))

    def add(self, keys: Sequence[bytes]) -> Int32:
        """Allocate rows for new keys; return them, int32 (n,)."""
        rows = self.take(len(keys))
        self.keys.extend([b""] * (self.capacity - len(self.keys)))
        for row, key in zip(rows.tolist(), keys, strict=True):
            self.keys[row] = key
            self.row_of[key] = row
        return rows

    def fill(self, rows: Int32, ids: Int64, versions: Int64, times: Int64, nodes: Int32) -> None:
        """Set all columns of rows."""
        self.ids[rows], self.versions[rows] = ids, versions
        self.times[rows], self.nodes[rows] = times, nodes

    def drop(self, rows: Int32) -> None:
        """Delete items."""
        for row in rows.tolist():
            del self.row_of[self.keys[row]]
            self.keys[row] = b""
        self.nodes[rows] = -1
        self.remove(rows)
        self.release(rows)

    def of_nodes(self, nodes: Int32, capacity: int) -> Int32:
        """Return the items of some nodes, by rising row, int32. `capacity`: of the table of nodes."""
        wanted = np.zeros(capacity + 1, np.bool_)  # the last for -1
        wanted[nodes] = True
        held = np.flatnonzero(wanted[self.nodes[: self.rows]])
        return held.astype(np.int32)

    def named(self, rows: Int32) -> list[bytes]:
        """Return the keys of rows."""
        return [self.keys[row] for row in rows.tolist()]
