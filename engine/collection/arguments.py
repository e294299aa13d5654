"""Arguments of the library: columns of Python, NumPy or pandas values, checked before anything changes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from engine import vectors
from engine.config import LimitsSettings
from engine.errors import InputError, Unusable, counted, shown
from engine.records import read_key, wrong_dimension
from engine.rows import Columns, Rows
from engine.types import Batch, Int16


def keys_of(keys: Any, limits: LimitsSettings) -> list[bytes]:
    """Return the keys as they are stored. Raises InputError, naming the row."""
    found = []
    for row, key in enumerate(listed("keys", keys)):
        try:
            found.append(read_key(key, limits))
        except Unusable as problem:
            raise InputError(f"row {row}: {problem}; nothing has changed") from None
    return found


def positions_of(positions: Mapping[str, bytes] | None) -> dict[str, bytes]:
    """Return the positions of sources, as they are stored. Raises InputError: one is no bytes."""
    for source, position in (positions or {}).items():
        if not isinstance(source, str) or not isinstance(position, bytes):
            raise InputError(
                f"positions map a source's name to bytes: {shown(source)} has {shown(position)}; nothing has "
                "changed"
            )
    return dict(positions or {})


def batch_of(columns: Columns, limits: LimitsSettings, dim: int | None, now_ms: int) -> Batch:
    """Return the batch that inserts these records; the last of equal keys counts.

    `dim`: the collection's, None: the vectors decide. Raises InputError, naming the first row that cannot be
    used. Warns of times that are hardly right.
    """
    rows = Rows(limits, now_ms)
    rows.extend(0, columns)
    settled = rows.settle(dim)
    for row, reason in settled.rejected[:1]:
        others = len(settled.rejected) - 1
        more = f", and {counted(others, 'more row', 'more rows')}" if others else ""
        raise InputError(f"row {row} ({shown(columns.keys[row])}): {reason}{more}; nothing has changed")
    for row, doubt in settled.doubts[:1]:
        more = f", and {len(settled.doubts) - 1} more" if len(settled.doubts) > 1 else ""
        warnings.warn(
            f"row {row} ({shown(columns.keys[row])}): {doubt}{more}; is its unit right?", stacklevel=3
        )
    return settled.batch


def columns_of(keys: Any, embeddings: Any, times: Any, payloads: Any) -> Columns:
    """Return the columns side by side. Raises InputError where their lengths differ."""
    names = listed("keys", keys)
    columns = Columns(
        vectors=_vectors(embeddings, len(names)),
        keys=names,
        times=None if times is None else _times(times),
        payloads=None if payloads is None else listed("payloads", payloads),
    )
    for name, column in ("times", columns.times), ("payloads", columns.payloads):
        if column is not None and len(column) != len(names):
            raise InputError(f"{name} must be as many as the keys, {len(names)}, not {len(column)}")
    return columns


def grid_of(embeddings: Any, dim: int | None) -> Int16:
    """Return vectors (m, d), or one of (d,), on the grid. Raises InputError, naming the row."""
    refuse_masked("embeddings", embeddings)
    matrix = _array(embeddings)
    if matrix is None or matrix.ndim not in (1, 2) or matrix.dtype.kind not in "fiu":
        raise InputError(f"embeddings must be numbers of the shape (m, d), not {_described(embeddings)}")
    if not matrix.size and matrix.ndim == 1:  # an empty list
        return np.zeros((0, dim or 1), np.int16)
    matrix = np.atleast_2d(matrix)
    if not matrix.shape[1] or (dim is not None and matrix.shape[1] != dim):
        raise InputError(wrong_dimension(matrix.shape[1], dim))
    grid, bad = vectors.quantize(matrix)
    for row, reason in bad.items():
        raise InputError(f"row {row}: {reason}")
    return grid


def refuse_masked(name: str, values: Any) -> None:
    """Raise InputError where a NumPy array has masked values, which other arrays would uncover."""
    for part in values if isinstance(values, (list, tuple)) else (values,):
        if isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part):
            raise InputError(f"{name}: some values are masked; fill them, or leave out their rows")


def listed(name: str, values: Any) -> Sequence[Any]:
    """Return a column as a sequence. Raises InputError where it is none."""
    unordered = isinstance(values, (set, frozenset))  # whose n-th value is nobody's
    if isinstance(values, (str, bytes, bytearray, dict)) or unordered or not isinstance(values, Iterable):
        raise InputError(f"{name} must be a list, one for each row, not {shown(values)}")
    if isinstance(values, (list, tuple)):
        return values
    for convert in "to_pylist", "tolist", "to_list":  # of pyarrow; of NumPy, pandas, torch; of polars
        if hasattr(values, convert):
            values = getattr(values, convert)()
    if not isinstance(values, Iterable):
        raise InputError(f"{name} must be a list, one for each row, not {shown(values)}")
    return list(values)


def _times(times: Any) -> Any:
    """NumPy's and pandas' columns keep their type."""
    refuse_masked("times", times)
    array = _array(times) if hasattr(times, "dtype") or hasattr(times, "__array__") else None
    return listed("times", times) if array is None or array.ndim != 1 else array


def _vectors(embeddings: Any, count: int) -> Any:
    """Return an array (n, d) of numbers as it is, and anything else as a sequence of n vectors."""
    refuse_masked("embeddings", embeddings)
    if isinstance(embeddings, (list, tuple)):
        rows: Sequence[Any] = [_array(row) if hasattr(row, "__array__") else row for row in embeddings]
    else:
        matrix = _array(embeddings)
        if matrix is not None and matrix.ndim == 2 and matrix.dtype.kind in "fiu" and len(matrix) == count:
            return matrix
        rows = [] if matrix is None or matrix.ndim == 0 else listed("embeddings", embeddings)
    if len(rows) == count:
        return rows
    raise InputError(f"embeddings must have the shape ({count}, d), not {_described(embeddings)}")


def _array(values: Any) -> Any:
    """NumPy's reading of the values, None where it has none: rows of different lengths.

    Raises InputError where their own library refuses: a tensor elsewhere, or of a type that NumPy has not.
    """
    try:
        return np.asarray(values)
    except ValueError:
        return None
    except (TypeError, RuntimeError) as problem:
        raise InputError(f"{type(values).__name__} cannot be read as a NumPy array: {problem}") from None


def _described(values: Any) -> str:
    matrix = _array(values)
    return shown(values) if matrix is None or matrix.ndim == 0 else f"{matrix.shape} of {matrix.dtype}"
