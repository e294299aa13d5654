"""Labelled sets of unit vectors, with class names."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from connectors.chunks import Remark
from connectors.files import labelled as files
from connectors.files.source import ARROW, TEXT, format_of
from engine.errors import InputError
from engine.records import FIELDS
from engine.types import Float32, Int64
from engine.vectors import moderate

Array = NDArray[Any]
NPY = b"\x93NUMPY"  # with which a file of one array begins


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Unit vectors (n, d), the class of each (n,) from 0, and the names of the classes."""

    emb: Float32
    classes: Int64
    names: tuple[str, ...]
    superseded: int = 0  # rows of the file that a later one of the same key replaced
    left_out: Sequence[Remark] = ()  # on records of the file that cannot be used

    @property
    def sizes(self) -> Int64:
        """Items of each class, (C,)."""
        return np.bincount(self.classes, minlength=len(self.names))


def read_labelled(path: Path) -> LabelledSet:
    """Read an .npz of `emb` (n, d), `labels` (n,) and, optionally, `label_names` and keys (n,), or another
    file that can be ingested, if its records have labels.

    Of several rows of one key the last one counts, as in an ingest. Raises InputError as `labelled_set`, and
    where the file is no such file.
    """
    if format_of(path) in (*ARROW, *TEXT):
        return _of_records(path)
    arrays = read_arrays(path, "emb", "labels", "label_names", *FIELDS.key)
    for name in ("emb", "labels"):
        if name not in arrays:
            raise InputError(f"{path} has no array {name}: a labelled set needs emb (n, d) and labels (n,).")
    emb, labels = arrays.pop("emb"), arrays.pop("labels")
    keys = next((arrays[name] for name in FIELDS.key if name in arrays), None)
    try:
        if keys is None or emb.shape[:1] != labels.shape:
            return labelled_set(emb, labels, arrays.get("label_names"))
        rows, count = _last_of_each(keys, len(labels)), len(labels)
        if len(rows) < count:
            emb, labels = emb[rows], labels[rows]
        found = labelled_set(emb, labels, arrays.get("label_names"))
        return replace(found, superseded=count - len(rows))
    except InputError as problem:
        raise InputError(f"{path}: {problem}") from None


def _of_records(path: Path) -> LabelledSet:
    found = files.read_labelled(path)
    names, classes = found.classes()
    try:
        labelled = labelled_set(found.emb, np.array(names)[classes])
    except InputError as problem:
        raise InputError(f"{path}: {problem}") from None
    return replace(labelled, superseded=found.superseded, left_out=found.left_out)


def _last_of_each(keys: Array, count: int) -> Int64:
    """Return the last row of each key, by rising row."""
    if keys.shape != (count,):
        raise InputError(f"the keys must be {count}, one a row of emb, not {keys.shape}.")
    return np.sort(count - 1 - np.unique(keys[::-1], return_index=True)[1])


def read_arrays(path: Path, *names: str) -> dict[str, Array]:
    """Return those of these arrays that an .npz has. Raises InputError where it is no .npz."""
    try:
        with path.open("rb") as file:
            start = file.read(len(NPY))
        if start != NPY and not zipfile.is_zipfile(path):  # NumPy takes it for a pickle, and advises on those
            raise InputError(
                f"{path} is not an .npz, or it is damaged: make one with numpy.savez, of an array {names[0]} "
                "and those that belong to it."
            )
        # Opened here, the file is also closed where NumPy refuses it.
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise InputError(f"{path} is one array, not an .npz of several.")
            return {name: found[name] for name in names if name in found.files}
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zipfile.LargeZipFile) as problem:
        if "Object arrays" in str(problem):
            raise InputError(
                f"{path} holds Python objects, which are never loaded; save plain arrays."
            ) from None
        raise InputError(f"{path} is not an .npz, or it is damaged: {problem}.") from None


def labelled_set(emb: Array, labels: Array, label_names: Array | None = None) -> LabelledSet:
    """Return a checked, normalised set. `emb` (n, d): numbers; `labels` (n,): integers or strings.

    Raises InputError: another shape or length, NaN, a zero vector, fewer than two classes, no class of
    two items.
    """
    if emb.ndim != 2 or emb.dtype.kind not in "fiu" or not emb.size:
        raise InputError(f"emb must be numbers of the shape (n, d), not {emb.dtype} {emb.shape}.")
    if labels.shape != (len(emb),) or labels.dtype.kind not in "iuUS":
        raise InputError(
            f"labels must be {len(emb)} integers or strings, one a row of emb, "
            f"not {labels.dtype} {labels.shape}."
        )
    found, classes = np.unique(labels, return_inverse=True)
    if len(found) < 2:
        raise InputError("labels has one class only: thresholds are compared between two or more.")
    if len(found) == len(labels):
        raise InputError("every class has one item only: a class needs two for a pair of its own.")
    return LabelledSet(unit(emb), classes.reshape(-1).astype(np.int64), _names(found, label_names))


def unit(emb: Array) -> Float32:
    """Scale rows (n, d) to unit length, float32. Raises InputError for a row of NaN, infinity or zeros."""
    out = moderate(emb).astype(np.float32)
    step = 1 << 16
    for first in range(0, len(out), step):
        block = out[first : first + step]
        lengths = np.linalg.norm(block.astype(np.float64), axis=1)
        bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0.0))
        if len(bad):
            what = "is zero" if lengths[bad[0]] == 0.0 else "has a NaN or an infinity"
            raise InputError(f"row {first + bad[0]} of emb {what}.")
        block /= lengths[:, None].astype(np.float32)
    return out


def _names(found: Array, label_names: Array | None) -> tuple[str, ...]:
    """Return the name of each class: from `label_names` where the labels are indices into it."""
    named = label_names is not None and label_names.ndim == 1 and found.dtype.kind in "iu"
    if named and label_names is not None and found[0] >= 0 and found[-1] < len(label_names):
        return tuple(str(label_names[label]) for label in found)
    return tuple(
        map(
            str, found.astype(np.str_) if found.dtype.kind != "S" else np.char.decode(found, errors="replace")
        )
    )
