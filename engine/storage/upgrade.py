"""Brings a store of format 1 over to nodes, within the transaction of a rebuild.

Format 1 kept a vector with each item: time i64, version i64, key length u16, dimension u16; vector i16 x d;
key; payload. Its lists, places and members were those of items; its peaks were items.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.storage.schema import unpack_ids
from engine.storage.tables import Tables
from engine.types import Items, Vectors

_ITEM = np.dtype([("time", "<i8"), ("version", "<i8"), ("key", "<u2"), ("dim", "<u2")])


def read_items(tables: Tables) -> tuple[Items, Vectors]:
    """Return the items and their distinct vectors, as nodes 1, 2, ... in the order of their oldest items.

    Raises CorruptStore.
    """
    keys, bodies = tables.items.raw.read()
    head = np.frombuffer(b"".join([body[: _ITEM.itemsize] for body in bodies]), _ITEM)
    dim = int(head["dim"][0]) if len(head) else 0
    odd = np.flatnonzero(head["dim"] != dim)
    if len(odd):
        tables.items.raw.refuse(keys[odd[0]], f"{head['dim'][odd[0]]} dimensions among vectors of {dim}")
    start = _ITEM.itemsize + 2 * dim
    number: dict[bytes, int] = {}  # vector -> node
    nodes = [number.setdefault(body[_ITEM.itemsize : start], len(number) + 1) for body in bodies]
    ends = (start + head["key"].astype(np.int64)).tolist()
    items = Items(
        ids=unpack_ids(keys),
        keys=[body[start:end] for body, end in zip(bodies, ends, strict=True)],
        nodes=np.array(nodes, np.int64),
        times=head["time"].astype(np.int64),
        payloads=[body[end:] for body, end in zip(bodies, ends, strict=True)],
        versions=head["version"].astype(np.int64),
    )
    grid = np.frombuffer(b"".join(number), "<i2").astype(np.int16).reshape(len(number), dim)
    return items, Vectors(np.arange(1, len(number) + 1), grid)


def upgrade(tables: Tables) -> None:
    """Write items, nodes and copies as they are now; the caller clears and rewrites what is derived."""
    items, vectors = read_items(tables)
    tables.items.put_columns(items)
    tables.nodes.put_columns(vectors)
    tables.copies.add(zip(items.nodes.tolist(), items.ids.tolist(), strict=True))
    node_of = dict(zip(items.ids.tolist(), items.nodes.tolist(), strict=True))
    for number, cluster in list(tables.clusters.rows()):
        tables.clusters.put(number, replace(cluster, peak=node_of.get(cluster.peak, 0)))
