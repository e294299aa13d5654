"""Items as the library returns them: one by its key, or all of them as an Arrow table."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.storage.answers import ItemDetail
from engine.times import EPOCH
from engine.types import Loaded

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Item:
    """An item and its clusters."""

    key: str
    cluster: int  # the final one
    path: tuple[int, ...]  # distinct ids, final cluster first, level-0 tree last
    time_ms: int  # of its event, since 1970
    payload: Any  # what its JSON holds, None: nothing
    updated: int  # the version that brought the vector

    @property
    def time(self) -> datetime:
        """The event's time, in UTC. Raises OverflowError where a calendar has no such date."""
        return EPOCH + timedelta(milliseconds=self.time_ms)


def item_of(answer: ItemDetail) -> Item:
    """Return the item that the store's reader has found."""
    return Item(
        key=answer["key"],
        cluster=answer["cluster"],
        path=tuple(answer["path"]),
        time_ms=answer["time"],
        payload=answer["payload"],
        updated=answer["updated"],
    )


def table_of(loaded: Loaded) -> pa.Table:
    """Return all items: `key`, `cluster`, `path`, `time`, `payload` (JSON, null for none), `updated`."""
    import pyarrow as pa

    items, trees = loaded.items, loaded.trees
    paths = trees.paths[np.searchsorted(trees.handles, loaded.places)]  # finest first
    columns = {
        "key": pa.array([key.decode() for key in items.keys], pa.string()),
        "cluster": pa.array(paths[:, -1], pa.int64()),
        "path": pa.array([list(dict.fromkeys(path[::-1])) for path in paths.tolist()], pa.list_(pa.int64())),
        "time": pa.array(items.times, pa.timestamp("ms", tz="UTC")),
        "payload": pa.array([payload.decode() or None for payload in items.payloads], pa.string()),
        "updated": pa.array(items.versions, pa.int64()),
    }
    return pa.table(columns)
