"""The HNSW index on disk: a cache that may be stale, damaged or missing, and never gives a wrong answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from engine.collection import snapshots
from engine.index.columns import Nodes
from engine.index.hnsw import HnswIndex
from engine.system.files import sha256
from engine.types import Int16, Int32, Int64
from engine.vectors import quantize
from tests.support import reference
from tests.support.sequences import hash_names

pytestmark = pytest.mark.usefixtures("one_thread", "warm")
DIM = 8
PARTS = ("hnsw", "json", "npz")


@dataclass
class Shelf:
    """Nodes with ids, as a state holds them, and their index."""

    nodes: Nodes = field(default_factory=lambda: Nodes(DIM))
    ids: Int64 = field(default_factory=lambda: np.zeros(4096, np.int64))
    version: int = 0

    def __post_init__(self) -> None:
        self.index = self.empty_index()
        self.rng = np.random.default_rng(3)

    def empty_index(self, M: int = 16) -> HnswIndex:
        return HnswIndex(self.nodes, M=M, threads=1)

    def draw(self, count: int) -> Int16:
        return quantize(self.rng.normal(size=(count, DIM)))[0]

    def put(self, ids: Int64) -> Int32:
        """A version that brings nodes."""
        self.version += 1
        assert not np.isin(self.ids, ids).any()
        rows = self.nodes.add(self.draw(len(ids)), hash_names([b"%d" % i for i in ids]))
        self.ids[rows] = ids
        self.index.insert(rows)
        return rows

    def take(self, rows: Int32) -> None:
        self.nodes.remove(rows)
        self.index.remove(rows)
        self.ids[rows] = 0
        self.nodes.release(rows)

    def save(self, folder: Path) -> None:
        snapshots.save_index(folder, snapshots.copy_index(folder, self.version, self.index, self.ids))

    def load(self, folder: Path) -> tuple[bool, HnswIndex]:
        """Whether a snapshot served, and the index; all live nodes are in it, and found."""
        index = self.empty_index()
        capacity = self.nodes.capacity
        live = self.nodes.all_rows()
        found = snapshots.load_index(folder, self.version, index, self.ids[:capacity], live)
        near, dots = index.search(live, 10)
        wanted, wanted_dots = reference.nearest(self.nodes.vectors[live], self.nodes.hashes[live], 10)
        wanted = np.where(wanted >= 0, live[wanted], -1) if len(live) else wanted
        assert np.array_equal(near, wanted)  # so few nodes that HNSW finds all
        assert np.array_equal(dots, wanted_dots)
        return found, index


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    shelf = Shelf()
    shelf.put(np.arange(1, 301))
    shelf.take(np.arange(20, dtype=np.int32))
    shelf.save(tmp_path)
    return shelf


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_comes_back_as_it_was(tmp_path: Path, shelf: Shelf) -> None:
    assert files(tmp_path) == ["index-1.hnsw", "index-1.json", "index-1.npz"]
    found, index = shelf.load(tmp_path)
    assert found
    assert index.tombstones == 20  # the same graph, not one built anew


def test_what_changed_since_is_replayed(tmp_path: Path, shelf: Shelf) -> None:
    shelf.put(np.arange(400, 450))  # new
    shelf.take(np.arange(30, 60, dtype=np.int32))
    shelf.put(np.arange(460, 490))  # in rows of others
    shelf.take(np.flatnonzero(shelf.ids % 7 == 0).astype(np.int32)[:30])
    found, index = shelf.load(tmp_path)
    assert found
    assert index.tombstones > 20


def test_rows_may_be_numbered_otherwise(tmp_path: Path, shelf: Shelf) -> None:
    live = shelf.rng.permutation(shelf.nodes.all_rows())
    moved = Shelf()
    rows = moved.nodes.add(shelf.nodes.vectors[live], shelf.nodes.hashes[live])
    moved.ids[rows] = shelf.ids[live]
    moved.version = shelf.version
    assert moved.load(tmp_path)[0]


def test_a_snapshot_newer_than_the_store_is_of_another_history(tmp_path: Path, shelf: Shelf) -> None:
    shelf.version -= 1
    assert not shelf.load(tmp_path)[0]


def test_none_is_left_of_the_nodes(tmp_path: Path, shelf: Shelf) -> None:
    shelf.take(shelf.nodes.all_rows())
    shelf.load(tmp_path)
    shelf.put(np.arange(500, 520))
    shelf.load(tmp_path)


def test_without_a_snapshot_the_index_is_built(tmp_path: Path, shelf: Shelf) -> None:
    (tmp_path / "other").mkdir()
    found, index = shelf.load(tmp_path / "other")
    assert not found
    assert index.tombstones == 0


def test_the_two_newest_are_kept(tmp_path: Path, shelf: Shelf) -> None:
    for start in (1000, 2000, 3000):
        shelf.put(np.arange(start, start + 10))
        shelf.save(tmp_path)
    assert files(tmp_path) == [f"index-{version}.{part}" for version in (3, 4) for part in PARTS]


def damage(path: Path, how: str) -> None:
    body = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(body[: len(body) // 2])
    elif how == "longer":
        path.write_bytes(body + b"\0")
    elif how == "flipped":
        flipped = bytearray(body)
        flipped[len(body) // 2] ^= 0x10
        path.write_bytes(bytes(flipped))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "longer", "flipped"])
def test_a_damaged_snapshot_is_passed_over(tmp_path: Path, shelf: Shelf, part: str, how: str) -> None:
    damage(tmp_path / f"index-1.{part}", how)
    found, index = shelf.load(tmp_path)
    assert not found
    assert index.tombstones == 0


@pytest.mark.parametrize("part", PARTS)
def test_the_older_one_serves_when_the_newest_is_damaged(tmp_path: Path, shelf: Shelf, part: str) -> None:
    shelf.put(np.arange(400, 450))
    shelf.save(tmp_path)
    damage(tmp_path / f"index-2.{part}", "flipped")
    assert shelf.load(tmp_path)[0]


@pytest.mark.parametrize("seed", range(8))
def test_any_flipped_byte_is_seen(tmp_path: Path, shelf: Shelf, seed: int) -> None:
    rng = np.random.default_rng(seed)
    part = tmp_path / ("index-1.hnsw" if seed % 2 else "index-1.npz")
    body = bytearray(part.read_bytes())
    body[rng.integers(len(body))] ^= 1 << int(rng.integers(8))
    part.write_bytes(bytes(body))
    assert not shelf.load(tmp_path)[0], f"{seed=}"


@pytest.mark.parametrize("field_name", ["dim", "M", "ef_construction"])
def test_a_snapshot_of_other_settings_is_passed_over(tmp_path: Path, shelf: Shelf, field_name: str) -> None:
    path = tmp_path / "index-1.json"
    manifest = json.loads(path.read_text())
    manifest[field_name] += 1
    path.write_text(json.dumps(manifest))
    assert not shelf.load(tmp_path)[0]


def test_a_graph_that_hnswlib_cannot_read_is_passed_over(tmp_path: Path, shelf: Shelf) -> None:
    """The digests match, the content is nonsense: it is tried in another process first."""
    graph = tmp_path / "index-1.hnsw"
    nonsense = np.random.default_rng(5).bytes(graph.stat().st_size)
    graph.write_bytes(nonsense)
    path = tmp_path / "index-1.json"
    manifest = json.loads(path.read_text())
    manifest["sha256"] = sha256(graph)
    path.write_text(json.dumps(manifest))
    assert not shelf.load(tmp_path)[0]


def test_an_unfinished_save_is_no_snapshot(tmp_path: Path, shelf: Shelf) -> None:
    """Killed before the manifest was there."""
    shelf.put(np.arange(400, 450))
    shelf.save(tmp_path)
    (tmp_path / "index-2.json").rename(tmp_path / "index.saving")
    found, _ = shelf.load(tmp_path)
    assert found  # the older one
    shelf.save(tmp_path)
    assert shelf.load(tmp_path)[0]
