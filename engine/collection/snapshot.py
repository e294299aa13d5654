"""The HNSW index on disk: a cache beside the store, never the truth.

    index-<version>.hnsw   hnswlib's own format
    index-<version>.json   manifest: version, parameters, SHA-256 and size of the graph
    index-<version>.npz    live labels and their item ids

A snapshot is written under another name, checked, synced and renamed; its manifest comes last and
makes it valid. Two are kept. One that does not match in every point is passed over: the index is then
built from the vectors.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import hnswlib
import numpy as np

from engine.index.columns import Nodes
from engine.index.hnsw import HnswIndex
from engine.system.files import generations, put_in_place, sha256, temporary_name
from engine.system.files import versions as versions_of
from engine.types import Float32, Int32, Int64

NAME = "index"
KEPT = 2
# hnswlib can crash the process on a broken file, so the first load happens in another one.
_PROBE = "import hnswlib, sys; hnswlib.Index(space='ip', dim=int(sys.argv[2])).load_index(sys.argv[1])"


@dataclass(frozen=True, slots=True)
class Manifest:
    version: int
    dim: int
    M: int
    ef_construction: int
    elements: int
    bytes: int
    sha256: str
    labels_sha256: str


@dataclass(frozen=True, slots=True)
class Copied:
    """An index as of a version: its graph under a temporary name, and what belongs to it."""

    version: int
    dim: int
    M: int
    ef_construction: int
    bytes: int  # that the file has to have
    labels: Int64  # of the live elements
    ids: Int64  # of their items


def copied(folder: Path, version: int, index: HnswIndex, ids: Int64) -> Copied:
    """Have hnswlib write the graph; `ids`: by row, of the items. `save` makes a snapshot of it, any time."""
    labels, rows, size = index.save(temporary_name(folder, NAME))
    return Copied(version, index.dim, index.M, index.ef_construction, size, labels, ids[rows])


def save(folder: Path, copy: Copied) -> None:
    """Make the graph that was written last a snapshot. Raises OSError."""
    stem = folder / f"index-{copy.version}"
    graph, labels_file = stem.with_suffix(".hnsw"), stem.with_suffix(".npz")
    with generations(folder, NAME, KEPT) as temporary:
        size = temporary.stat().st_size
        if size != copy.bytes:
            raise OSError(f"{temporary} has {size} bytes instead of {copy.bytes}: is the disk full?")
        digest = _commit(temporary, graph)
        with open(temporary, "wb") as file:
            np.savez(file, labels=copy.labels, ids=copy.ids)
        manifest = Manifest(
            copy.version, copy.dim, copy.M, copy.ef_construction, len(copy.labels), size, digest,
            _commit(temporary, labels_file),
        )  # fmt: skip
        temporary.write_text(json.dumps(asdict(manifest)))
        _commit(temporary, stem.with_suffix(".json"))


def load(folder: Path, newest: int, index: HnswIndex, ids: Int64, versions: Int64, rows: Int32) -> bool:
    """Fill an empty index from the newest good snapshot and bring it up to date.

    `newest`: the store's version; `ids`, `versions`: by row, of items and their vectors; `rows`: the
    live ones. Returns whether there was a snapshot to use; without one all rows are inserted.
    """
    for version in saved(folder):
        found = _read(folder / f"index-{version}", index)
        if found is None or version > newest:  # newer than the store: of another history
            continue
        labels, items = found
        order = np.argsort(ids[rows])
        by_id = rows[order]
        at = np.minimum(np.searchsorted(ids[by_id], items), max(0, len(by_id) - 1))
        if not len(by_id):
            break
        valid = (ids[by_id[at]] == items) & (versions[by_id[at]] <= version)
        held = by_id[at[valid]]
        index.load(folder / f"index-{version}.hnsw", labels[valid], held)
        missing = np.ones(len(ids), np.bool_)
        missing[held] = False
        index.insert(rows[missing[rows]])
        return True
    index.insert(rows)
    return False


def _read(stem: Path, index: HnswIndex) -> tuple[Int64, Int64] | None:
    graph, labels_file = stem.with_suffix(".hnsw"), stem.with_suffix(".npz")
    try:
        manifest = Manifest(**json.loads(stem.with_suffix(".json").read_text()))
        usable = (
            (manifest.dim, manifest.M, manifest.ef_construction)
            == (index.dim, index.M, index.ef_construction)
            and graph.stat().st_size == manifest.bytes
            and sha256(graph) == manifest.sha256
            and sha256(labels_file) == manifest.labels_sha256
        )
        if not usable:
            return None
        with np.load(labels_file, allow_pickle=False) as saved:
            labels, items = saved["labels"], saved["ids"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    probe = subprocess.run(
        [sys.executable, "-c", _PROBE, str(graph), str(index.dim)], capture_output=True, check=False
    )
    return (labels, items) if probe.returncode == 0 else None


def saved(folder: Path) -> list[int]:
    """Versions that have a manifest, newest first."""
    return versions_of(folder, NAME)


def content(folder: Path, version: int) -> tuple[Int64, Float32] | None:
    """The live items of a snapshot and their vectors in the graph, (n, d) float32; None: it is damaged."""
    stem = folder / f"index-{version}"
    try:
        manifest = Manifest(**json.loads(stem.with_suffix(".json").read_text()))
        empty = Nodes(manifest.dim)
    except (OSError, ValueError, TypeError):
        return None
    found = _read(stem, HnswIndex(empty, M=manifest.M, ef_construction=manifest.ef_construction))
    if found is None:
        return None
    labels, items = found
    graph = hnswlib.Index(space="ip", dim=manifest.dim)
    graph.load_index(str(stem.with_suffix(".hnsw")))
    floats = np.array(graph.get_items(labels), np.float32).reshape(len(labels), manifest.dim)
    return items, floats


def _commit(temporary: Path, goal: Path) -> str:
    """Make a finished file durable under its own name; returns its SHA-256."""
    digest = sha256(temporary)
    put_in_place(temporary, goal)
    return digest
