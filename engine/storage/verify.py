"""Reading a whole store, value by value, to know whether it is what was written."""

from __future__ import annotations

import os

from engine.errors import CorruptStore
from engine.storage import schema
from engine.storage.environment import reading
from engine.storage.table import RawTable


def walk(path: str | os.PathLike[str], beside: str = "") -> int:
    """Compare every value of a store with its checksum and look every key up; returns how many there are.

    `beside`: not empty where others may be writing it. Raises CorruptStore.
    """
    with reading(path, lock=bool(beside)) as tables:
        if tables is None:
            return 0
        counts = {name: _count(table) for name, table in tables.raw.items()}
        for name, count in counts.items():
            if count != (wanted := tables.raw[name].count()):
                raise CorruptStore(f"table {name} has {count} rows, not {wanted}; restore a backup")
        return sum(counts.values())


def _count(table: RawTable) -> int:
    """The rows of a table: in order, as written, and found where the pages above them lead to."""
    count, before = 0, b""
    with table.cursor() as rows, table.cursor() as search:
        for key, value in rows:
            schema.unseal(table.name, key, value)
            if key <= before or not search.set_key(key):
                shown = schema.show_key(table.name, key)
                raise CorruptStore(f"table {table.name}, key {shown} is in a wrong place; restore a backup")
            count, before = count + 1, key
    return count
