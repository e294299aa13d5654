"""What a store holds, for comparison with another one."""

from __future__ import annotations

from pathlib import Path

from engine.storage import schema
from engine.storage.store import Store


def contents(path: Path) -> dict[str, list[schema.Row]]:
    """Return all rows of all tables, without checksums."""
    with Store.open(path, free_bytes=0) as store:
        return {table: list(store.rows(table)) for table in schema.TABLES}
