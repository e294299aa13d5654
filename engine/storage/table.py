"""One table of a store within one transaction: `RawTable` in bytes, `Table` in Python objects.

A `Table` owns its key and value codecs, so no caller pairs a table with an encoding. Every value is
compared with its checksum when it is read and given one when it is written.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic

import lmdb

from engine.errors import CorruptStore
from engine.storage import schema
from engine.storage.codecs import K, KeyCodec, Pair, V, ValueCodec
from engine.storage.schema import Row


class RawTable:
    """The rows of a table as bytes, in the order of their keys."""

    __slots__ = ("_db", "_txn", "name")

    def __init__(self, txn: lmdb.Transaction[bytes], db: Any, name: str) -> None:
        self._txn, self._db, self.name = txn, db, name

    def get(self, key: bytes) -> bytes | None:
        """Return the body under a key, None if there is none. Raises CorruptStore."""
        value = self._txn.get(key, db=self._db)
        return None if value is None else schema.unseal(self.name, key, value)

    def need(self, key: bytes) -> bytes:
        """Return the body of a row that must exist. Raises CorruptStore."""
        body = self.get(key)
        if body is None:
            raise CorruptStore(
                f"table {self.name}, key {schema.show_key(self.name, key)} is missing; restore a backup"
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
                yield cursor.key(), schema.unseal(self.name, cursor.key(), cursor.value())
                more = cursor.next()

    def rows_back(self, start: bytes = b"") -> Iterator[Row]:
        """Yield rows from `start` (by default the last row) backwards. Raises CorruptStore."""
        with self.cursor() as cursor:
            if start and cursor.set_range(start):
                more = cursor.key() == start or cursor.prev()
            else:
                more = cursor.last()
            while more:
                yield cursor.key(), schema.unseal(self.name, cursor.key(), cursor.value())
                more = cursor.prev()

    def cursor(self) -> lmdb.Cursor[bytes]:
        """Return a cursor over keys and values as they are on disk, checksums included."""
        return self._txn.cursor(self._db)

    def read(self) -> tuple[list[bytes], list[bytes]]:
        """Return all keys and all bodies. Raises CorruptStore."""
        with self.cursor() as cursor:
            return schema.unseal_rows(self.name, cursor)

    def count(self) -> int:
        """Return the number of rows."""
        return int(self._txn.stat(self._db)["entries"])

    def put(self, key: bytes, body: bytes = b"") -> None:
        """Write one row."""
        self._txn.put(key, schema.seal(self.name, key, body), db=self._db)

    def put_sorted(self, keys: Sequence[bytes], bodies: Iterable[bytes]) -> None:
        """Write rows with rising keys: rows that share a page then cost one copy of it.

        Rows behind the last one are appended, which fills pages; LMDB otherwise leaves each a quarter empty.
        """
        rows = schema.seal_rows(self.name, keys, bodies)
        with self.cursor() as cursor:
            last = cursor.key() if cursor.last() else b""
            inner = bisect_right(keys, last)
            cursor.putmulti(rows[:inner])
            cursor.putmulti(rows[inner:], append=True)

    def delete(self, key: bytes) -> bool:
        """Delete a row; return whether it existed."""
        return bool(self._txn.delete(key, db=self._db))

    def delete_sorted(self, keys: Iterable[bytes]) -> None:
        """Delete rows, each of which must exist."""
        for key in keys:
            existed = self.delete(key)
            assert existed, f"table {self.name} has no key {schema.show_key(self.name, key)}"

    def clear(self) -> None:
        """Delete all rows."""
        self._txn.drop(self._db, delete=False)


class Table(Generic[K, V]):
    """The rows of a table as keys and values."""

    def __init__(self, raw: RawTable, key: KeyCodec[K], value: ValueCodec[V]) -> None:
        self.raw, self._key, self._value = raw, key, value

    def get(self, key: K) -> V | None:
        """Return the value under a key, None if there is none. Raises CorruptStore."""
        packed = self._key.pack(key)
        body = self.raw.get(packed)
        return None if body is None else self._value.unpack(packed, body)

    def need(self, key: K) -> V:
        """Return the value of a row that must exist. Raises CorruptStore."""
        packed = self._key.pack(key)
        return self._value.unpack(packed, self.raw.need(packed))

    def rows(self, start: K | None = None) -> Iterator[tuple[K, V]]:
        """Yield rows in the order of keys, from `start` on. Raises CorruptStore."""
        for key, body in self.raw.rows(b"" if start is None else self._key.pack(start)):
            yield self._key.unpack(key), self._value.unpack(key, body)

    def rows_back(self, start: K | None = None) -> Iterator[tuple[K, V]]:
        """Yield rows backwards, from `start` (by default the last row). Raises CorruptStore."""
        for key, body in self.raw.rows_back(b"" if start is None else self._key.pack(start)):
            yield self._key.unpack(key), self._value.unpack(key, body)

    def count(self) -> int:
        """Return the number of rows."""
        return self.raw.count()

    def put(self, key: K, value: V) -> None:
        """Write one row."""
        self.raw.put(self._key.pack(key), self._value.pack(value))

    def put_all(self, rows: Iterable[tuple[K, V]]) -> None:
        """Write rows, in the order of their keys."""
        packed = sorted((self._key.pack(key), self._value.pack(value)) for key, value in rows)
        self.raw.put_sorted([key for key, _ in packed], [body for _, body in packed])

    def delete(self, key: K) -> bool:
        """Delete a row; return whether it existed."""
        return self.raw.delete(self._key.pack(key))

    def delete_all(self, keys: Iterable[K]) -> None:
        """Delete rows, each of which must exist, in the order of their keys."""
        self.raw.delete_sorted(sorted(map(self._key.pack, keys)))

    def clear(self) -> None:
        """Delete all rows."""
        self.raw.clear()


class PairTable:
    """A table of pairs of numbers without values, used as an index."""

    def __init__(self, raw: RawTable, key: KeyCodec[Pair]) -> None:
        self.raw, self._key = raw, key

    def pairs(self, start: Pair | None = None) -> Iterator[Pair]:
        """Yield pairs in the order of keys, from `start` on. Raises CorruptStore."""
        for key, _ in self.raw.rows(b"" if start is None else self._key.pack(start)):
            yield self._key.unpack(key)

    def of(self, first: int, start: int = 0) -> Iterator[int]:
        """Yield the second numbers of the pairs that begin with `first`, from `start` on."""
        for key, _ in self.raw.rows(self._key.pack((first, start)), self._key.pack((first, 0))[:8]):
            yield self._key.unpack(key)[1]

    def count(self) -> int:
        """Return the number of pairs."""
        return self.raw.count()

    def add(self, pairs: Iterable[Pair]) -> None:
        """Write pairs, in the order of their keys."""
        keys = sorted(map(self._key.pack, pairs))
        self.raw.put_sorted(keys, [b""] * len(keys))

    def remove(self, pairs: Iterable[Pair]) -> None:
        """Delete pairs, each of which must exist, in the order of their keys."""
        self.raw.delete_sorted(sorted(map(self._key.pack, pairs)))

    def clear(self) -> None:
        """Delete all pairs."""
        self.raw.clear()
