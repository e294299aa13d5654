"""Exports the assignments of all items, as NDJSON or Parquet, from one version of a store.

Both forms have the columns `key`, `cluster`, `path` and `version`, by rising key. The read transaction is
open until the last row is written: run an export in a process of its own (`python -m engine.storage.export`),
so that it delays neither queries nor the store's compaction.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from engine import errors
from engine.errors import ShoalError
from engine.storage.queries import Snapshot
from engine.storage.reader import View

FORMATS = ("ndjson", "parquet")
ROWS = 20_000  # written at once

Row = tuple[str, int, tuple[int, ...]]  # key, cluster, path


@dataclass(frozen=True, slots=True)
class Head:
    """What an export is of."""

    collection: str
    version: int
    items: int


def export(
    folder: Path,
    out: BinaryIO,
    form: str,
    level: int | None = None,
    begin: Callable[[Head], None] = lambda head: None,
) -> Head:
    """Write all assignments to `out`; `begin` is called before the first of them.

    `level`: of another granularity than the final clusters, 0 the finest. Raises NoStore, CorruptStore.
    """
    with View.open(folder) as view, view.snapshot() as snapshot:
        head = Head(view.collection, snapshot.state.version, snapshot.tables.items.count())
        begin(head)
        write = _write_parquet if form == "parquet" else _write_ndjson
        write(out, head, rows(snapshot, level))
        out.flush()
    return head


def rows(snapshot: Snapshot, level: int | None) -> Iterator[Row]:
    """Yield the assignment of each item, by rising key."""
    tables, known = snapshot.tables, dict[int, tuple[int, tuple[int, ...]]]()
    for key, item in tables.keys.rows():
        tree = tables.places.need(tables.items.need(item).node)
        found = known.get(tree)
        if found is None:
            path = tuple(tables.trees.need(tree))
            found = known[tree] = snapshot.at_level(path, level), path
        yield key.decode(), *found


def _write_ndjson(out: BinaryIO, head: Head, found: Iterator[Row]) -> None:
    while part := list(islice(found, ROWS)):
        out.write(
            b"".join(
                orjson.dumps({"key": key, "cluster": cluster, "path": path, "version": head.version}) + b"\n"
                for key, cluster, path in part
            )
        )


def _write_parquet(out: BinaryIO, head: Head, found: Iterator[Row]) -> None:
    """Write Parquet; the file's metadata has the collection and the version, too."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = [("key", pa.string()), ("cluster", pa.int64()), ("path", pa.list_(pa.int64()))]
    schema = pa.schema([*columns, ("version", pa.int64())]).with_metadata(
        {"collection": head.collection, "version": str(head.version)}
    )
    with parquet.ParquetWriter(pa.PythonFile(_Counting(out), "w"), schema, compression="zstd") as writer:
        while part := list(islice(found, ROWS)):
            keys, clusters, paths = zip(*part, strict=True)
            versions = [head.version] * len(part)
            values = zip((keys, clusters, paths, versions), schema, strict=True)
            arrays = [pa.array(each, field.type) for each, field in values]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


class _Counting:
    """A file that knows its position: a pipe has none, and Parquet asks."""

    closed = False

    def __init__(self, out: BinaryIO) -> None:
        self._out, self._position = out, 0

    def write(self, data: Any) -> int:
        self._position += len(data)
        return self._out.write(data)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        self._out.flush()

    def close(self) -> None:
        """Whoever opened it closes it."""


def main(folder: str, form: str, level: str = "") -> None:
    """Write to standard output: a line of JSON, the head or an error; then the export."""

    out, begun = sys.stdout.buffer, False

    def say(told: dict[str, Any]) -> None:
        out.write(orjson.dumps(told) + b"\n")
        out.flush()

    def begin(head: Head) -> None:
        nonlocal begun
        begun = True
        say(asdict(head))

    try:
        export(Path(folder), out, form, int(level) if level else None, begin)
    except ShoalError as error:
        if begun:  # the reader sees that the process failed
            sys.exit(f"{type(error).__name__}: {error}")
        say(errors.dump(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has closed the pipe


if __name__ == "__main__":
    main(*sys.argv[1:])
