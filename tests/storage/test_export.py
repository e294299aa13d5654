"""An export has every assignment of one version, once, in both forms."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from engine.errors import NoStore
from engine.storage import export
from engine.storage.export import Head
from engine.storage.reader import View
from engine.storage.store import Store
from tests.support.fake_collection import Toy

CONFIG = {"collection": "toy", "dim": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, toy = tmp_path_factory.mktemp("export") / "store", Toy(31)
    with Store.open(path, CONFIG) as store:
        for _ in range(8):
            store.commit(toy.step(20))
    return path


def rows_of(raw: bytes, form: str) -> list[dict[str, Any]]:
    if form == "parquet":
        return parquet.read_table(io.BytesIO(raw)).to_pylist()
    return [json.loads(line) for line in raw.splitlines()]


@pytest.mark.parametrize("level", [None, 0, 1])
@pytest.mark.parametrize("form", export.FORMATS)
def test_it_has_what_queries_answer(folder: Path, form: str, level: int | None, monkeypatch: Any) -> None:
    monkeypatch.setattr(export, "ROWS", 7)  # written in several parts
    out, begun = io.BytesIO(), list[Head]()
    head = export.export(folder, out, form, level, begun.append)
    rows = rows_of(out.getvalue(), form)
    with View.open(folder) as view:
        assert head == Head("toy", view.version, view.summary()["items"])
        assert begun == [head]
        assert len(rows) == head.items > 20
        assert [row["key"].encode() for row in rows] == sorted(row["key"].encode() for row in rows)
        for row in rows:
            item = view.item(row["key"], level)
            assert row == {name: item[name] for name in ("key", "cluster", "path", "version")}
    if form == "parquet":
        told = parquet.read_schema(io.BytesIO(out.getvalue())).metadata
        assert (told[b"collection"], told[b"version"]) == (b"toy", b"%d" % head.version)


@pytest.mark.parametrize("form", export.FORMATS)
def test_without_items_it_is_empty(tmp_path: Path, form: str) -> None:
    Store.open(tmp_path / "store", CONFIG).close()
    out = io.BytesIO()
    assert export.export(tmp_path / "store", out, form).items == 0
    assert rows_of(out.getvalue(), form) == []


def test_it_is_of_one_version_while_the_store_is_written(tmp_path: Path) -> None:
    toy = Toy(32)
    with Store.open(tmp_path / "store", CONFIG) as store:
        for _ in range(3):
            store.commit(toy.step(20))
        with View.beside(store).snapshot() as snapshot:
            before = list(export.rows(snapshot, None))
            reading = export.rows(snapshot, None)
            found = [next(reading)]
            store.commit(toy.step(20))
            assert found + list(reading) == before


def test_without_a_store_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoStore, match="there is no store"):
        export.export(tmp_path / "none", io.BytesIO(), "ndjson")
