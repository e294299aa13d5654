"""Compaction: rewrites a store row by row, without unused pages and without traces of deleted rows.

LMDB's own compacting copy keeps deleted keys as separators of branch pages. Instead, every row is put into
an empty file in key order; once that is complete, verified and durable, it replaces the old one. Readers in
other processes notice the new file and open it (`engine.storage.environment`); open transactions are
unaffected.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from engine.storage import environment, schema
from engine.storage.tables import Tables
from engine.system import isolation

SCRATCH = "compacting"
_ROWS = 20_000  # in one transaction


@dataclass(frozen=True, slots=True)
class Compacted:
    """Bytes of the store's file before and after."""

    before: int
    after: int


def write_anew(tables: Tables, scratch: Path, map_bytes: int) -> Path:
    """Write all rows to a file in a new folder, durably, and verify it.

    Raises OSError, StoreFull, CorruptStore.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    with environment.scratch(scratch, map_bytes) as write:
        _copy(tables, write)
    isolation.call("engine.storage.verify.walk", scratch)
    return scratch / environment.DATA


def _copy(tables: Tables, write: Callable[[Callable[[Tables], None]], None]) -> None:
    """Copy in several transactions, so that both of LMDB's meta pages point to complete states."""
    for table in schema.TABLES:
        rows = tables.raw[table].rows()
        while chunk := list(islice(rows, _ROWS)):
            write(partial(_put, table, chunk))
    if tables.meta.state.version:
        write(lambda anew: anew.meta.put_state(anew.meta.state))


def _put(table: str, rows: Sequence[schema.Row], tables: Tables) -> None:
    tables.raw[table].put_all(rows)
