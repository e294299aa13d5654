"""`shoal export`: to a file or to standard output, by the file's name or as told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pyarrow import parquet

from engine.storage.store import Store
from tests.conftest import Run
from tests.support.fake_collection import Toy


@pytest.fixture
def store(tmp_path: Path) -> Path:
    toy = Toy(33)
    with Store.open(tmp_path / "shoal-store", {"collection": "toy", "dim": None}) as made:
        made.commit(toy.step(20))
    return tmp_path / "shoal-store"


def test_all_ways_give_the_same_rows(shoal: Run, store: Path, tmp_path: Path) -> None:
    piped = shoal("export")
    assert piped.returncode == 0, piped.stderr
    rows = [json.loads(line) for line in piped.stdout.splitlines()]
    assert len(rows) > 5
    told = shoal("export", "-o", tmp_path / "all.parquet", "--json")
    assert json.loads(told.stdout) == {
        "collection": "toy",
        "version": 1,
        "items": len(rows),
        "file": str(tmp_path / "all.parquet"),
    }
    assert parquet.read_table(tmp_path / "all.parquet").to_pylist() == rows
    assert shoal("export", "-o", "all.txt", "--format", "ndjson").returncode == 0
    assert (tmp_path / "all.txt").read_text() == piped.stdout
    finest = shoal("export", "--level", "0")
    assert [json.loads(line)["cluster"] for line in finest.stdout.splitlines()] != []


def test_what_cannot_be_is_said_and_leaves_nothing(shoal: Run, store: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (["--format", "csv"], "ndjson or parquet"),
        (["--level", "+1"], "--level is 0 to 64, 0 the finest; exports and explanations take no level of"),
        (["--level", "-1"], "--level is 0 to 64"),
        (["--level", "x"], "not 'x'"),
        (["--json"], "name a file"),
        (["-o", "none/all.ndjson"], "cannot be written"),
        (["-o", "all.ndjson.gz"], "ends in .gz: name a .ndjson or .parquet file, or a --format"),
        (["--store", "elsewhere", "-o", "all.ndjson"], "there is no store"),
    ):
        failed = shoal("export", *arguments)
        assert failed.returncode != 0
        assert words in failed.stderr, failed.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"shoal-store"}
