"""A labelled set: any file that can be ingested, if its records have labels."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from connectors.chunks import Remark
from connectors.files.lines import is_pipe
from connectors.files.source import FileSource, Options
from engine.config import LimitsSettings
from engine.errors import InputError, shown
from engine.records import wrong_dimension
from engine.rows import last_of_each, majority
from engine.types import Float64, Int64

CHUNK = 4096  # records read at once
NO_TIME = -(2**52)
BOUNDS = LimitsSettings(payload_max_bytes=2**30, record_max_bytes=2**30)  # what is read is not stored


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """n records, the others left out. Columns that not every record has are None."""

    emb: Float64  # (n, d), finite, no row zero
    labels: Sequence[Any]  # n integers, strings, ...; None where a record has none
    times: Int64 | None  # (n,) ms
    texts: Sequence[str] | None
    images: NDArray[Any] | None  # (n, ...)
    left_out: Sequence[Remark]
    superseded: int  # records that a later one of the same key replaced, as in an ingest

    def classes(self) -> tuple[list[str], Int64]:
        """Return the names of the classes, sorted, and the number of each record's (n,); -1: no label."""
        known = np.array([label is not None for label in self.labels], np.bool_)
        names, numbers = np.unique(
            [_name(label) for label in self.labels if label is not None], return_inverse=True
        )
        found = np.full(len(known), -1, np.int64)
        found[known] = numbers
        return names.tolist(), found


def read_labelled(path: Path, partly: bool = False) -> LabelledFile:
    """Read a whole file; `partly`: records need no label.

    Raises InputError where it cannot be used, or a record has no label but needs one.
    """
    if is_pipe(path):
        raise InputError(f"{path} is a pipe: a labelled set is a file.")
    source = FileSource(path, Options(CHUNK, BOUNDS, default_ms=NO_TIME))
    vectors, times, payloads, keys = list[Any](), list[int](), list[bytes](), list[bytes]()
    numbers, deletes, left_out = list[int](), list[tuple[int, bytes]](), list[tuple[int, str]]()
    for part in source.parts():
        kept = part.rows.kept()
        numbers.extend(kept.numbers)
        keys.extend(kept.keys)
        deletes.extend(kept.deletes)
        vectors.extend(kept.vectors)
        times.extend(kept.times)
        payloads.extend(kept.payloads)
        left_out.extend(kept.rejected)
    wanted = majority(np.fromiter(map(len, vectors), np.int64, len(vectors)))
    reasons = [_reason(vector, wanted) for vector in vectors]
    left_out += [(numbers[at], reason) for at, reason in enumerate(reasons) if reason]
    usable = [at for at, reason in enumerate(reasons) if not reason]
    last = last_of_each(((numbers[at], keys[at]) for at in usable), deletes)
    rows = [at for at in usable if last[keys[at]] == numbers[at]]
    if not rows:
        raise InputError(f"{path} has no record that can be used.")
    found = [orjson.loads(payloads[at] or b"null") for at in rows]
    documents: list[dict[str, Any]] = [one if isinstance(one, dict) else {} for one in found]
    labels = [_label_of(document) for document in documents]
    for at, label in zip(rows, labels, strict=True):
        if label is None and not partly:
            raise InputError(
                f"{path} is not a labelled set: {source.place(numbers[at])} has no label or labels."
            )
        if isinstance(label, list | dict):
            raise InputError(
                f"{path}, {source.place(numbers[at])}: the label {shown(label)} is neither a string nor a "
                "number; of one-hot rows take the argmax."
            )
    stamps = np.array([times[at] for at in rows], np.int64)
    return LabelledFile(
        emb=np.stack([np.asarray(vectors[at], np.float64) for at in rows]),
        labels=labels,
        times=None if (stamps == NO_TIME).any() else stamps,
        texts=_column(documents, "text"),
        images=_images(documents),
        left_out=[source.remark(number, reason) for number, reason in sorted(left_out)],
        superseded=len(usable) - len(rows),
    )


def _label_of(document: dict[str, Any]) -> Any:
    """Return the label of a record; None: it has none, or an empty one."""
    label = document.get("label")
    return None if label == "" else label


def _name(label: Any) -> str:
    """Return the name of a label's class: 1.0 is 1, which a column with gaps makes of it."""
    return str(int(label) if isinstance(label, float) and label.is_integer() else label)


def _reason(vector: Any, wanted: int | None) -> str:
    """Return why a vector is left out, "" if it is not. Rows of NumPy arrays were not checked before."""
    if len(vector) != wanted:
        return wrong_dimension(len(vector), wanted)
    return "" if np.isfinite(vector).all() and np.any(vector) else "the embedding is zero or not finite"


def _column(documents: Sequence[dict[str, Any]], name: str) -> list[Any] | None:
    values = [document.get(name) for document in documents]
    return None if None in values else values


def _images(documents: Sequence[dict[str, Any]]) -> NDArray[Any] | None:
    """Return the pictures of an .npz as one array."""
    found = [document.get("image") for document in documents]
    if not all(isinstance(one, dict) and {"data", "dtype", "shape"} <= one.keys() for one in found):
        return None
    return np.stack(
        [np.frombuffer(b64decode(one["data"]), one["dtype"]).reshape(one["shape"]) for one in found if one]
    )
