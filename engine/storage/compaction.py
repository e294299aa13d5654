"""A store written anew, row by row: without unused pages, and with no trace of what was deleted.

LMDB's own compacting copy would keep deleted keys where pages of keys were once divided. So every row is
put into an empty file, in the order of keys; that file takes the place of the old one once it is complete,
read again and durable. Readers in other processes notice that the file is another and open it
(`engine.storage.reader`); what they are reading at that moment stays as it was.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import lmdb

from engine.storage import schema
from engine.storage.tables import Tables
from engine.system import files, isolation

SCRATCH = "compacting"
_ROWS = 20_000  # put in one transaction


@dataclass(frozen=True, slots=True)
class Compacted:
    """Bytes of the store's file."""

    before: int
    after: int


def write_anew(found: Tables, scratch: Path, map_bytes: int) -> Path:
    """Make a file of the rows of a store in a new folder; it is durable and has been read again.

    Raises OSError, lmdb.Error, CorruptStore.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    # Durable in the end, not at each of its transactions: it is not the store yet.
    with lmdb.open(os.fspath(scratch), map_size=map_bytes, max_dbs=len(schema.TABLES), sync=False) as env:
        _write(found, env)
        env.sync(True)
    files.sync(scratch / "data.mdb")
    isolation.call("engine.storage.verify.walk", scratch)
    return scratch / "data.mdb"


def _write(found: Tables, env: lmdb.Environment) -> None:
    """Several transactions, so that both of LMDB's two newest states are good ones."""
    with env.begin(write=True) as txn:
        handles = {name: env.open_db(name.encode(), txn) for name in schema.TABLES}
    for table in schema.TABLES:
        rows = found.rows(table)
        while chunk := list(islice(rows, _ROWS)):
            with env.begin(write=True) as txn:
                keys, bodies = zip(*chunk, strict=True)
                Tables(txn, handles).put_rows(table, keys, bodies)
    with env.begin(write=True) as txn:
        state = Tables(txn, handles).get("meta", b"state")
        if state is not None:
            Tables(txn, handles).put("meta", b"state", state)
