"""Finds the node of a vector: identical vectors share a node, and no two nodes have the same hash.

A vector's hash breaks the ties of every order, so it must be a function of the set of vectors, whichever came
first. It is the first of the vector's keyed hashes (number 0, 1, ...) that no smaller vector claims; vectors
compare by their bytes. This is ordered hashing (Amble and Knuth, 1974): its outcome does not depend on the
order of insertion. Among 64-bit hashes nearly every vector has its hash number 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from engine import vectors
from engine.index.columns import Nodes
from engine.numbering import by_occurrence
from engine.types import Int16, Int32, UInt64


@dataclass(slots=True)
class Distinct:
    """An index of `nodes` by hash. `claims` differs from `nodes.hashes` only until `settle`."""

    nodes: Nodes
    claims: dict[int, int] = field(default_factory=dict)  # hash -> row
    displaced: dict[int, int] = field(default_factory=dict)  # hash -> number of it, where not 0
    moved: set[int] = field(default_factory=set)  # rows whose hash is another since the last `settle`

    def find(self, grid: Int16) -> Int32:
        """Return the row of each vector (n, d), int32 (n,); -1: there is no such node."""
        return self._find(grid, vectors.hash_vectors(grid))

    def find_or_add(self, grid: Int16) -> tuple[Int32, Int32]:
        """Return the row of each vector (n, d), adding missing nodes, and the rows that were added."""
        hashes = vectors.hash_vectors(grid)
        rows = self._find(grid, hashes)
        missing = np.flatnonzero(rows < 0)
        first, number = by_occurrence(hashes[missing])  # rows follow the order of arrival
        new = self.nodes.add(grid[missing[first]], hashes[missing[first]])
        self.adopt(new)
        rows[missing] = new[number]
        odd = missing[(self.nodes.vectors[rows[missing]] != grid[missing]).any(axis=1)]
        if len(odd):  # two new vectors have one hash
            rows[odd], more = self.find_or_add(grid[odd])
            new = np.concatenate([new, more])
        return rows, new

    def adopt(self, rows: Int32) -> None:
        """Index new nodes, which have their hashes number 0 and vectors that no other node has."""
        for row, name in zip(rows.tolist(), self.nodes.hashes[rows].tolist(), strict=True):
            if name in self.claims:
                self._claim(row, 0)
            else:
                self.claims[name] = row

    def remove(self, rows: Int32) -> None:
        """Remove nodes; a node that one of them displaced takes its preferred hash."""
        for row, name in zip(rows.tolist(), self.nodes.hashes[rows].tolist(), strict=True):
            name = name if self.claims.get(name) == row else self._name_of(row)
            del self.claims[name]
            self.displaced.pop(name, None)
            self.moved.discard(row)
        if self.displaced:
            again = [self.claims.pop(name) for name in self.displaced]
            self.displaced.clear()
            self.moved.update(again)
            for row in again:
                self._claim(row, 0)

    def settle(self) -> tuple[Int32, UInt64]:
        """Return the rows whose hash in `nodes` is outdated, rising, and their new hashes."""
        found: list[tuple[int, int]] = []
        if self.moved:
            claims = ((row, name) for name, row in self.claims.items() if row in self.moved)
            found = sorted((row, name) for row, name in claims if self.nodes.hashes[row] != name)
            self.moved.clear()
        rows = np.array([row for row, _ in found], np.int32)
        return rows, np.array([name for _, name in found], np.uint64)

    def replace(self, rows: Int32) -> None:
        """Index these rows in place of the rows that had their hashes."""
        self.claims.update(zip(self.nodes.hashes[rows].tolist(), rows.tolist(), strict=True))

    def _find(self, grid: Int16, hashes: UInt64) -> Int32:
        get = self.claims.get
        rows = np.fromiter((get(name, -1) for name in hashes.tolist()), np.int32, len(grid))
        held = np.flatnonzero(rows >= 0)
        odd = held[(self.nodes.vectors[rows[held]] != grid[held]).any(axis=1)]
        rows[odd] = [self._probe(vector) for vector in grid[odd]]
        return rows

    def _probe(self, vector: Int16) -> int:
        """Return the row of a vector whose hash number 0 belongs to another one; -1: there is none."""
        number = 0
        while True:
            row = self.claims.get(_hash(vector, number), -1)
            if row < 0 or np.array_equal(self.nodes.vectors[row], vector):
                return row
            number += 1

    def _claim(self, row: int, number: int) -> None:
        """Give a node the first of its hashes, from `number` on, that is free or a greater vector's."""
        vector = self.nodes.vectors[row]
        name = _hash(vector, number)
        while True:
            holder = self.claims.get(name, -1)
            if holder < 0 or vector.tobytes() < self.nodes.vectors[holder].tobytes():
                break
            number += 1
            name = _hash(vector, number)
        following = self.displaced.pop(name, 0) + 1  # of the holder
        self.claims[name] = row
        if number:
            self.displaced[name] = number
            self.moved.add(row)
        if holder >= 0:
            self.moved.add(holder)
            self._claim(holder, following)

    def _name_of(self, row: int) -> int:
        return next(name for name, held in self.claims.items() if held == row)


def distinct_hashes(grid: Int16) -> UInt64:
    """Return the hashes (n,) of different vectors (n, d) as nodes of one collection."""
    nodes = Nodes(grid.shape[1])
    table = Distinct(nodes)
    rows = nodes.add(grid, vectors.hash_vectors(grid))
    table.adopt(rows)
    moved, names = table.settle()
    nodes.hashes[moved] = names
    return nodes.hashes[rows]


def _hash(vector: Int16, number: int) -> int:
    return int(vectors.hash_vectors(vector[None], number)[0])
