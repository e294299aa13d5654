"""Snapshots of a live state in its store's folder: caches for a quick start, never authoritative.

    index-<version>.hnsw    the HNSW graph, in hnswlib's own format
    index-<version>.npz     its live labels and their node ids
    index-<version>.json    manifest: version, parameters, sizes and SHA-256
    derived-<version>.npz   embeddings, linkage, density, parents and the upper levels' lists, level by level
    derived-<version>.json  manifest: what they depend on, size and digest

A snapshot is copied between two batches and written while the next ones run. It is written under a temporary
name, synced and renamed; its manifest comes last and makes it valid. Two are kept. One that does not match in
every point is ignored: the start then computes what it lacks from the store.

Derived columns name nodes by the hash of their vector, and carry a signature of what each row was computed
from. So a snapshot of an older version serves as far as nothing has changed (`engine.clustering.resume`).
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import hnswlib
import numpy as np
import orjson

from engine.clustering.resume import Saved, capture, resume
from engine.clustering.state import State
from engine.errors import StoreError
from engine.index.columns import Nodes
from engine.index.hnsw import HnswIndex
from engine.model.trained import Trained
from engine.numbering import find
from engine.system import determinism, files, isolation
from engine.types import Float32, Int32, Int64

INDEX, LEVELS = "index", "derived"
KEPT = 2  # the newest, and the one before in case the newest is incomplete or damaged
_FILES = (f"{INDEX}-*", f"{INDEX}.saving", f"{LEVELS}-*", f"{LEVELS}.saving")


class Snapshots:
    """The snapshots of one store. They are written one at a time: by `executor`, else by the caller."""

    def __init__(self, folder: Path, executor: Executor | None = None, free_bytes: int = 0) -> None:
        """`free_bytes`: disk space that commits need while a snapshot is written."""
        self.folder = folder
        self._executor, self.free_bytes = executor, free_bytes
        self._writing: Future[None] | None = None
        self._missing = False  # the last one could not be written

    def begin(self, state: State, model: Trained) -> bool:
        """Copy the state and have it written. Return False while the previous one is still being written.

        A failed write is abandoned: the next start takes longer, nothing is lost.
        """
        if self._writing is not None and not self._writing.done():
            return False
        self.wait()
        if self._executor is None:
            self._write(prepare(self.folder, state, model))
        elif self._has_room():
            self._writing = self._executor.submit(self._write, prepare(self.folder, state, model))
        else:
            self._give_up("the disk has no room for one beside what commits need")
        return True

    def _write(self, write: Callable[[], None]) -> None:
        try:
            write()
            self._missing = False
        except OSError as problem:
            self._give_up(problem)

    def _give_up(self, why: object) -> None:
        """Log that there is no snapshot, once until one is written again."""
        if not self._missing:
            logging.getLogger("shoal").warning(
                "%s: no snapshot is written: %s. Nothing is lost, but a start without one computes what it "
                "lacks and takes longer: make room on the disk.", self.folder, why,
            )  # fmt: skip
        self._missing = True

    def _has_room(self) -> bool:
        """Return whether the disk has room for one more snapshot and still leaves `free_bytes` for commits.

        The next snapshot is taken to be as large as all that are there, two at most.
        """
        try:
            used = sum(file.stat().st_size for pattern in _FILES for file in self.folder.glob(pattern))
            return shutil.disk_usage(self.folder).free >= used + self.free_bytes
        except OSError:
            return False

    def wait(self) -> None:
        """Block until no snapshot is being written. Raises what writing it raised, but for OSError."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def clear(self) -> None:
        """Delete all snapshots. Raises OSError."""
        self.wait()
        for pattern in _FILES:
            for file in self.folder.glob(pattern):
                file.unlink(missing_ok=True)


def prepare(folder: Path, state: State, model: Trained) -> Callable[[], None]:
    """Copy the state; return the function that writes the copy out, at any time. It raises OSError."""
    version, index = state.version, state.hierarchy.base.lists.index
    graph = copy_index(folder, version, index, state.node_ids) if isinstance(index, HnswIndex) else None
    levels, basis = capture(state.hierarchy), dependencies(state, model.sha256)

    def write() -> None:
        if graph is not None:
            save_index(folder, graph)
        save_levels(folder, version, basis, levels)

    return write


def dependencies(state: State, model_sha256: str) -> dict[str, Any]:
    """Return what all derived columns depend on, apart from the neighbour lists of level 0."""
    return {
        "model": model_sha256,
        "arithmetic": determinism.fingerprint(),
        "shape": asdict(state.hierarchy.shape),
        "epoch": asdict(state.calibration.epoch),
    }


# -- the HNSW index


@dataclass(frozen=True, slots=True)
class IndexManifest:
    version: int
    dim: int
    M: int
    ef_construction: int
    elements: int
    bytes: int
    sha256: str
    labels_sha256: str


@dataclass(frozen=True, slots=True)
class IndexCopy:
    """An index as of a version: its graph under a temporary name, and the columns that belong to it."""

    version: int
    dim: int
    M: int
    ef_construction: int
    bytes: int  # that the file must have
    labels: Int64  # of the live elements
    nodes: Int64  # their ids


def copy_index(folder: Path, version: int, index: HnswIndex, ids: Int64) -> IndexCopy:
    """Have hnswlib write the graph. `ids`: node ids by row. `save_index` makes a snapshot of it."""
    labels, rows, size = index.save(files.temporary_name(folder, INDEX))
    return IndexCopy(version, index.dim, index.M, index.ef_construction, size, labels, ids[rows])


def save_index(folder: Path, copy: IndexCopy) -> None:
    """Make the graph that was written last a snapshot. Raises OSError."""
    stem = folder / f"{INDEX}-{copy.version}"
    with files.generations(folder, INDEX, KEPT) as temporary:
        size = temporary.stat().st_size
        if size != copy.bytes:
            raise OSError(f"{temporary} has {size} bytes instead of {copy.bytes}: is the disk full?")
        digest = _commit(temporary, stem.with_suffix(".hnsw"))
        with open(temporary, "wb") as file:
            np.savez(file, labels=copy.labels, nodes=copy.nodes)
        manifest = IndexManifest(
            copy.version, copy.dim, copy.M, copy.ef_construction, len(copy.labels), size, digest,
            _commit(temporary, stem.with_suffix(".npz")),
        )  # fmt: skip
        temporary.write_text(json.dumps(asdict(manifest)))
        _commit(temporary, stem.with_suffix(".json"))


def load_index(folder: Path, newest: int, index: HnswIndex, ids: Int64, rows: Int32) -> bool:
    """Fill an empty index from the newest good snapshot and bring it up to date.

    `newest`: the store's version; `ids`: of nodes, by row; `rows`: the live ones. Returns whether a
    snapshot was used; without one all rows are inserted.
    """
    for version in files.versions(folder, INDEX):
        found = _read_index(folder / f"{INDEX}-{version}", index)
        if found is None or version > newest:  # newer than the store: of another history
            continue
        labels, nodes = found
        order = np.argsort(ids[rows])
        by_id = rows[order]
        if not len(by_id):
            break
        at, valid = find(ids[by_id], nodes)
        held = by_id[at[valid]]
        index.load(folder / f"{INDEX}-{version}.hnsw", labels[valid], held)
        missing = np.ones(len(ids), np.bool_)
        missing[held] = False
        index.insert(rows[missing[rows]])
        return True
    index.insert(rows)
    return False


def _read_index(stem: Path, index: HnswIndex) -> tuple[Int64, Int64] | None:
    """Return labels and node ids of a snapshot that fits the index's parameters, None if it is damaged."""
    graph, labels_file = stem.with_suffix(".hnsw"), stem.with_suffix(".npz")
    try:
        manifest = IndexManifest(**json.loads(stem.with_suffix(".json").read_text()))
        usable = (
            (manifest.dim, manifest.M, manifest.ef_construction)
            == (index.dim, index.M, index.ef_construction)
            and graph.stat().st_size == manifest.bytes
            and files.sha256(graph) == manifest.sha256
            and files.sha256(labels_file) == manifest.labels_sha256
        )
        if not usable:
            return None
        with np.load(labels_file, allow_pickle=False) as saved:
            labels, nodes = saved["labels"], saved["nodes"]
        isolation.call("engine.index.graph_file.load", graph, str(index.dim))
    except (OSError, ValueError, TypeError, KeyError, StoreError):
        return None
    return labels, nodes


def read_index(folder: Path, version: int) -> tuple[Int64, Float32] | None:
    """Return the ids of a snapshot's live nodes and their vectors (n, d), None if it is damaged."""
    stem = folder / f"{INDEX}-{version}"
    try:
        manifest = IndexManifest(**json.loads(stem.with_suffix(".json").read_text()))
        empty = Nodes(manifest.dim)
    except (OSError, ValueError, TypeError):
        return None
    found = _read_index(stem, HnswIndex(empty, M=manifest.M, ef_construction=manifest.ef_construction))
    if found is None:
        return None
    labels, nodes = found
    graph = hnswlib.Index(space="ip", dim=manifest.dim)
    graph.load_index(str(stem.with_suffix(".hnsw")))
    floats = np.array(graph.get_items(labels), np.float32).reshape(len(labels), manifest.dim)
    return nodes, floats


def _commit(temporary: Path, goal: Path) -> str:
    """Make a finished file durable under its final name; return its SHA-256."""
    digest = files.sha256(temporary)
    files.put_in_place(temporary, goal)
    return digest


# -- the derived columns of all levels


def save_levels(folder: Path, version: int, basis: Mapping[str, Any], levels: Sequence[Saved]) -> None:
    """Write a snapshot as of a version, then delete the oldest. Raises OSError."""
    stem = folder / f"{LEVELS}-{version}"
    columns = {
        f"{name}.{at}": column for at, level in enumerate(levels) for name, column in asdict(level).items()
    }
    wanted = sum(column.nbytes for column in columns.values())
    with files.generations(folder, LEVELS, KEPT) as temporary:
        with open(temporary, "wb") as file:
            np.savez(file, **columns)
        size = temporary.stat().st_size
        if size < wanted:
            raise OSError(f"{temporary} has {size} bytes instead of at least {wanted}: is the disk full?")
        manifest = {"depends": dict(basis), "levels": len(levels), "bytes": size}
        manifest["digest"] = files.quick_digest(temporary)
        files.put_in_place(temporary, stem.with_suffix(".npz"))
        temporary.write_bytes(orjson.dumps(manifest))
        files.put_in_place(temporary, stem.with_suffix(".json"))


def resume_levels(folder: Path, state: State, model_sha256: str) -> bool:
    """Cluster a state whose lists are in place from the newest good snapshot; return whether there is one."""
    saved = load_levels(folder, state.version, dependencies(state, model_sha256))
    resume(state.hierarchy, saved, state.calibration.epoch)
    return saved is not None


def load_levels(folder: Path, newest: int, basis: Mapping[str, Any]) -> list[Saved] | None:
    """Return the levels of the newest good snapshot up to a version, None if there is none."""
    for version in files.versions(folder, LEVELS):
        if version <= newest:
            found = read_levels(folder, version, basis)
            if found:
                return found
    return None


def read_levels(folder: Path, version: int, basis: Mapping[str, Any]) -> list[Saved] | None:
    """Return the levels of one snapshot, None if it is damaged or depends on something else."""
    file = folder / f"{LEVELS}-{version}.npz"
    try:
        manifest = _levels_manifest(folder, version)
        if manifest is None or manifest["depends"] != orjson.loads(orjson.dumps(dict(basis))):
            return None
        with np.load(file, allow_pickle=False) as saved:
            return [
                Saved(**{field.name: saved[f"{field.name}.{at}"] for field in fields(Saved)})
                for at in range(manifest["levels"])
            ]
    except (OSError, ValueError, TypeError, KeyError, BadZipFile):
        return None


def is_whole(folder: Path, version: int) -> bool:
    """Return whether a snapshot of the levels is what was written."""
    try:
        return _levels_manifest(folder, version) is not None
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _levels_manifest(folder: Path, version: int) -> dict[str, Any] | None:
    """Return the manifest, None if the columns are not those that it describes."""
    stem = folder / f"{LEVELS}-{version}"
    manifest: dict[str, Any] = orjson.loads(stem.with_suffix(".json").read_bytes())
    file = stem.with_suffix(".npz")
    same = file.stat().st_size == manifest["bytes"] and files.quick_digest(file) == manifest["digest"]
    return manifest if same else None


def newest_levels(folder: Path, limit: int) -> int:
    """Return the newest version of the levels up to `limit`, 0 if there is none."""
    return max((version for version in files.versions(folder, LEVELS) if version <= limit), default=0)
