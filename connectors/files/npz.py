"""Embeddings in NumPy's formats, .npz and .npy. No pickle is ever loaded."""

from __future__ import annotations

import zipfile
import zlib
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from connectors.files.records import (
    CHUNK_BYTES,
    Array,
    Rows,
    as_object,
    as_text,
    brief,
    checked_rows,
    modified_ms,
)
from engine.config import BoundsSettings
from engine.errors import InputError


class _Column:
    """Rows of an .npy stream, in order. `size`: bytes of the stream."""

    def __init__(self, stream: BinaryIO, size: int, name: str) -> None:
        self.name, self._stream = name, stream
        try:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else _header_2
            header: tuple[tuple[int, ...], bool, np.dtype[Any]] = read(stream)
            self.shape, fortran, self.dtype = header
        except (ValueError, EOFError) as problem:
            raise InputError(f"{name} is not a NumPy array: {brief(problem)}.") from None
        if self.dtype.hasobject:
            raise InputError(f"{name} holds Python objects, which are never loaded; save plain arrays.")
        self._row_bytes = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        needed = self._row_bytes * (self.shape[0] if self.shape else 1)
        if size - stream.tell() < needed:
            raise InputError(f"{name} is truncated: its header promises {needed} bytes of rows.")
        self._whole: Array | None = None
        if fortran and len(self.shape) > 1:
            flat = np.frombuffer(stream.read(needed), self.dtype)
            self._whole = flat.reshape(self.shape[::-1]).T
        self._at = 0

    def skip(self, rows: int) -> None:
        left = 0 if self._whole is not None else rows * self._row_bytes
        while left > 0:
            left -= len(self._stream.read(min(left, CHUNK_BYTES))) or left
        self._at += rows

    def read(self, rows: int) -> Array:
        """The next `rows` rows, (rows, ...)."""
        start, self._at = self._at, self._at + rows
        if self._whole is not None:
            return self._whole[start : self._at]
        data = self._stream.read(rows * self._row_bytes)
        if len(data) < rows * self._row_bytes:
            raise InputError(f"{self.name} is truncated at row {start + len(data) // self._row_bytes}.")
        return np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])


def _header_2(stream: BinaryIO) -> Any:
    return np.lib.format.read_array_header_2_0(stream)


class NumpyReader:
    """An .npz with `emb` and optional columns, or an .npy with embeddings alone."""

    OPTIONAL = ("keys", "time", "payload", "text", "labels", "images")

    def __init__(self, path: Path, bounds: BoundsSettings) -> None:
        self._path, self._bounds = path, bounds
        self._is_zip = zipfile.is_zipfile(path)
        if self._is_zip:
            self._check_zip()
        elif path.suffix == ".npz":
            raise InputError(f"{path} is not an .npz file, or it is truncated.")
        with self._open() as columns:
            self._check(columns)
            self.total = columns["emb"].shape[0]
        self._label_names = self._names()

    def _check(self, columns: Mapping[str, _Column]) -> None:
        shape, dtype = columns["emb"].shape, columns["emb"].dtype
        if len(shape) != 2 or shape[1] == 0 or dtype.kind not in "fiu":
            raise InputError(f"{columns['emb'].name} must be numbers of shape (n, d), not {dtype} {shape}.")
        for name, column in columns.items():
            if len(column.shape) == 0 or column.shape[0] != shape[0]:
                raise InputError(f"{column.name} must have one row for each of the {shape[0]} of emb.")
            if name == "time" and column.dtype.kind not in "iufM":
                raise InputError(f"{column.name} must be numbers or dates, not {column.dtype}.")

    def _check_zip(self) -> None:
        """Before anything of it is used: every member's checksum."""
        try:
            with zipfile.ZipFile(self._path) as archive:
                broken = archive.testzip()
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as problem:
            raise InputError(f"{self._path} is damaged: {brief(problem)}.") from None
        if broken:
            raise InputError(f"{self._path} is damaged: the checksum of {broken} does not match.")

    @contextmanager
    def _open(self) -> Iterator[dict[str, _Column]]:
        """The columns at their first rows."""
        with ExitStack() as stack:
            if not self._is_zip:
                stream = stack.enter_context(self._path.open("rb"))
                yield {"emb": _Column(stream, self._path.stat().st_size, str(self._path))}
                return
            archive = stack.enter_context(zipfile.ZipFile(self._path))
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            if "emb" not in members:
                held = ", ".join(sorted(members)) or "nothing"
                raise InputError(f"{self._path} is not an embedding file: it has no array emb, but {held}.")
            yield {
                name: _member(archive, members[name], f"{self._path}, array {name},", stack)
                for name in ("emb", *self.OPTIONAL)
                if name in members
            }

    def _names(self) -> Sequence[str]:
        if not self._is_zip:
            return ()
        with ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(self._path))
            if "label_names.npy" not in archive.namelist():
                return ()
            column = _member(archive, "label_names.npy", f"{self._path}, array label_names,", stack)
            return [str(name) for name in column.read(column.shape[0] if column.shape else 0).tolist()]

    def rows(self, start: int, count: int) -> Iterator[Rows]:
        stem, default_ms = self._path.stem, modified_ms(self._path)
        with self._open() as columns:
            for column in columns.values():
                column.skip(start)
            for first in range(start, self.total, count):
                n = min(count, self.total - first)
                read = {name: column.read(n) for name, column in columns.items()}
                keys = read["keys"].tolist() if "keys" in read else None
                times = _milliseconds(read["time"]) if "time" in read else [default_ms] * n
                documents = self._documents(read, n)
                yield checked_rows(stem, first, n, keys, read["emb"], times, documents, self._bounds)

    def _documents(self, read: Mapping[str, Array], count: int) -> list[Any]:
        documents: list[Any] = [None] * count
        named = [name for name in ("text", "payload", "labels", "images") if name in read]
        if not named:
            return documents
        for i in range(count):
            document: dict[str, Any] = {}
            if "text" in read:
                document["text"] = as_text(read["text"][i])
            if "payload" in read:
                document.update(as_object(as_text(read["payload"][i])))
            if "labels" in read:
                label = read["labels"][i].item()
                known = isinstance(label, int) and 0 <= label < len(self._label_names)
                document["label"] = self._label_names[label] if known else label
            if "images" in read:
                image = np.ascontiguousarray(read["images"][i])
                data = b64encode(image.tobytes()).decode()
                document["image"] = {"shape": image.shape, "dtype": image.dtype.str, "data": data}
            documents[i] = document
        return documents


def _member(archive: zipfile.ZipFile, name: str, shown: str, stack: ExitStack) -> _Column:
    stream = cast(BinaryIO, stack.enter_context(archive.open(name)))
    return _Column(stream, archive.getinfo(name).file_size, shown)


def _milliseconds(time: Array) -> list[Any]:
    if time.dtype.kind == "M":
        time = time.astype("datetime64[ms]").astype(np.int64)
    return list(time.tolist())
