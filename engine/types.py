"""Frozen records that cross module borders.

Arrays in them are columns: row i of each describes the same thing. Vectors are always on the
grid of `engine.vectors` (int16, steps of 2^-14); similarities are exact integer dots (int32,
steps of 2^-28); times are milliseconds since 1970.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Int8 = NDArray[np.int8]
Int16 = NDArray[np.int16]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

NO_ROWS = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A rejected stream record: raw bytes and reason."""

    reason: str
    origin: str  # topic, partition and offset
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


@dataclass(frozen=True, slots=True)
class Incoming:
    """The unadapted vectors of a batch; only with an adapter."""

    vectors: Int16  # (n, d)
    differs: Bool  # (n,), the incoming vector differs from the stored one, but adapts to the same node vector


@dataclass(frozen=True, slots=True)
class Batch:
    """The net effect of some input: each key occurs once, in `keys` or in `deletes`."""

    keys: Sequence[bytes]
    vectors: Int16  # (n, d)
    times: Int64  # (n,)
    payloads: Sequence[bytes]  # n JSON documents, b"" for none
    deletes: Sequence[bytes] = ()
    positions: Mapping[str, bytes] = field(default_factory=dict)  # source -> its next position
    rejected: Sequence[DeadLetter] = ()
    incoming: Incoming | None = None  # with an adapter; `vectors` are then the adapted ones


@dataclass(frozen=True, slots=True)
class Epoch:
    """A calibration: random-pair cosine similarity of the collection when it was taken."""

    mean: float
    deviation: float
    items: int  # live items then; 0: the model card's values


@dataclass(frozen=True, slots=True)
class Cache:
    """A model's intermediate results for a graph, and which of them are valid. The model fills them in.

    Code that changes the graph must invalidate the entries computed from it.
    """

    nodes: Float32  # (n, a)
    node_valid: Bool  # (n,)
    edges: Float32  # (n, k, b), by source and rank; k = 0: no edges are kept
    edge_valid: Bool  # (n, k)


EVIDENCE_SCALE = 2**16  # steps per unit of p and of similarity, in `EvidenceArrays`


class EvidenceArrays(NamedTuple):
    """Sums over level-0 edges per supernode, grouped by target supernode (CSR layout).

    A row's entries are `starts[row]` to `starts[row] + counts[row]`, by rising partner.
    """

    starts: Int64  # (n,)
    counts: Int32  # (n,)
    partners: Int32  # (entries,), rows
    sums: Int64  # (entries, 4): edges; sums of p, of similarities, of their squares
    totals: Int64  # (n, 7): inner edges, their three sums; outer edges, their p; the most p with one partner


@dataclass(frozen=True, slots=True)
class KnnGraph:
    """What a model may read of one level. Rows are nodes; no list names a free row."""

    k: int
    neighbors: Int32  # (n, width >= k), most similar first, -1 pads; a model reads [:, :degree]
    dots: Int32  # (n, width), the neighbours' integer dots
    degree: Int32  # (n,), neighbours in use, at most k
    size: Int64  # (n,), distinct vectors in the supernode
    identity: Int16  # (n, d), the peak's vector
    mean: Int16  # (n, d), their rounded mean; at level 0 of the node and its list
    is_base: bool  # level 0
    evidence: EvidenceArrays | None = None  # above level 0


@dataclass(frozen=True, slots=True)
class Item:
    """A row of the item table; see `Items`."""

    id: int
    key: bytes
    node: int
    time: int
    payload: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Items:
    """Rows of the item table. `ids` rise with the first sight of a key and are never reused."""

    ids: Int64  # (n,)
    keys: Sequence[bytes]  # n
    nodes: Int64  # (n,), the node that has the item's vector
    times: Int64  # (n,), ms
    payloads: Sequence[bytes]  # n JSON documents, b"" for none
    versions: Int64  # (n,), the state version that brought the vector


@dataclass(frozen=True, slots=True)
class Vectors:
    """Rows of the node table: the distinct vectors. `ids` rise and are never reused."""

    ids: Int64  # (n,)
    vectors: Int16  # (n, d)


@dataclass(frozen=True, slots=True)
class Renumbered:
    """The nodes of all items, where another adapter maps their incoming vectors to others."""

    items: Int64  # (n,), rising ids
    nodes: Int64  # (n,), the node of each
    vectors: Vectors  # all nodes
    adapted: bool  # False: without an adapter, nodes have the incoming vectors


@dataclass(frozen=True, slots=True)
class Lists:
    """Neighbour lists of level 0 by node id: all neighbours known for certain, best first."""

    ids: Int64  # (n,)
    neighbors: Int64  # (n, width) node ids, -1 pads
    dots: Int32  # (n, width)


@dataclass(frozen=True, slots=True)
class Shift:
    """Reassignments of items to nodes, or nodes to trees: id, before, after."""

    ids: Int64  # (n,)
    before: Int64  # (n,), 0: it is new
    after: Int64  # (n,), 0: it is gone


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster id and what it names now. Ended clusters keep `into` until the log forgets them."""

    id: int
    size: int  # items
    finest: int  # the finest and coarsest level at which a tree has exactly these members
    coarsest: int
    peak: int  # node id of the tree's root at the coarsest of these levels
    parent: int  # the next coarser cluster, 0 for a final one
    born: int  # version
    changed: int  # version of the last change of its members
    ended: int = 0  # version, 0 while it lives
    into: tuple[int, ...] = ()  # where the members went


@dataclass(frozen=True, slots=True)
class Trees:
    """The level-0 trees, by stable handle, and the cluster each belongs to at every level."""

    handles: Int64  # (t,), rising
    paths: Int64  # (t, levels), cluster ids, finest level first


@dataclass(frozen=True, slots=True)
class Clusters:
    """The living clusters as columns; the fields of `Cluster`."""

    ids: Int64  # (c,), rising
    size: Int64
    finest: Int64
    coarsest: Int64
    peak: Int64
    parent: Int64
    born: Int64
    changed: Int64


NO_VECTORS = Vectors(np.zeros(0, np.int64), np.zeros((0, 1), np.int16))
NO_TREES = Trees(np.zeros(0, np.int64), np.zeros((0, 1), np.int64))
NO_CLUSTERS = Clusters(*(np.zeros(0, np.int64) for _ in range(8)))


@dataclass(frozen=True, slots=True)
class Themes:
    """The final clusters of a version, and the theme of each at every coarser level, the finest first.

    A theme is known by its smallest cluster id.
    """

    version: int
    clusters: Int64  # (c,), rising ids
    keys: Int64  # (levels, c)


@dataclass(frozen=True, slots=True)
class Assignment:
    """The final cluster of an item changed. `cluster` 0: the item is gone."""

    key: bytes
    cluster: int
    previous: int  # 0: the item is new
    path: tuple[int, ...]  # distinct ids, final cluster first, level-0 tree last


@dataclass(frozen=True, slots=True)
class LineageEvent:
    """What happened to a final cluster: emerge, grow, shrink, merge, split or vanish."""

    event: str
    cluster: int
    size: int
    sources: tuple[int, ...] = ()  # "from" in JSON
    into: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Erased:
    """Tombstone of an event that mentioned an erased item."""


Event = Assignment | LineageEvent | DeadLetter | Erased


@dataclass(frozen=True, slots=True)
class Change:
    """All that one committed version alters in the store."""

    version: int
    time_ms: int
    epoch: Epoch
    counters: Mapping[str, int]  # next_item, next_tree, next_cluster, calibrated_items, ...
    positions: Mapping[str, bytes]
    upserts: Items
    removed: Sequence[tuple[int, bytes]]  # (item id, key)
    copies: Shift  # items that came, went, or have another vector now: their nodes
    vectors: Vectors  # nodes that are new; those that are gone are in `places`
    lists: Lists
    places: Shift  # nodes that came, went, or are in another level-0 tree now: their trees
    trees: Mapping[int, tuple[int, ...]]  # level-0 tree -> path of cluster ids, final first; () gone
    clusters: Sequence[Cluster]  # those that changed or ended
    events: Sequence[Event]
    incoming: Vectors = NO_VECTORS  # by item id, with an adapter: of the items that brought a vector


@dataclass(frozen=True, slots=True)
class Loaded:
    """Everything that a store holds of one version, apart from its history."""

    version: int  # 0: nothing was committed yet
    time_ms: int
    epoch: Epoch
    counters: Mapping[str, int]
    positions: Mapping[str, bytes]
    items: Items  # by rising id
    vectors: Vectors  # of all nodes, by rising id
    lists: Lists  # of the same nodes, in the same order
    places: Int64  # level-0 tree of each item
    trees: Trees
    clusters: Clusters


@dataclass(frozen=True, slots=True)
class Applied:
    """What a batch did, once durable."""

    version: int
    inserted: int = 0  # items with a key that was not there
    moved: int = 0  # came again with another vector
    unchanged: int = 0  # came again with the same vector and payload
    updated: int = 0  # came again with the same vector and another payload
    deleted: int = 0  # by request
    unknown: int = 0  # deletes of keys that were not there
    rejected: int = 0  # records to the dead letters
    expired: int = 0  # deleted by retention
    stats: Mapping[str, Any] = field(default_factory=dict)  # stage seconds, edges per level
