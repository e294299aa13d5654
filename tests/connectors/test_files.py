"""Files as sources: what is read, what is rejected and how it is named, where reading goes on."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pyarrow
import pyarrow.parquet
import pytest

from engine.config import LimitsSettings
from engine.errors import InputError
from engine.vectors import quantize
from tests.support.files import EMB, lines, read, single, write, write_parquet, written

BOUNDS = LimitsSettings()
FORMATS = pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.parquet", "a.jsonl"])


@FORMATS
def test_every_format_gives_the_same_vectors(tmp_path: Path, name: str) -> None:
    batch, rejects = single(written(tmp_path / name))
    assert rejects == []
    assert batch.keys == [(f"a:{i}" if name == "a.npy" else f"k{i}").encode() for i in range(5)]
    assert np.array_equal(batch.vectors, quantize(EMB)[0])


@FORMATS
def test_reading_goes_on_at_any_position(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name)
    whole, _ = single(path)
    for size in (1, 2, 3):
        first, *_ = read(path, size)
        rest = read(path, size, dict(first.batch.positions))
        keys = [key for chunk in [first, *rest] for key in chunk.batch.keys]
        assert keys == whole.keys, f"{size=}"
        assert read(path, size, dict(rest[-1].batch.positions)) == []


def test_the_position_belongs_to_the_content(tmp_path: Path) -> None:
    one, same = written(tmp_path / "a.jsonl"), tmp_path / "b.jsonl"
    same.write_bytes(one.read_bytes())
    other = lines(tmp_path / "c.jsonl", {"key": "k", "embedding": [1, 2]})
    known = dict(read(one)[-1].batch.positions)
    assert read(same, positions=known) == []
    assert len(read(other, positions=known)) == 1


def test_columns_become_payload_and_time(tmp_path: Path) -> None:
    images = np.arange(20, dtype=np.uint8).reshape(5, 2, 2)
    path = write(
        tmp_path / "a.npz",
        emb=EMB,
        labels=[1, 0, 1, 0, 7],
        label_names=["cat", "dog"],
        text=list("abcde"),
        time=np.arange(5) + 1_700_000_000,
        images=images,
    )
    batch, rejects = single(path)
    assert rejects == []
    assert batch.times.tolist() == [1_700_000_000_000 + 1000 * row for row in range(5)]
    documents = [orjson.loads(payload) for payload in batch.payloads]
    assert [document["text"] for document in documents] == list("abcde")
    assert [document["label"] for document in documents] == ["dog", "cat", "dog", "cat", 7]
    assert documents[1]["image"] == {"shape": [2, 2], "dtype": "|u1", "data": "BAUGBw=="}


def test_dates_become_milliseconds(tmp_path: Path) -> None:
    days = np.array(["1970-01-02"] * 5, "datetime64[D]")
    assert single(write(tmp_path / "a.npz", emb=EMB, time=days))[0].times.tolist() == [86_400_000] * 5
    path = write_parquet(tmp_path / "a.parquet", emb=EMB.tolist(), time=days.astype("datetime64[s]"))
    assert single(path)[0].times.tolist() == [86_400_000] * 5


def test_fortran_order_reads_the_same(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.asfortranarray(EMB))
    [first, second] = read(tmp_path / "a.npy", 3)
    assert np.array_equal(np.vstack([first.batch.vectors, second.batch.vectors]), quantize(EMB)[0])


def test_json_lines_with_deletes_payload_and_time(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "a.jsonl",
        {"key": "a", "embedding": [1, 0], "time": 1_700_000_017, "payload": {"x": [1]}},
        {"key": "b", "embedding": [0, 1]},
        {"key": "b", "delete": True},
        {"key": "c", "delete": True},
        b"",
        {"key": "c", "embedding": [1, 1]},
        {"key": "a", "embedding": [0, 2], "time": "2024-05-01"},
    )
    batch, rejects = single(path)
    assert rejects == []
    assert (batch.keys, list(batch.deletes)) == ([b"c", b"a"], [b"b"])
    assert batch.times[1] == 1_714_521_600_000
    assert batch.vectors[1].tolist() == [0, 2**14]
    assert list(batch.payloads) == [b"", b""]


BAD_VECTORS = [
    ([1.0, np.nan, 0, 0], "the embedding has a NaN or an infinity"),
    ([1.0, np.inf, 0, 0], "the embedding has a NaN or an infinity"),
    ([0.0, 0, 0, 0], "the embedding is zero"),
]


@pytest.mark.parametrize(("vector", "reason"), BAD_VECTORS)
@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.parquet"])
def test_a_bad_vector_is_named_and_the_rest_goes_on(
    tmp_path: Path, name: str, vector: list[float], reason: str
) -> None:
    emb = EMB.copy()
    emb[2] = vector
    path = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, emb)
    elif path.suffix == ".npz":
        write(path, emb=emb)
    else:
        write_parquet(path, emb=emb.tolist())
    batch, rejects = single(path)
    assert rejects == [f"row 2: {reason}"]
    assert batch.keys == [b"a:0", b"a:1", b"a:3", b"a:4"]
    assert np.array_equal(batch.vectors, quantize(np.delete(EMB, 2, axis=0))[0])


def test_bad_lines_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    huge = b'{"key": "x", "embedding": [1, 1], "payload": "' + b"x" * 3_000_000 + b'"}'
    path = lines(
        tmp_path / "a.jsonl",
        {"key": "good", "embedding": [1, 2]},
        b'{"key": "x", "embedding": [1, 2]',
        {"embedding": [1, 2]},
        {"key": "x"},
        {"key": "", "embedding": [1, 2]},
        {"key": "x" * 512, "embedding": [1, 2]},
        {"key": "x", "embedding": [1, 2, 3]},
        {"key": "x", "embedding": [0, 0]},
        {"key": "x", "embedding": ["1", "2"]},
        {"key": "x", "embedding": [1, None]},
        {"key": "x", "embedding": []},
        {"key": "x", "embedding": [1, 2], "time": "noon"},
        {"key": "x", "embedding": [1, 2], "payload": "x" * 300_000},
        huge,
        [1, 2],
        {"key": 1.5, "embedding": [1, 2]},
        b'{"key": "x", "embedding": [1, NaN]}',
        b"\xff\xfe",
        {"key": "last", "embedding": [2, 1]},
    )
    batch, rejects = single(path)
    assert batch.keys == [b"good", b"last"]
    expected = [
        "line 2: broken JSON",
        "line 3: the field key is missing",
        "line 4: the field embedding is missing",
        "line 5: the key is empty",
        "line 6: the key has 512 bytes, more than the 511 allowed",
        "line 7: the embedding has 3 dimensions, not the collection's 2",
        "line 8: the embedding is zero",
        "line 9: the embedding must be a list of numbers",
        "line 10: the embedding must be a list of numbers",
        "line 11: the embedding has 0 dimensions, not 1 to 16384",
        "line 12: the time must be a number or an ISO 8601 string, not 'noon'",
        "line 13: the payload has 300002 bytes, more than the 262144 allowed",
        "line 14: the line is longer than the 1048576 bytes allowed",
        "line 15: the record must be a JSON object, not list",
        "line 16: the key 1.5 must be a string or an integer, not a number",
        "line 17: broken JSON",
        "line 18: the text is UTF-16, not UTF-8",
    ]
    assert len(rejects) == len(expected)
    for found, wanted in zip(rejects, expected, strict=True):
        assert found.startswith(wanted)


def test_a_line_of_exactly_the_bound_is_taken(tmp_path: Path) -> None:
    start, end = b'{"key": "x", "embedding": [1, 1], "note": "', b'"}'
    for more, taken in ((0, 1), (1, 0)):
        line = start + b"x" * (BOUNDS.record_max_bytes - len(start) - len(end) + more) + end
        batch, rejects = single(lines(tmp_path / "a.jsonl", line, {"key": "y", "embedding": [1, 2]}))
        assert (len(batch.keys), len(rejects)) == (1 + taken, 1 - taken), f"{more=}"


def test_the_dimension_of_the_collection_counts(tmp_path: Path) -> None:
    batch, rejects = single(written(tmp_path / "a.npz"), dim=3)
    assert len(batch.keys) == 0
    assert rejects[0] == "row 0: the embedding has 4 dimensions, not the collection's 3"
    assert len(rejects) == 5


def test_the_first_valid_vector_fixes_the_dimension(tmp_path: Path) -> None:
    records = [{"key": str(i), "embedding": [float(i > 0)] * (2 + i)} for i in range(3)]
    batch, rejects = single(lines(tmp_path / "a.jsonl", *records))
    assert batch.keys == [b"1"]
    assert [reject.split(":")[0] for reject in rejects] == ["line 1", "line 3"]


def test_bad_keys_in_columns(tmp_path: Path) -> None:
    keys = np.array(["a", "", "c" * 512, "d", "e"])
    batch, rejects = single(write(tmp_path / "a.npz", emb=EMB, keys=keys))
    assert batch.keys == [b"a", b"d", b"e"]
    assert rejects == ["row 1: the key is empty", "row 2: the key has 512 bytes, more than the 511 allowed"]
    batch, _ = single(write(tmp_path / "b.npz", emb=EMB, keys=np.arange(5)))
    assert batch.keys == [b"0", b"1", b"2", b"3", b"4"]


def test_missing_embeddings_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, embedding=[[1.0, 2.0], None, [1.0], [None, 1.0], [3.0, 1.0]], key=list("abcde"))
    rejects = [str(reject) for chunk in read(path) for reject in chunk.rejects]
    assert rejects == [
        "a.parquet, row 1: the embedding is missing",
        "a.parquet, row 2: the embedding has 1 dimension, not the collection's 2",
        "a.parquet, row 3: the embedding has a NaN or an infinity",
    ]


def test_strict_stops_at_the_first(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"key": "a", "embedding": [1]}, b"{", b"[")
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: broken JSON"):
        read(path, strict=True)


def truncated(path: Path) -> None:
    data = written(path).read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def damaged(path: Path) -> None:
    data = bytearray(written(path).read_bytes())
    data[data.index(EMB.tobytes()[:16])] ^= 0x40
    path.write_bytes(data)


def pickled(path: Path) -> None:
    array = np.array([{"a": 1}] * 5, dtype=object)
    np.save(path, array, allow_pickle=True) if path.suffix == ".npy" else write(path, emb=array)


def foreign(path: Path) -> None:
    if path.suffix == ".npz":
        write(path, weights=EMB)
    elif path.suffix == ".parquet":
        write_parquet(path, price=[1, 2])
    else:
        path.write_bytes(b"%PDF-1.7 not what you think" * 50)


def wrong_shape(path: Path) -> None:
    np.save(path, EMB[0]) if path.suffix == ".npy" else write(path, emb=EMB[0])


def of_text(path: Path) -> None:
    if path.suffix == ".parquet":
        write_parquet(path, emb=[["a"], ["b"]])
    else:
        write(path, emb=np.array([["a", "b"]]))


def twice_named(path: Path) -> None:
    if path.suffix == ".csv":
        path.write_text("key,emb,key\na,[1 0],b\n")
    else:
        table = pyarrow.Table.from_arrays([pyarrow.array([[1.0, 0.0]])] * 2, names=["emb", "emb"])
        pyarrow.parquet.write_table(table, path)


def uneven(path: Path) -> None:
    write(path, emb=EMB, keys=["a", "b"])


def nested_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("emb.npy", io.BytesIO(b"junk").read())


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        ("a.npz", truncated, "truncated"),
        ("a.npy", truncated, "truncated"),
        ("a.parquet", truncated, "truncated"),
        ("a.npz", damaged, "damaged"),
        ("a.npz", pickled, "Python objects"),
        ("a.npy", pickled, "Python objects"),
        ("a.npz", foreign, "no array emb"),
        ("a.npy", foreign, "not a NumPy array"),
        ("a.parquet", foreign, "no column emb"),
        ("a.npz", wrong_shape, r"shape \(n, d\)"),
        ("a.npy", wrong_shape, r"shape \(n, d\)"),
        ("a.npz", of_text, "must be numbers"),
        ("a.parquet", of_text, "must be lists of numbers"),
        ("a.npz", uneven, "one row for each"),
        ("a.csv", twice_named, "two columns key: rename one"),
        ("a.parquet", twice_named, "two columns emb: rename one"),
        ("a.npz", nested_zip, "not a NumPy array"),
        ("a.txt", foreign, "must end in one of"),
        ("a.npz", lambda path: None, "No such file"),
        ("a.jsonl", lambda path: None, "No such file"),
        ("a.parquet", lambda path: path.mkdir(), "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(tmp_path / name)
    with pytest.raises(InputError, match=words) as raised:
        read(tmp_path / name)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_truncated_line_file_loses_only_its_last_line(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    batch, rejects = single(path)
    assert len(batch.keys) == 4
    assert len(rejects) == 1
    assert rejects[0].startswith("line 5: broken JSON")


def test_a_vector_beyond_the_bound_does_not_fix_the_dimension(tmp_path: Path) -> None:
    long = {"key": "long", "embedding": [1] * 16_385}
    batch, rejects = single(lines(tmp_path / "in.jsonl", long, {"key": "a", "embedding": [1, 2]}))
    assert (batch.keys, batch.vectors.shape) == ([b"a"], (1, 2))
    assert rejects == ["line 1: the embedding has 16385 dimensions, not 1 to 16384"]
    batch, rejects = single(lines(tmp_path / "in.jsonl", long))
    assert not batch.keys
    assert rejects == ["line 1: the embedding has 16385 dimensions, not 1 to 16384"]
