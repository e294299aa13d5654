"""The space in which a collection is clustered: of the incoming vectors, or of the adapted ones.

The store keeps the incoming vectors; clustering sees the adapted ones alone. Items whose incoming vectors
differ, but are adapted to the same, share a node, as items with identical vectors do without an adapter.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.clustering.state import State
from engine.errors import InputError
from engine.model.adapter import Adapter
from engine.storage.store import Store
from engine.types import Batch, Incoming, Int16, Int32, Int64, Loaded, Renumbered, Vectors


def space_dim(adapter: Adapter | None, dim: int) -> int:
    """Return the components of the vectors that are clustered, where incoming ones have `dim`.

    Raises InputError: the adapter takes others.
    """
    if adapter is None:
        return dim
    if adapter.dim_in != dim:
        raise InputError(
            f"the adapter takes embeddings of {adapter.dim_in} components, the collection's have {dim}: "
            "name the one that was learned on them as [model] adapter"
        )
    return adapter.dim_out


def adapted(adapter: Adapter, batch: Batch, state: State | None, store: Store) -> Batch:
    """Return a batch of incoming vectors as one of adapted vectors. Raises InputError: another dimension."""
    vectors = adapter.apply(batch.vectors)
    differs = np.zeros(len(vectors), np.bool_)
    if state is not None and len(vectors):
        rows = state.items.find(batch.keys)
        at = np.flatnonzero(rows >= 0)
        nodes = state.items.nodes[rows[at]]
        at = at[(state.hierarchy.base.nodes.vectors[nodes] == vectors[at]).all(axis=1)]
        if len(at):  # the same item again, or another vector that is adapted to the same
            stored = store.incoming(state.items.ids[rows[at]])
            differs[at] = (stored != batch.vectors[at]).any(axis=1)
    return replace(batch, vectors=vectors, incoming=Incoming(batch.vectors, differs))


def incoming_of(state: State, items: Int32, adapter: Adapter | None, store: Store) -> Int16:
    """Return the incoming vectors of items by row, (n, d), in a state whose adapter this is."""
    if adapter is None:
        return state.hierarchy.base.nodes.vectors[state.items.nodes[items]]
    return store.incoming(state.items.ids[items])


def moved_to(adapter: Adapter | None, loaded: Loaded, incoming: Int16) -> tuple[Loaded, Renumbered]:
    """Return what a store holds with the nodes of another adapter, None: of no adapter.

    `incoming`: the vector of each item (n, d). The neighbour lists are invalid.
    """
    vectors = incoming if adapter is None else adapter.apply(incoming)
    first = loaded.counters.get("next_node", 1)
    number: dict[bytes, int] = {}
    nodes = np.array([number.setdefault(v.tobytes(), first + len(number)) for v in vectors], np.int64)
    grid = np.frombuffer(b"".join(number), np.int16).reshape(len(number), vectors.shape[1])
    distinct = Vectors(np.arange(first, first + len(number)), grid)
    found = replace(
        loaded,
        counters={**loaded.counters, "next_node": first + len(number)},
        items=replace(loaded.items, nodes=nodes),
        vectors=distinct,
    )
    return found, Renumbered(loaded.items.ids, nodes, distinct, adapter is not None)


def number_nodes(state: State, first: int) -> int:
    """Number a state's nodes from `first` on, in the order of their oldest items; return the next number."""
    items = state.items
    rows = items.all_rows()
    rows = rows[np.argsort(items.ids[rows])]
    nodes, oldest = np.unique(items.nodes[rows], return_index=True)
    state.node_ids[nodes[np.argsort(oldest)]] = np.arange(first, first + len(nodes))
    return first + len(nodes)


def renumbered(state: State, is_adapted: bool) -> Renumbered:
    """Return the nodes of a state's items, to be stored in the place of those of another adapter."""
    items, base = state.items, state.hierarchy.base.nodes
    rows, nodes = items.all_rows(), base.all_rows()
    rows = rows[np.argsort(items.ids[rows])]
    of_items: Int64 = state.node_ids[items.nodes[rows]]
    return Renumbered(
        items.ids[rows], of_items, Vectors(state.node_ids[nodes], base.vectors[nodes]), is_adapted
    )
