"""One table of a store within one transaction: `RawTable` in bytes, the other kinds in Python objects.

A table owns the encoding of its keys and values, so no caller pairs a table with an encoding. Every value is
compared with its checksum when it is read and given one when it is written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, Generic, NoReturn, TypeVar

import lmdb
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh32_digest

from engine.errors import CorruptStore
from engine.storage.schema import CHECKSUM_BYTES, SEEDS, K, KeyCodec, Pair, Row, show_key
from engine.types import Int64, Items, Lists, Shift, Vectors

V = TypeVar("V")
C = TypeVar("C", Items, Lists, Vectors)


class RawTable:
    """The rows of a table as bytes, in the order of their keys."""

    __slots__ = ("_db", "_seed", "_txn", "name")

    def __init__(self, txn: lmdb.Transaction[bytes], db: Any, name: str) -> None:
        self._txn, self._db, self._seed, self.name = txn, db, SEEDS[name], name

    def get(self, key: bytes) -> bytes | None:
        """Return the body under a key, None if there is none. Raises CorruptStore."""
        value = self._txn.get(key, db=self._db)
        return None if value is None else self.unseal(key, value)

    def need(self, key: bytes) -> bytes:
        """Return the body of a row that must exist. Raises CorruptStore."""
        body = self.get(key)
        if body is None:
            raise CorruptStore(
                f"table {self.name}, key {show_key(self.name, key)} is missing; restore a backup"
            )
        return body

    def pick(self, keys: Iterable[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Return those of these keys that exist, and their bodies. Raises CorruptStore."""
        rows = [(key, body) for key in keys if (body := self.get(key)) is not None]
        return [key for key, _ in rows], [body for _, body in rows]

    def rows(self, start: bytes = b"", prefix: bytes = b"") -> Iterator[Row]:
        """Yield rows from `start` on while their keys begin with `prefix`. Raises CorruptStore."""
        with self.cursor() as cursor:
            more = cursor.set_range(max(start, prefix)) if start or prefix else cursor.first()
            while more and cursor.key().startswith(prefix):
                yield cursor.key(), self.unseal(*cursor.item())
                more = cursor.next()

    def rows_back(self, start: bytes = b"") -> Iterator[Row]:
        """Yield rows from `start` (by default the last row) backwards. Raises CorruptStore."""
        with self.cursor() as cursor:
            if start and cursor.set_range(start):
                more = cursor.key() == start or cursor.prev()
            else:
                more = cursor.last()
            while more:
                yield cursor.key(), self.unseal(*cursor.item())
                more = cursor.prev()

    def cursor(self) -> lmdb.Cursor[bytes]:
        """Return a cursor over keys and values as they are on disk, checksums included."""
        return self._txn.cursor(self._db)

    def read(self) -> tuple[list[bytes], list[bytes]]:
        """Return all keys and all bodies. Raises CorruptStore."""
        seed, digest = self._seed, xxh32_digest
        keys: list[bytes] = []
        bodies: list[bytes] = []
        with self.cursor() as cursor:
            for key, value in cursor:
                body = value[:-CHECKSUM_BYTES]
                if digest(key + body, seed) != value[-CHECKSUM_BYTES:]:
                    self.refuse(key, "the checksum does not match")
                keys.append(key)
                bodies.append(body)
        return keys, bodies

    def count(self) -> int:
        """Return the number of rows."""
        return int(self._txn.stat(self._db)["entries"])

    def put(self, key: bytes, body: bytes) -> None:
        """Write one row."""
        self._txn.put(key, self.seal(key, body), db=self._db)

    def put_all(self, rows: Iterable[Row]) -> None:
        """Write rows, in the order of their keys: rows that share a page then cost one copy of it.

        Rows behind the last one are appended, which fills pages; LMDB otherwise leaves each a quarter empty.
        """
        seed, digest, key_of = self._seed, xxh32_digest, itemgetter(0)
        ordered = sorted(rows, key=key_of)
        sealed = [(key, body + digest(key + body, seed)) for key, body in ordered]
        with self.cursor() as cursor:
            last = cursor.key() if cursor.last() else b""
            inner = bisect_right(sealed, last, key=key_of)
            cursor.putmulti(sealed[:inner])
            cursor.putmulti(sealed[inner:], append=True)

    def delete(self, key: bytes) -> bool:
        """Delete a row; return whether it existed."""
        return bool(self._txn.delete(key, db=self._db))

    def delete_all(self, keys: Iterable[bytes]) -> None:
        """Delete rows, each of which must exist, in the order of their keys."""
        for key in sorted(keys):
            existed = self.delete(key)
            assert existed, f"table {self.name} has no key {show_key(self.name, key)}"

    def clear(self) -> None:
        """Delete all rows."""
        self._txn.drop(self._db, delete=False)

    def seal(self, key: bytes, body: bytes) -> bytes:
        """Return the value to store for a body: the body and its checksum."""
        return body + xxh32_digest(key + body, self._seed)

    def unseal(self, key: bytes, value: bytes) -> bytes:
        """Return the body of a stored value. Raises CorruptStore."""
        body = value[:-CHECKSUM_BYTES]
        if xxh32_digest(key + body, self._seed) != value[-CHECKSUM_BYTES:]:
            self.refuse(key, "the checksum does not match")
        return body

    def refuse(self, key: bytes, reason: str) -> NoReturn:
        """Raise CorruptStore for a row."""
        raise CorruptStore(
            f"table {self.name}, key {show_key(self.name, key)}: {reason}; "
            "restore a backup, or rebuild from the source"
        )


class Keyed(Generic[K]):
    """What every table does by key alone."""

    def __init__(self, raw: RawTable, key: KeyCodec[K]) -> None:
        self.raw, self._key = raw, key

    def count(self) -> int:
        """Return the number of rows."""
        return self.raw.count()

    def delete(self, key: K) -> bool:
        """Delete a row; return whether it existed."""
        return self.raw.delete(self._key.pack(key))

    def delete_all(self, keys: Iterable[K]) -> None:
        """Delete rows, each of which must exist, in the order of their keys."""
        self.raw.delete_all(map(self._key.pack, keys))

    def clear(self) -> None:
        """Delete all rows."""
        self.raw.clear()


class Table(ABC, Keyed[K], Generic[K, V]):
    """The rows of a table as keys and values."""

    @abstractmethod
    def pack(self, value: V) -> bytes:
        """Return the body of a row."""

    @abstractmethod
    def unpack(self, key: bytes, body: bytes) -> V:
        """Return the value of a row."""

    def get(self, key: K) -> V | None:
        """Return the value under a key, None if there is none. Raises CorruptStore."""
        packed = self._key.pack(key)
        body = self.raw.get(packed)
        return None if body is None else self.unpack(packed, body)

    def need(self, key: K) -> V:
        """Return the value of a row that must exist. Raises CorruptStore."""
        packed = self._key.pack(key)
        return self.unpack(packed, self.raw.need(packed))

    def rows(self, start: K | None = None) -> Iterator[tuple[K, V]]:
        """Yield rows in the order of keys, from `start` on. Raises CorruptStore."""
        for key, body in self.raw.rows(b"" if start is None else self._key.pack(start)):
            yield self._key.unpack(key), self.unpack(key, body)

    def rows_back(self, start: K | None = None) -> Iterator[tuple[K, V]]:
        """Yield rows backwards, from `start` (by default the last row). Raises CorruptStore."""
        for key, body in self.raw.rows_back(b"" if start is None else self._key.pack(start)):
            yield self._key.unpack(key), self.unpack(key, body)

    def put(self, key: K, value: V) -> None:
        """Write one row."""
        self.raw.put(self._key.pack(key), self.pack(value))

    def put_all(self, rows: Iterable[tuple[K, V]]) -> None:
        """Write rows, in the order of their keys."""
        self.raw.put_all((self._key.pack(key), self.pack(value)) for key, value in rows)


class PairTable(Keyed[Pair]):
    """A table of pairs of numbers without values, used as an index."""

    def pairs(self, start: Pair | None = None) -> Iterator[Pair]:
        """Yield pairs in the order of keys, from `start` on. Raises CorruptStore."""
        for key, _ in self.raw.rows(b"" if start is None else self._key.pack(start)):
            yield self._key.unpack(key)

    def of(self, first: int, start: int = 0) -> Iterator[int]:
        """Yield the second numbers of the pairs that begin with `first`, from `start` on."""
        for key, _ in self.raw.rows(self._key.pack((first, start)), self._key.pack((first, 0))[:8]):
            yield self._key.unpack(key)[1]

    def add(self, pairs: Iterable[Pair]) -> None:
        """Write pairs, in the order of their keys."""
        self.raw.put_all((self._key.pack(pair), b"") for pair in pairs)

    def shift(self, shift: Shift) -> None:
        """Replace the pairs (before, id) by (after, id), where 0 is no place."""
        left, here = shift.before > 0, shift.after > 0
        self.delete_all(zip(shift.before[left].tolist(), shift.ids[left].tolist(), strict=True))
        self.add(zip(shift.after[here].tolist(), shift.ids[here].tolist(), strict=True))


class ColumnTable(ABC, Keyed[int], Generic[C]):
    """Rows by id that are read and written side by side, as columns."""

    def columns(self) -> C:
        """Return all rows by rising id. Raises CorruptStore."""
        return self.unpack(*self.raw.read())

    def pick(self, ids: Int64) -> C:
        """Return those of these rows that exist, in the order of `ids`. Raises CorruptStore."""
        return self.unpack(*self.raw.pick(pack_ids(ids)))

    def put_columns(self, columns: C) -> None:
        """Write rows."""
        self.raw.put_all(zip(pack_ids(columns.ids), self.pack(columns), strict=True))

    @abstractmethod
    def pack(self, columns: C) -> list[bytes]:
        """Return the bodies of rows."""

    @abstractmethod
    def unpack(self, keys: Sequence[bytes], bodies: Sequence[bytes]) -> C:
        """Return rows in the order of their keys. Raises CorruptStore."""


def pack_ids(ids: Int64) -> list[bytes]:
    """Encode ids (n,) as n keys of eight bytes."""
    return split_rows(ids.astype(">u8"))


def unpack_ids(keys: Sequence[bytes]) -> Int64:
    """Decode keys of eight bytes."""
    return np.frombuffer(b"".join(keys), ">u8").astype(np.int64)


def split_rows(rows: NDArray[Any]) -> list[bytes]:
    """Return the bytes of each row of an array."""
    rows = np.ascontiguousarray(rows)
    if not len(rows):
        return []
    raw: list[bytes] = rows.view(f"V{rows.nbytes // len(rows)}").reshape(-1).tolist()
    return raw
