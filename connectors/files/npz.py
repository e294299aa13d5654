"""Embeddings in NumPy's formats, .npz and .npy. No pickle is ever loaded."""

from __future__ import annotations

import zipfile
import zlib
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, cast

import numpy as np

from connectors.files.reading import CHUNK_BYTES, Array, Part, Reading, plain, row_keys
from engine.config import MAX_DIM
from engine.errors import InputError
from engine.records import EXTRAS, brief, text_payload
from engine.rows import Columns


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
            raise InputError(f"{name} is truncated: its header declares {needed} bytes of rows.")
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
        """Return the next `rows` rows, (rows, ...)."""
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
    """An .npz with an array of embeddings and further arrays, or an .npy with embeddings alone."""

    unit, first = "row", 0

    def __init__(self, reading: Reading) -> None:
        self._reading, self._path = reading, reading.path
        self._is_zip = zipfile.is_zipfile(self._path)
        if self._is_zip:
            self._check_zip()
        elif self._path.suffix.lower() == ".npz":
            raise InputError(f"{self._path} is not an .npz file, or it is truncated.")
        self._roles = self._find_roles()
        with self._open() as columns:
            self._check(columns)
            self.total: int | None = columns["vector"].shape[0]
        self.has_keys = "key" in self._roles
        self._label_names = self._names()

    def _find_roles(self) -> Mapping[str, str]:
        """Role -> array; of an .npy that is nothing but the embeddings."""
        if not self._is_zip:
            self._reading.need_chosen({}, ["embeddings alone"], "array")
            return {"vector": ""}
        with zipfile.ZipFile(self._path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
        known = [name for name in names if name != "label_names"]
        plan = self._reading.plan(known, None, "array")
        with ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(self._path))
            name = plan.roles["vector"]
            rows = _member(archive, f"{name}.npy", f"{self._path}, array {name},", stack).shape[:1]
        self._reading.parser.ignore(plan.ignored, *rows)
        return {role: name for role, name in plan.roles.items() if role != "delete"}

    def _check(self, columns: Mapping[str, _Column]) -> None:
        vectors = columns["vector"]
        shape, dtype = vectors.shape, vectors.dtype
        if len(shape) != 2 or not 1 <= shape[1] <= MAX_DIM or dtype.kind not in "fiu":
            raise InputError(
                f"{vectors.name} must be numbers of shape (n, d), d at most {MAX_DIM}, not {dtype} {shape}."
            )
        for column in columns.values():
            if len(column.shape) == 0 or column.shape[0] != shape[0]:
                raise InputError(
                    f"{column.name} must have one row for each of the {shape[0]} of the embeddings."
                )

    def _check_zip(self) -> None:
        """Check the checksum of every member, before any of them is used."""
        try:
            with zipfile.ZipFile(self._path) as archive:
                broken = archive.testzip()
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as problem:
            raise InputError(f"{self._path} is damaged: {brief(problem)}.") from None
        if broken:
            raise InputError(f"{self._path} is damaged: the checksum of {broken} does not match.")

    @contextmanager
    def _open(self) -> Iterator[dict[str, _Column]]:
        """Open the columns at their first rows."""
        with ExitStack() as stack:
            if not self._is_zip:
                stream = stack.enter_context(self._path.open("rb"))
                yield {"vector": _Column(stream, self._path.stat().st_size, str(self._path))}
                return
            archive = stack.enter_context(zipfile.ZipFile(self._path))
            yield {
                role: _member(archive, f"{name}.npy", f"{self._path}, array {name},", stack)
                for role, name in self._roles.items()
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

    def parts(self, start: int, count: int, stem: str) -> Iterator[Part]:
        total = self.total or 0
        with self._open() as columns:
            for column in columns.values():
                column.skip(start)
            for first in range(start, total, count):
                n = min(count, total - first)
                read = {role: column.read(n) for role, column in columns.items()}
                rows = self._reading.rows()
                rows.extend(first, self._columns(read, row_keys(stem, first, n)))
                yield Part(first, first + n, rows)

    def _columns(self, read: Mapping[str, Array], names: Sequence[str]) -> Columns:
        """Return the arrays of some rows. `names`: keys of rows that have none."""
        payloads = None
        if "payload" in read:
            values = map(plain, read["payload"])
            payloads = [text_payload(value) if isinstance(value, str) else value for value in values]
        return Columns(
            vectors=read["vector"],
            keys=[plain(key) for key in read["key"]] if "key" in read else names,
            times=read.get("time"),
            payloads=payloads,
            extras={
                role: [self._extra(role, value) for value in read[role]] for role in EXTRAS if role in read
            },
        )

    def _extra(self, role: str, value: Any) -> Any:
        if role == "image":
            pixels = np.ascontiguousarray(value)
            data = b64encode(pixels.tobytes()).decode()
            return {"shape": pixels.shape, "dtype": pixels.dtype.str, "data": data}
        found = plain(value)
        if role == "label" and isinstance(found, int) and 0 <= found < len(self._label_names):
            return self._label_names[found]
        return found


def _member(archive: zipfile.ZipFile, name: str, shown: str, stack: ExitStack) -> _Column:
    stream = cast(BinaryIO, stack.enter_context(archive.open(name)))
    return _Column(stream, archive.getinfo(name).file_size, shown)
