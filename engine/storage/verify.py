"""Reading a whole store, value by value, to know whether it is what was written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import lmdb

from engine.errors import CorruptStore
from engine.storage import schema
from engine.storage.tables import Tables


@contextmanager
def reading(path: str | os.PathLike[str], lock: bool) -> Iterator[tuple[lmdb.Environment, Tables | None]]:
    """One version of a store: its environment and tables; None while it has none.

    `lock`: others may be writing it. Not within a process that has the store open. Raises CorruptStore.
    """
    try:
        env = lmdb.open(os.fspath(path), max_dbs=len(schema.TABLES), readonly=True, lock=lock, create=False)
        with env, env.begin() as txn:
            if not txn.stat()["entries"]:
                yield env, None  # the writer was stopped before its first transaction
                return
            handles = {name: env.open_db(name.encode(), txn, create=False) for name in schema.TABLES}
            yield env, Tables(txn, handles)
    except lmdb.Error as error:
        raise CorruptStore(f"{path}: {error}; restore a backup") from error


def walk(path: str | os.PathLike[str], beside: str = "") -> int:
    """Compare every value of a store with its checksum and look every key up; returns how many there are.

    `beside`: not empty where others may be writing it. Raises CorruptStore.
    """
    with reading(path, lock=bool(beside)) as (_, found):
        if found is None:
            return 0
        counts = {name: _count(found, name) for name in schema.TABLES}
        for name, count in counts.items():
            if count != found.count(name):
                wanted = found.count(name)
                raise CorruptStore(f"table {name} has {count} rows, not {wanted}; restore a backup")
        return sum(counts.values())


def _count(found: Tables, table: str) -> int:
    """The rows of a table: in order, as written, and found where the pages above them lead to."""
    count, before = 0, b""
    with found.cursor(table) as rows, found.cursor(table) as search:
        for key, value in rows:
            schema.unseal(table, key, value)
            if key <= before or not search.set_key(key):
                raise CorruptStore(
                    f"table {table}, key {schema.show_key(table, key)} is in a wrong place; restore a backup"
                )
            count, before = count + 1, key
    return count
