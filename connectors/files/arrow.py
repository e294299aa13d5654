"""Embeddings in Arrow's formats: Parquet, Feather and IPC files. A column of lists, and further columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from connectors.files.reading import Array, Part, Reading, plain, row_keys
from engine.config import MAX_DIM
from engine.errors import InputError
from engine.records import EXTRAS, brief, text_payload
from engine.rows import Columns


class ArrowReader:
    """A table with a column of embeddings: lists of numbers, or text that `records.text_vector` reads."""

    unit, first = "row", 0

    def __init__(self, reading: Reading) -> None:
        import pyarrow

        self._reading, self._path = reading, reading.path
        parquet = self._path.suffix.lower() == ".parquet"
        self._file: Any = _Parquet(reading) if parquet else _Ipc(reading)
        self.total: int | None = self._file.total
        schema: pyarrow.Schema = self._file.schema
        plan = reading.plan(list(schema.names), self.total, "column")
        self._roles = {role: name for role, name in plan.roles.items() if role != "delete"}
        self.has_keys = "key" in self._roles
        self._check_type(schema.field(self._roles["vector"]))

    def _check_type(self, field: Any) -> None:
        from pyarrow import types

        kind = getattr(field.type, "storage_type", field.type)
        inner = kind.value_type if _is_list(kind) else None
        numbers = inner is not None and (types.is_floating(inner) or types.is_integer(inner))
        if not numbers and not types.is_string(kind) and not types.is_large_string(kind):
            raise InputError(
                f"{self._path}: the column {field.name} must be lists of numbers, not {field.type}."
            )

    def parts(self, start: int, count: int, stem: str) -> Iterator[Part]:
        import pyarrow

        at = 0
        try:
            for at, batch in self._file.batches(start, count, list(self._roles.values())):
                columns = {role: batch.column(name) for role, name in self._roles.items()}
                rows = self._reading.rows()
                rows.extend(at, _columns(columns, row_keys(stem, at, batch.num_rows)))
                yield Part(at, at + batch.num_rows, rows)
        except (pyarrow.ArrowException, OSError) as problem:
            raise InputError(f"{self._path} is damaged after row {at}: {brief(problem)}.") from None


class _Parquet:
    def __init__(self, reading: Reading) -> None:
        import pyarrow
        import pyarrow.parquet

        try:
            self._file = pyarrow.parquet.ParquetFile(reading.path)
        except (pyarrow.ArrowException, OSError) as problem:
            raise InputError(
                f"{reading.path} is not a Parquet file, or it is truncated: {brief(problem)}."
            ) from None
        self.schema, self.total = self._file.schema_arrow, int(self._file.metadata.num_rows)

    def batches(self, start: int, count: int, names: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """Row number and record batch; row groups before `start` are not read."""
        at, groups = 0, list(range(self._file.num_row_groups))
        while groups and at + self._file.metadata.row_group(groups[0]).num_rows <= start:
            at += self._file.metadata.row_group(groups.pop(0)).num_rows
        found = self._file.iter_batches(batch_size=count, row_groups=groups, columns=names) if groups else ()
        yield from _cut(found, at, start, count)


class _Ipc:
    """Feather (version 2) and IPC files; the stream format too."""

    def __init__(self, reading: Reading) -> None:
        import pyarrow
        import pyarrow.ipc

        self._path = reading.path
        self._streamed = False
        try:
            with pyarrow.memory_map(str(self._path)) as source:
                try:
                    file = pyarrow.ipc.open_file(source)
                    batches = range(file.num_record_batches)
                    self.total: int | None = sum(file.get_batch(each).num_rows for each in batches)
                except pyarrow.ArrowInvalid:
                    file = pyarrow.ipc.open_stream(str(self._path))
                    self._streamed, self.total = True, None
                self.schema = file.schema
        except (pyarrow.ArrowException, OSError) as problem:
            raise InputError(
                f"{self._path} is not an Arrow file, or it is truncated: {brief(problem)}."
            ) from None

    def batches(self, start: int, count: int, names: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """Row number and record batch."""
        import pyarrow
        import pyarrow.ipc

        with pyarrow.OSFile(str(self._path)) as source:
            if self._streamed:
                yield from _cut(pyarrow.ipc.open_stream(source), 0, start, count)
                return
            file = pyarrow.ipc.open_file(source)
            yield from _cut(map(file.get_batch, range(file.num_record_batches)), 0, start, count)


def _cut(batches: Any, at: int, start: int, count: int) -> Iterator[tuple[int, Any]]:
    """Yield batches from row `start` on, of at most `count` rows. `at`: the row of the first batch."""
    for batch in batches:
        for first in range(max(start - at, 0), batch.num_rows, count):
            yield at + first, batch.slice(first, count)
        at += batch.num_rows


def _columns(columns: Mapping[str, Any], names: Sequence[str]) -> Columns:
    payloads = None
    if "payload" in columns:
        values = columns["payload"].to_pylist()
        payloads = [text_payload(value) if isinstance(value, str) else value for value in values]
    return Columns(
        vectors=_vectors(columns["vector"]),
        keys=columns["key"].to_pylist() if "key" in columns else names,
        times=_times(columns["time"]) if "time" in columns else None,
        payloads=payloads,
        extras={
            role: [plain(each) for each in columns[role].to_pylist()] for role in EXTRAS if role in columns
        },
    )


def _times(column: Any) -> Any:
    """Convert timestamps and dates to datetime64; return anything else unchanged."""
    import pyarrow
    from pyarrow import types

    if types.is_timestamp(column.type) or types.is_date(column.type):
        column = column.cast(pyarrow.timestamp("ms"), safe=False)
        return column.to_numpy(zero_copy_only=False).astype("datetime64[ms]")
    return column.to_pylist()


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _vectors(column: Any) -> Array | list[Any]:
    """(n, d) where all rows have d numbers, else one array a row, None: no list. A null in it becomes NaN."""
    import pyarrow.compute

    column = getattr(column, "storage", column)
    if not _is_list(column.type):
        return list(column.to_pylist())
    flat = column.flatten().to_numpy(zero_copy_only=False)
    lengths = pyarrow.compute.list_value_length(column).to_numpy(zero_copy_only=False)
    if (
        column.null_count == 0
        and len(lengths)
        and 1 <= lengths[0] <= MAX_DIM
        and (lengths == lengths[0]).all()
    ):
        return np.asarray(flat).reshape(len(lengths), int(lengths[0]))
    vectors: list[Array | None] = []
    at = 0
    for length in pyarrow.compute.list_value_length(column).to_pylist():
        vectors.append(None if length is None else flat[at : at + length])
        at += length or 0
    return vectors
