"""Files of five vectors in every format, and what is read from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

from connectors.chunks import Chunk
from connectors.files.source import FileSource, Options
from engine.types import Batch

EMB = np.random.default_rng(7).normal(size=(5, 4)).astype(np.float32)


Positions = dict[str, bytes]


def read(
    path: Path, size: int = 100, positions: Positions | None = None, dim: int | None = None, **options: Any
) -> list[Chunk]:
    source = FileSource(path, Options(size, **options))
    source.begin(positions or {})
    return list(source.chunks(dim))


def single(path: Path, dim: int | None = None) -> tuple[Batch, list[str]]:
    [chunk] = read(path, dim=dim)
    return chunk.batch, [f"{reject.place}: {reject.reason}" for reject in chunk.rejects]


def lines(path: Path, *records: Any) -> Path:
    parts = [record if isinstance(record, bytes) else orjson.dumps(record) for record in records]
    path.write_bytes(b"\n".join(parts) + b"\n")
    return path


def write(path: Path, **columns: Any) -> Path:
    np.savez(path, **columns)
    return path


def write_parquet(path: Path, **columns: Any) -> Path:
    pyarrow.parquet.write_table(pa.table(columns), path, row_group_size=2)
    return path


def written(path: Path) -> Path:
    """The five vectors in the format that the suffix tells, with keys where it has them."""
    keys = [f"k{i}" for i in range(5)]
    if path.suffix == ".npz":
        return write(path, emb=EMB, keys=np.array(keys))
    if path.suffix == ".npy":
        np.save(path, EMB)
        return path
    if path.suffix == ".parquet":
        return write_parquet(path, emb=EMB.tolist(), keys=keys)
    return lines(path, *({"key": k, "embedding": v} for k, v in zip(keys, EMB.tolist(), strict=True)))


def record(number: int, **more: Any) -> bytes:
    """A line of JSON with the key k0, k1, ..."""
    return orjson.dumps({"key": f"k{number}", "embedding": [1, number + 1], **more})
