"""Assign vectors to clusters without inserting them, and without waiting for a batch.

A batch may be half applied, so the live state only proposes candidate rows. Vectors, lists and clusters are
read from one LMDB snapshot, and linkage is recomputed there; so an answer is of one committed version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.clustering.list_arrays import means
from engine.clustering.state import State
from engine.collection.build import own_base_tau
from engine.collection.memory import most_probable
from engine.errors import WriterBusy
from engine.index.base import offer
from engine.index.hnsw import HnswIndex
from engine.model.trained import Trained
from engine.numbering import find
from engine.storage.store import Store
from engine.storage.tables import Tables
from engine.types import Epoch, Int16, Int32, Int64, KnnGraph, Lists, Vectors
from engine.vectors import hash_vectors, row_dots

TRIES = 3  # attempts before a commit in between is accepted
MORE = 4  # factor by which candidates grow when too few of them are committed


@dataclass(frozen=True, slots=True)
class Answer:
    """A cluster id, or None for "new"; `probability` and `neighbor` of the best linkage."""

    cluster: int | None
    probability: float
    neighbor: str | None  # the key at its other end


NEW = Answer(None, 0.0, None)


@dataclass(frozen=True, slots=True)
class Near:
    """The nearest nodes of a vector, best first."""

    nodes: Vectors
    dots: Int32  # (n,)
    is_same: bool  # the first one is the vector itself


def assign(
    store: Store, state: State | None, model: Trained, vectors: Int16, adapter: str | None = None
) -> tuple[int, list[Answer]]:
    """Return, for each grid vector (m, d), the final cluster of its most probable linkage above tau.

    Densities do not count. Features are as if the vector alone were inserted and no other list changed. A
    vector that items already have is in their cluster, with probability 1. `adapter`: SHA-256 of the adapter
    that made the vectors, None: none. Also returns the version that all answers describe. Raises WriterBusy
    while a rebuild switches over.
    """
    for last in (False,) * (TRIES - 1) + (True,):
        with store.snapshot() as tables:
            committed = tables.meta.state
            if not committed.version or state is None:
                return 0, [NEW] * len(vectors)
            _check_generation(tables, state, model, adapter)
            near = [_nearest(tables, state, vector) for vector in vectors]
            # Rows of items deleted since this version may be in use again: without them, another try.
            if store.version == committed.version or last:
                return committed.version, _answers(tables, state, model, vectors, committed.epoch, near)
    raise AssertionError("the last try returns")


def _check_generation(tables: Tables, state: State, model: Trained, adapter: str | None) -> None:
    """Raise WriterBusy while a rebuild switches over: the store's lists are another model's by then."""
    config, shape = tables.meta.config or {}, state.hierarchy.shape
    stored = tuple(config.get(name) for name in ("model", "adapter", "k", "tau", "base_tau"))
    if stored != (model.sha256, adapter, shape.k, shape.tau, own_base_tau(shape, model)):
        raise WriterBusy("a new generation is being put in place; try again")


def _nearest(tables: Tables, state: State, vector: Int16) -> Near:
    """Return the k nearest committed nodes, by exact dot and then by the vector's hash."""
    base = state.hierarchy.base
    k, index, width = base.shape.k, base.lists.index, base.lists.search_width
    if not isinstance(index, HnswIndex):
        return _committed(tables, state, vector, _used(state))
    own = state.distinct.find(vector[None])
    while True:
        rows = index.query(vector[None], width)[0]
        candidates = np.unique(np.concatenate([rows, index.leaving, own[own >= 0]]))
        near = _committed(tables, state, vector, candidates)
        if near.is_same or len(near.dots) == k or len(rows) < width:
            return near
        width *= MORE


def _used(state: State) -> Int32:
    """Return all rows, also those that the batch in progress adds or removes."""
    nodes = state.hierarchy.base.nodes
    return np.arange(min(nodes.rows, len(nodes.vectors), len(state.node_ids)), dtype=np.int32)


def _committed(tables: Tables, state: State, vector: Int16, rows: Int32) -> Near:
    """Return the k best of these rows that are committed.

    A row that holds a committed node holds its vector: a freed row is reused one batch later at the
    earliest. So the best are among the rows of the largest dots.
    """
    nodes, k = state.hierarchy.base.nodes, state.hierarchy.shape.k
    looks = row_dots(nodes.vectors, rows, vector)
    count = min(2 * k, len(rows))
    while True:
        chosen = rows[looks >= _threshold(looks, count)]
        found = tables.nodes.pick(np.unique(state.node_ids[chosen]))
        if len(found.ids) >= k or len(chosen) == len(rows):
            break
        count = min(MORE * count, len(rows))
    return _best(found, vector, k)


def _threshold(looks: Int32, count: int) -> int:
    """Return the count-th largest value."""
    return int(np.partition(looks, len(looks) - count)[len(looks) - count]) if len(looks) else 0


def _best(nodes: Vectors, vector: Int16, k: int) -> Near:
    dots = row_dots(nodes.vectors, np.arange(len(nodes.ids), dtype=np.int32), vector)
    hashes = hash_vectors(nodes.vectors)
    best, best_dots = np.full(k, -1, np.int32), np.full(k, -1, np.int32)
    same = np.flatnonzero((nodes.vectors == vector).all(axis=1)) if len(nodes.ids) else best[:0]
    if len(same):
        return Near(Vectors(nodes.ids[same], nodes.vectors[same]), dots[same], True)
    length = 0
    for row, exact in enumerate(dots):
        length = offer(best, best_dots, length, np.int32(row), exact, hashes)
    chosen = best[:length]
    return Near(Vectors(nodes.ids[chosen], nodes.vectors[chosen]), best_dots[:length], False)


def _answers(
    tables: Tables, state: State, model: Trained, vectors: Int16, epoch: Epoch, near: Sequence[Near]
) -> list[Answer]:
    """Return the answers for vectors (m, d) of one graph: each sees its neighbours and their lists."""
    asked = [at for at, one in enumerate(near) if len(one.dots) and not one.is_same]
    answers = [_known(tables, one) if one.is_same else NEW for one in near]
    if not asked:
        return answers
    k = state.hierarchy.shape.k
    graph = _local_graph(tables, k, [near[at] for at in asked], vectors[asked])
    best, linkage = most_probable(model, graph, epoch, np.arange(len(asked), dtype=np.int32))
    for at, rank, probability in zip(asked, best, linkage, strict=True):
        node = int(near[at].nodes.ids[rank])
        cluster = _final_cluster(tables, node) if probability > state.hierarchy.base.tau else None
        answers[at] = Answer(cluster, float(probability), _oldest(tables, node))
    return answers


def _known(tables: Tables, near: Near) -> Answer:
    node = int(near.nodes.ids[0])
    return Answer(_final_cluster(tables, node), 1.0, _oldest(tables, node))


def _oldest(tables: Tables, node: int) -> str:
    """Return the key of the oldest item with a node's vector."""
    return tables.items.need(next(tables.copies.of(node))).key.decode()


def _local_graph(tables: Tables, k: int, near: Sequence[Near], vectors: Int16) -> KnnGraph:
    """Return a graph of the vectors (first), their neighbours, and the nodes in their receptive field.

    A neighbour's embedding reads its own list, the lists of the nodes in it, and the vectors of all these.
    `vectors`: (m, d).
    """
    asked = len(near)
    direct = np.full((asked, k), -1, np.int64)
    dots = np.full((asked, k), -1, np.int32)
    for row, one in enumerate(near):
        direct[row, : len(one.dots)], dots[row, : len(one.dots)] = one.nodes.ids, one.dots
    inner = np.unique(direct[direct >= 0])
    first = _read_lists(tables, inner, k)
    outer = np.setdiff1d(first.neighbors[first.neighbors >= 0], inner)
    second = _read_lists(tables, outer, k)
    ids = np.concatenate([inner, outer])
    listed = np.concatenate([direct, first.neighbors, second.neighbors])
    rest = np.setdiff1d(listed[listed >= 0], ids)  # in lists, but without one that is read
    inside = np.concatenate([ids, rest])
    count = asked + len(ids) + len(rest)
    neighbors, exact = np.full((count, k), -1, np.int32), np.full((count, k), -1, np.int32)
    neighbors[: len(listed)] = _rows(inside, listed, asked)
    exact[: len(listed)] = np.concatenate([dots, first.dots, second.dots])
    degree = (neighbors >= 0).sum(axis=1, dtype=np.int32)
    seen = np.concatenate([vectors, tables.nodes.pick(inside).vectors])
    with_list = np.arange(len(listed), dtype=np.int32)
    around = np.concatenate([means(with_list, k, neighbors, degree, seen), seen[len(listed) :]])
    return KnnGraph(k, neighbors, exact, degree, np.ones(count, np.int64), seen, around, True)


def _rows(ids: Int64, listed: Int64, first: int) -> Int32:
    """Return the rows of listed nodes in a local graph whose rows from `first` on are `ids`; -1 stays -1."""
    order = np.argsort(ids)
    at, there = find(ids[order], listed)
    rows: Int32 = np.where(there, order[at] + first, -1).astype(np.int32)
    return rows


def _read_lists(tables: Tables, ids: Int64, k: int) -> Lists:
    """Read the k nearest of each node: neighbours and dots (m, k), -1 pads."""
    lists = tables.lists.pick(ids)
    neighbors, dots = np.full((len(ids), k), -1, np.int64), np.full((len(ids), k), -1, np.int32)
    width = min(k, lists.neighbors.shape[1])
    neighbors[:, :width], dots[:, :width] = lists.neighbors[:, :width], lists.dots[:, :width]
    return Lists(ids, neighbors, dots)


def _final_cluster(tables: Tables, node: int) -> int:
    return tables.trees.need(tables.places.need(node))[0]
