"""Judgements as people write them: read, and refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import InputError
from engine.evaluation.judgements import labels_of, read_labels, read_pairs

KEYS = ["a", "b", "c", "d, e"]


def written(folder: Path, text: str, name: str = "judged.csv") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_pairs_of_a_table(tmp_path: Path) -> None:
    """Each pair once, whichever way round; other columns and empty judgements are passed over."""
    text = '\ufeffkey,other,same,text\na,b,Same,x\nb,a,yes,\nc,"d, e",different,"a\nbreak"\na,c,,\n'
    found = read_pairs(written(tmp_path, text), KEYS)
    assert list(zip(found.first.tolist(), found.second.tolist(), found.same.tolist(), strict=True)) == [
        (0, 1, True),
        (2, 3, False),
    ]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters(tmp_path: Path, delimiter: str) -> None:
    text = "KEY,Other,same\na,b,1\n".replace(",", delimiter)
    assert read_pairs(written(tmp_path, text), KEYS).same.tolist() == [True]


def test_pairs_of_json_lines(tmp_path: Path) -> None:
    lines = '{"key": "a", "other": "b", "same": false}\n\n{"key": "a", "other": "c", "same": null}\n'
    found = read_pairs(written(tmp_path, lines, "judged.jsonl"), KEYS)
    assert (found.first.tolist(), found.second.tolist(), found.same.tolist()) == ([0], [1], [False])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("key,other,same\n", "has no judgement"),
        ("key,other,same\na,b,\n", "has no judgement"),
        ("key,other\na,b\n", "line 1: there is no same"),
        ("key,other,same\na,b,maybe\n", "line 2: same = 'maybe' is neither"),
        ("key,other,same\na,b,nan\n", "line 2: same = 'nan' is neither"),
        ("key,other,same\na,a,same\n", "line 2: 'a' is paired with itself"),
        ("key,other,same\na,z,same\ny,z,same\n", "there is no item 'z' and 2 more"),
        ("key,other,same\na,b,same\nb,a,different\n", "'a' and 'b' are judged both"),
        (
            "key,other,same\na,b,same\nb,c,same\nc,a,different\n",
            "'a' = 'b' = 'c', but 'a' and 'c' are judged different",
        ),
        ('{"key": "a", "other": "b", "same": NaN}\n', "line 1 is not JSON"),
        ('{"key": "a", "other": "b", "same": true}\n[1]\n', "line 2 is no JSON object"),
        ('{"key": "a", "other": "b", "same": true', "line 1 is not JSON"),
    ],
)
def test_pairs_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as refused:
        read_pairs(written(tmp_path, text), KEYS)
    assert words in str(refused.value)


def test_labels(tmp_path: Path) -> None:
    found = read_labels(written(tmp_path, "key,label\nc,x\na,y\nb,\na,y\n"), KEYS)
    assert (found.rows.tolist(), found.labels.tolist()) == ([2, 0], [0, 1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("key,label\na,\n", "has no label"),
        ("key,label\na,NaN\n", "line 2: 'NaN' is no label"),
        ("key,label\nz,x\n", "there is no item 'z'"),
        ("key,label\na,x\na,y\n", "line 3: 'a' has two labels, 'x' and 'y'"),
        ("key\na\n", "there is no label"),
        ("key,class\n", "line 1: there is no label"),
    ],
)
def test_labels_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as refused:
        read_labels(written(tmp_path, text), KEYS)
    assert words in str(refused.value)


def test_labels_in_payloads() -> None:
    found = labels_of([b'{"kind": "x"}', b"", b'{"kind": 3}', b'{"kind": [1]}', b'["kind"]'], "kind")
    assert found.rows.tolist() == [0, 2]
    with pytest.raises(InputError, match="no payload has a field label"):
        labels_of([b'{"kind": "x"}'], "label")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes(b"key,other,same\n\xe4,b,same\n")
    for name, words in (
        (
            "latin.csv",
            "is no text in UTF-8: a file of judgements is CSV or JSON lines, with key, other, same",
        ),
        ("none.csv", "cannot be read: No such file"),
    ):
        with pytest.raises(InputError, match=words):
            read_pairs(tmp_path / name, KEYS)
