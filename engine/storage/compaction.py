"""A store written anew, row by row: without unused pages, and with no trace of what was deleted.

LMDB's own compacting copy would keep deleted keys where pages of keys were once divided. So every row is
put into an empty file, in the order of keys; that file takes the place of the old one once it is complete,
read again and durable. Readers in other processes notice that the file is another and open it
(`engine.storage.reader`); what they are reading at that moment stays as it was.
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
_ROWS = 20_000  # put in one transaction


@dataclass(frozen=True, slots=True)
class Compacted:
    """Bytes of the store's file."""

    before: int
    after: int


def write_anew(tables: Tables, scratch: Path, map_bytes: int) -> Path:
    """Make a file of the rows of a store in a new folder; it is durable and has been read again.

    Raises OSError, lmdb.Error, CorruptStore.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    with environment.scratch(scratch, map_bytes) as write:
        _copy(tables, write)
    isolation.call("engine.storage.verify.walk", scratch)
    return scratch / environment.DATA


def _copy(tables: Tables, write: Callable[[Callable[[Tables], None]], None]) -> None:
    """In several transactions, so that both of LMDB's two newest states are good ones."""
    for table in schema.TABLES:
        rows = tables.raw[table].rows()
        while chunk := list(islice(rows, _ROWS)):
            write(partial(_put, table, chunk))
    if tables.meta.state.version:
        write(lambda anew: anew.meta.put_state(anew.meta.state))


def _put(table: str, rows: Sequence[schema.Row], tables: Tables) -> None:
    keys, bodies = zip(*rows, strict=True)
    tables.raw[table].put_sorted(keys, bodies)
