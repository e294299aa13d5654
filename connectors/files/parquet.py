"""Embeddings in Parquet: a column of lists, and optional columns beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from connectors.files.records import Array, Rows, as_object, as_text, brief, checked_rows, modified_ms
from engine.config import BoundsSettings
from engine.errors import InputError

NAMES = {"emb": ("emb", "embedding"), "keys": ("keys", "key"), "labels": ("labels", "label")}


class ParquetReader:
    """Columns `emb` or `embedding` (lists), `keys` or `key`, `time`, `payload`, `text`, `labels`."""

    def __init__(self, path: Path, bounds: BoundsSettings) -> None:
        self._path, self._bounds = path, bounds
        self._file = self._open()
        names = self._file.schema_arrow.names
        self._columns: dict[str, str] = {}
        for role in ("emb", "keys", "time", "payload", "text", "labels"):
            found = [name for name in NAMES.get(role, (role,)) if name in names]
            if found:
                self._columns[role] = found[0]
        if "emb" not in self._columns:
            held = ", ".join(names) or "nothing"
            raise InputError(f"{path} is not an embedding file: it has no column emb, but {held}.")
        self._check_type()
        self.total = int(self._file.metadata.num_rows)

    def _open(self) -> Any:
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.ParquetFile(self._path)
        except (pyarrow.ArrowException, OSError) as problem:
            raise InputError(
                f"{self._path} is not a Parquet file, or it is truncated: {brief(problem)}."
            ) from None

    def _check_type(self) -> None:
        from pyarrow import types

        kind = self._file.schema_arrow.field(self._columns["emb"]).type
        lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        number = lists and (types.is_floating(kind.value_type) or types.is_integer(kind.value_type))
        if not number:
            name = self._columns["emb"]
            raise InputError(f"{self._path}: the column {name} must be lists of numbers, not {kind}.")

    def rows(self, start: int, count: int) -> Iterator[Rows]:
        import pyarrow

        at, groups = 0, list(range(self._file.num_row_groups))
        while groups and at + self._file.metadata.row_group(groups[0]).num_rows <= start:
            at += self._file.metadata.row_group(groups.pop(0)).num_rows
        batches = self._file.iter_batches(
            batch_size=count, row_groups=groups, columns=list(self._columns.values())
        )
        try:
            for batch in batches if groups else ():
                cut = min(max(start - at, 0), batch.num_rows)
                if cut < batch.num_rows:
                    yield self._parse(batch.slice(cut), at + cut)
                at += batch.num_rows
        except (pyarrow.ArrowException, OSError) as problem:
            raise InputError(f"{self._path} is damaged after row {at}: {brief(problem)}.") from None

    def _parse(self, batch: Any, first: int) -> Rows:
        columns = {role: batch.column(name) for role, name in self._columns.items()}
        n = batch.num_rows
        keys = columns["keys"].to_pylist() if "keys" in columns else None
        default_ms = modified_ms(self._path)
        times = [default_ms if t is None else t for t in _arrow_times(columns.get("time"), n)]
        documents = self._documents(columns, n)
        vectors = _arrow_vectors(columns["emb"])
        return checked_rows(self._path.stem, first, n, keys, vectors, times, documents, self._bounds)

    def _documents(self, columns: Mapping[str, Any], count: int) -> list[Any]:
        named = [name for name in ("text", "payload", "labels") if name in columns]
        values = {name: columns[name].to_pylist() for name in named}
        documents: list[Any] = [None] * count
        for i in range(count) if named else ():
            document: dict[str, Any] = {}
            if values.get("text"):
                document["text"] = values["text"][i]
            payload = values["payload"][i] if "payload" in values else None
            if payload is not None:
                document.update(payload if isinstance(payload, dict) else as_object(as_text(payload)))
            if "labels" in values:
                document["label"] = values["labels"][i]
            documents[i] = document
        return documents


def _arrow_times(column: Any, count: int) -> list[Any]:
    import pyarrow

    if column is None:
        return [None] * count
    if pyarrow.types.is_temporal(column.type):
        column = column.cast(pyarrow.timestamp("ms"), safe=False).cast(pyarrow.int64())
    return list(column.to_pylist())


def _arrow_vectors(column: Any) -> list[Array | None]:
    """One array a row, None where there is no list; a null inside becomes NaN."""
    import pyarrow.compute

    flat = column.flatten().to_numpy(zero_copy_only=False)
    lengths = pyarrow.compute.list_value_length(column).to_pylist()
    vectors: list[Array | None] = []
    at = 0
    for length in lengths:
        vectors.append(None if length is None else flat[at : at + length])
        at += length or 0
    return vectors
