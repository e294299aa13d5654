"""Labelled sets: the same from every format that can be ingested."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from connectors.files.labelled import read_labelled
from engine.errors import InputError
from engine.evaluation import evaluate
from engine.training import datasets
from tests.support.files import EMB, lines, write, write_parquet

LABELS = [2, 0, 2, 1, 0]
STAMPS = [1_700_000_000 + row for row in (4, 3, 2, 1, 0)]
TEXTS = list("abcde")


def labelled(path: Path) -> Path:
    if path.suffix == ".npz":
        return write(path, emb=EMB, labels=LABELS, time=STAMPS, text=TEXTS)
    if path.suffix == ".parquet":
        return write_parquet(path, vector=EMB.tolist(), label=LABELS, ts=STAMPS, text=TEXTS)
    rows = zip(EMB.tolist(), LABELS, STAMPS, TEXTS, strict=True)
    if path.suffix == ".csv":
        body = [f'"{vector}",{label},{stamp},{text}\n' for vector, label, stamp, text in rows]
        path.write_text("emb,label,time,text\n" + "".join(body))
        return path
    return lines(
        path,
        *(
            {"id": text, "embedding": vector, "labels": label, "time": stamp, "text": text}
            for vector, label, stamp, text in rows
        ),
    )


@pytest.mark.parametrize("name", ["a.npz", "a.parquet", "a.jsonl", "a.csv"])
def test_every_format_gives_the_same_set(tmp_path: Path, name: str) -> None:
    path = labelled(tmp_path / name)
    found = read_labelled(path)
    assert np.array_equal(found.emb.astype(np.float32), EMB)
    assert list(map(str, found.labels)) == list(map(str, LABELS))
    assert found.times is not None
    assert found.times.tolist() == [stamp * 1000 for stamp in STAMPS]
    assert (found.texts, found.images, found.left_out) == (TEXTS, None, [])
    judged = evaluate.read_labelled(path)
    assert judged.labels.tolist() == LABELS
    assert evaluate.stream_order(judged, 0).tolist() == [4, 3, 2, 1, 0]
    assert datasets.read_labelled(path).labels.tolist() == LABELS


def test_pictures_and_names_of_labels(tmp_path: Path) -> None:
    images = np.arange(20, dtype=np.uint8).reshape(5, 2, 2)
    found = read_labelled(
        write(tmp_path / "a.npz", emb=EMB, labels=LABELS, label_names=["x", "y", "z"], images=images)
    )
    assert list(found.labels) == ["z", "x", "z", "y", "x"]
    assert found.images is not None
    assert np.array_equal(found.images, images)
    assert found.times is None


def test_records_that_cannot_be_used_are_left_out(tmp_path: Path) -> None:
    emb = EMB.copy()
    emb[1], emb[3, 2] = 0, np.nan
    found = read_labelled(write(tmp_path / "a.npz", emb=emb, labels=LABELS))
    assert (len(found.emb), list(found.labels)) == (3, [2, 2, 0])
    assert [each.place for each in found.left_out] == ["row 1", "row 3"]


@pytest.mark.parametrize("name", ["a.npz", "a.jsonl"])
def test_the_last_record_of_a_key_counts(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Across the parts in which a file is read, and only those that can be used."""
    monkeypatch.setattr("connectors.files.labelled.CHUNK", 2)
    emb, keys = EMB.copy(), ["a", "b", "a", "c", "b"]
    emb[4] = 0
    path = tmp_path / name
    if name == "a.npz":
        write(path, emb=emb, labels=LABELS, keys=keys)
    else:
        rows = zip(keys, emb.tolist(), LABELS, strict=True)
        lines(path, *({"key": key, "embedding": vector, "label": label} for key, vector, label in rows))
    found = read_labelled(path)
    assert np.array_equal(found.emb.astype(np.float32), EMB[[1, 2, 3]])
    assert (list(found.labels), found.superseded) == ([0, 2, 1], 1)
    assert [each.place for each in found.left_out] == ["row 4" if name == "a.npz" else "line 5"]
    assert evaluate.read_labelled(path).superseded == 1


def test_a_record_that_is_deleted_later_is_none(tmp_path: Path) -> None:
    record = {"key": "a", "embedding": [1, 2], "label": "x"}
    path = lines(tmp_path / "a.jsonl", record, {"key": "a", "delete": True}, {**record, "key": "b"})
    found = read_labelled(path)
    assert (len(found.emb), found.superseded) == (1, 1)


def test_a_file_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.npz is not a labelled set: row 0 has no label"):
        read_labelled(write(tmp_path / "a.npz", emb=EMB))
    with pytest.raises(InputError, match=r"b\.npz has no record that can be used"):
        read_labelled(write(tmp_path / "b.npz", emb=EMB * 0, labels=LABELS))


def test_a_label_is_a_string_or_a_number(tmp_path: Path) -> None:
    one_hot = write(tmp_path / "a.npz", emb=EMB, labels=np.eye(3, dtype=int)[LABELS])
    with pytest.raises(InputError, match=r"row 0: the label \[0, 0, 1\] is neither a string nor a number"):
        read_labelled(one_hot)
    names, classes = read_labelled(
        write(tmp_path / "b.npz", emb=EMB, labels=np.array(LABELS, "f4"))
    ).classes()
    assert (names, classes.tolist()) == (["0", "1", "2"], LABELS)


def test_an_empty_label_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", emb=EMB, labels=np.array(["x", "", "x", "y", "y"]))
    with pytest.raises(InputError, match="row 1 has no label"):
        read_labelled(path)
    assert read_labelled(path, partly=True).classes()[1].tolist() == [0, -1, 0, 1, 1]
