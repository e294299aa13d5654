"""Files as sources: what is read, what is rejected and how it is named, where reading goes on."""

from __future__ import annotations

import gzip
import io
import os
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard

from connectors.chunks import Chunk
from connectors.files.source import FileSource, Options
from engine.config import BoundsSettings
from engine.errors import InputError
from engine.records import FIELDS
from engine.types import Batch
from engine.vectors import quantize

BOUNDS = BoundsSettings()
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
        "line 15: the record must be a JSON object, not array",
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
        "a.parquet, row 2: the embedding has 1 dimensions, not the collection's 2",
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
        ("a.npz", nested_zip, "not a NumPy array"),
        ("a.txt", foreign, "must be one of"),
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


TABLE = (
    'id;embedding;ts;metadata;title;color\na;"[1, 2]";2024-05-01;"{""x"": 1.10}";T;red\nb;"{3,4}";;;;blue\n'
)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_table_of_csv(tmp_path: Path, delimiter: str) -> None:
    head, *rows = TABLE.splitlines()
    text = "\n".join([head, *rows]).replace(";", delimiter)
    if delimiter == ",":
        text = text.replace('"{3,4}"', '"{3,4}"').replace('"[1, 2]"', '"[1, 2]"')
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    source = FileSource(path, Options(10))
    source.begin({})
    [chunk] = source.chunks()
    batch = chunk.batch
    assert chunk.rejects == []
    assert batch.keys == [b"a", b"b"]
    assert np.array_equal(batch.vectors, quantize([[1, 2], [3, 4]])[0])
    assert batch.times[0] == 1_714_521_600_000
    assert list(batch.payloads) == [b'{"title":"T","x": 1.10}', b""]
    assert dict(source.ignored) == {"color": 2}


def test_a_quoted_field_may_have_breaks_and_a_bad_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        'id,vector,text\n1,"[1,2]","two\nlines, and ""quotes"""\n2,"[1,2]"\n3,"[1,x]",t\n4,"[3,4]",5" nails\n'
        '5,"[5,6]",six\n6,,t\n,"[1,2]",t\n7,"[1,2]","never ends\n8,"[1,2]",t\n'
    )
    batch, rejects = single(path)
    assert batch.keys[:3] == [b"1", b"4", b"5"]
    assert orjson.loads(batch.payloads[0]) == {"text": 'two\nlines, and "quotes"'}
    assert orjson.loads(batch.payloads[1]) == {"text": '5" nails'}
    assert rejects[:4] == [
        "row 1: the row has 2 fields, the first line 3",
        "row 2: the embedding must be a list of numbers, not '[1,x]'",
        "row 5: the embedding has 0 dimensions, not 1 to 16384",
        "row 6: the key is empty",
    ]
    assert len(rejects) == 5  # the row that never ends takes the last one with it


def test_a_table_without_keys_or_without_embeddings(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('emb\n"1 2"\n"3 4"\n')
    assert single(tmp_path / "a.csv")[0].keys == [b"a:0", b"a:1"]
    (tmp_path / "b.csv").write_text("a,b\n1,2\n")
    with pytest.raises(
        InputError, match=r"b\.csv is not an embedding file: it has no column embedding, but a, b"
    ):
        read(tmp_path / "b.csv")


def test_compressed_text(tmp_path: Path) -> None:
    plain = written(tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain[:40]) + gzip.compress(plain[40:]))
    pack = zstandard.ZstdCompressor().compress
    (tmp_path / "a.ndjson.zst").write_bytes(pack(plain[:40]) + pack(plain[40:]))
    expected, _ = single(tmp_path / "a.jsonl")
    for name in ("a.jsonl.gz", "a.ndjson.zst"):
        batch, rejects = single(tmp_path / name)
        assert (batch.keys, rejects) == (expected.keys, [])
        first, *_ = read(tmp_path / name, 2)
        rest = read(tmp_path / name, 2, dict(first.batch.positions))
        assert [key for chunk in rest for key in chunk.batch.keys] == expected.keys[2:]
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-12])
        with pytest.raises(InputError, match="damaged or truncated"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.feather", "a.arrow", "stream.arrow", "a.parquet"])
@pytest.mark.parametrize("kind", ["list", "fixed", "large", "half", "text"])
def test_arrow_tables(tmp_path: Path, name: str, kind: str) -> None:
    inner = pa.float16() if kind == "half" else pa.float32()
    kinds = {"fixed": pa.list_(inner, 4), "large": pa.large_list(inner), "text": pa.string()}
    rows = [str(row) for row in EMB.tolist()] if kind == "text" else list(EMB)
    column = pa.array(
        [row.astype(np.float16) for row in EMB] if kind == "half" else rows, kinds.get(kind, pa.list_(inner))
    )
    made = pa.table(
        {
            "embedding": column,
            "item_id": pa.array(list("abcde")).dictionary_encode(),
            "metadata": [{"x": 1}, None, {"x": 2}, {"x": 3}, {"x": 4}],
            "created_at": pa.array([0, 1, None, 3, 4], pa.timestamp("us", "UTC")),
        }
    )
    path = tmp_path / name
    if name == "a.feather":
        pa.feather.write_feather(made, path, chunksize=2)
    elif name == "a.parquet":
        pyarrow.parquet.write_table(made, path, row_group_size=2)
    else:
        make = pa.ipc.new_stream if name == "stream.arrow" else pa.ipc.new_file
        with make(path, made.schema) as sink:
            sink.write_table(made, max_chunksize=2)
    batches = [chunk.batch for chunk in read(path, 3)]
    assert [key for batch in batches for key in batch.keys] == [b"a", b"b", b"c", b"d", b"e"]
    grid = np.concatenate([batch.vectors for batch in batches])
    assert np.array_equal(grid, quantize(EMB.astype(np.float16) if kind == "half" else EMB)[0])
    assert [p for batch in batches for p in batch.payloads][:3] == [b'{"x":1}', b"", b'{"x":2}']
    times = np.concatenate([batch.times for batch in batches])
    assert times.tolist()[:2] == [0, 0]
    assert times[2] > 1_700_000_000_000
    first = read(path, 2)[0]
    rest = read(path, 2, dict(first.batch.positions))
    assert [key for chunk in rest for key in chunk.batch.keys] == [b"c", b"d", b"e"]


def test_the_usual_names_in_every_format(tmp_path: Path) -> None:
    keys, stamps = [f"k{i}" for i in range(5)], np.arange(5) + 1_700_000_000
    notes = [f'{{"n":{i}}}' for i in range(5)]
    write(tmp_path / "a.npz", values=EMB, item_id=keys, timestamp=stamps, metadata=notes, color=EMB)
    columns = {"values": EMB.tolist(), "item_id": keys, "timestamp": stamps, "metadata": notes, "color": keys}
    write_parquet(tmp_path / "a.parquet", **columns)
    rows = [{name: column[i] for name, column in columns.items()} for i in range(5)]
    lines(tmp_path / "a.jsonl", *({**row, "timestamp": int(row["timestamp"])} for row in rows))
    head = ",".join(columns)
    body = [f'"{r["values"]}",{r["item_id"]},{r["timestamp"]},"{r["metadata"]}",x' for r in rows]
    text = "\n".join([head, *body]).replace('{"n"', '{""n""')
    (tmp_path / "a.csv").write_text(text)
    found = []
    for suffix in ("npz", "parquet", "csv", "jsonl"):
        source = FileSource(tmp_path / f"a.{suffix}", Options(10))
        source.begin({})
        [chunk] = source.chunks()
        payloads = [orjson.loads(payload) for payload in chunk.batch.payloads]
        if suffix == "jsonl":  # where a string is a string
            payloads = [orjson.loads(payload) for payload in payloads]
        found.append((list(chunk.batch.keys), chunk.batch.times.tolist(), payloads))
        assert np.array_equal(chunk.batch.vectors, quantize(EMB)[0]), suffix
        assert dict(source.ignored) == {"color": 5}, suffix
    assert found[0][0] == [b"k0", b"k1", b"k2", b"k3", b"k4"]
    assert all(each == found[0] for each in found)


def test_a_column_may_be_named(tmp_path: Path) -> None:
    fields = FIELDS.named(key="sku", vector="v", time="when", payload="extra")
    path = write(tmp_path / "a.npz", v=EMB, sku=list("abcde"), emb=EMB[::-1], keys=list("vwxyz"))
    [chunk] = read(path, fields=fields)
    assert chunk.batch.keys == [b"a", b"b", b"c", b"d", b"e"]
    assert np.array_equal(chunk.batch.vectors, quantize(EMB)[0])
    with pytest.raises(InputError, match="no array nothing, but v, sku, emb, keys"):
        read(path, fields=FIELDS.named(vector="nothing"))


def test_a_ragged_file_decides_by_most_of_its_first_rows(tmp_path: Path) -> None:
    records = [{"key": str(i), "embedding": [1.0] * dim} for i, dim in enumerate([5, 3, 3, 2, 3])]
    batch, rejects = single(lines(tmp_path / "a.jsonl", *records))
    assert batch.keys == [b"1", b"2", b"4"]
    assert rejects == [
        "line 1: the embedding has 5 dimensions, not the collection's 3",
        "line 4: the embedding has 2 dimensions, not the collection's 3",
    ]


def test_utf_16_and_the_mark_of_the_byte_order(tmp_path: Path) -> None:
    text = '{"key": "a", "embedding": [1, 2]}\n'
    for name in ("a.jsonl", "a.csv"):
        (tmp_path / name).write_bytes(text.encode("utf-16"))
        with pytest.raises(InputError, match=r"a\.\w+ is in UTF-16: convert it"):
            read(tmp_path / name)
    (tmp_path / "a.jsonl").write_bytes(text.encode("utf-8-sig"))
    assert single(tmp_path / "a.jsonl")[0].keys == [b"a"]


def record(number: int, **more: Any) -> bytes:
    return orjson.dumps({"key": f"k{number}", "embedding": [1, number + 1], **more})


@pytest.mark.parametrize("ending", [b"\n", b""])
def test_a_file_that_has_grown_goes_on_where_it_ended(tmp_path: Path, ending: bytes) -> None:
    path = tmp_path / "a.jsonl"
    whole = b"\n".join(record(i) for i in range(6)) + b"\n"
    cut = len(b"\n".join(record(i) for i in range(4))) + len(ending)
    path.write_bytes(whole[:cut])
    positions = dict(read(path)[-1].batch.positions)
    moved = tmp_path / "renamed.ndjson"
    moved.write_bytes(whole)
    source = FileSource(moved, Options(10))
    assert source.begin(positions).row == 4
    assert "goes on behind 4 records" in source.notes[0]
    [chunk] = source.chunks()
    assert chunk.batch.keys == [b"k4", b"k5"]
    assert read(moved, positions={**positions, **chunk.batch.positions}) == []
    assert len(read(moved, positions=positions, again=True)[0].batch.keys) == 6


def test_a_line_that_was_cut_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    whole = b"\n".join(record(i) for i in range(4)) + b"\n"
    path.write_bytes(whole[:-30])
    [first] = read(path)
    assert (len(first.batch.keys), len(first.rejects)) == (3, 1)
    path.write_bytes(whole)
    [second] = read(path, positions=dict(first.batch.positions))
    assert second.batch.keys == [b"k3"]


def test_an_interrupted_file_that_has_grown(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [f'k{i},"[1,{i}]"\n' for i in range(6)]
    path.write_text("key,emb\n" + "".join(rows[:4]))
    positions = dict(read(path, 2)[0].batch.positions)
    path.write_text("key,emb\n" + "".join(rows))
    [chunk] = read(path, positions=positions)
    assert chunk.batch.keys == [b"k2", b"k3", b"k4", b"k5"]


def test_files_of_one_name_have_keys_of_their_own(tmp_path: Path) -> None:
    positions: Positions = {}
    keys: list[bytes] = []
    notes: list[str] = []
    for day in ("mon", "tue", "wed"):
        (tmp_path / day).mkdir()
        np.save(tmp_path / day / "emb.npy", EMB + len(keys))
        source = FileSource(tmp_path / day / "emb.npy", Options(2))
        source.begin(positions)
        for chunk in source.chunks():
            keys += chunk.batch.keys
            positions |= chunk.batch.positions
        notes += source.notes
    assert keys == [b"%b:%d" % (stem, row) for stem in (b"emb", b"tue/emb", b"wed/emb") for row in range(5)]
    assert len(notes) == 2
    assert "its keys are tue/emb:0 and so on, for another file has emb:0" in notes[0]
    np.save(tmp_path / "mon" / "emb.npy", EMB * [1, 2, 3, 4])  # the same file, made anew
    [chunk] = read(tmp_path / "mon" / "emb.npy", positions=positions)
    assert chunk.batch.keys[0] == b"emb:0"


def test_how_many_were_rejected_is_remembered(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "a.jsonl", {"key": "a", "embedding": [1]}, b"{", b"[", {"key": "b", "embedding": [2]}
    )
    positions: Positions = {}
    for chunk in read(path, 2):
        positions |= chunk.batch.positions
    mark = FileSource(path, Options(2)).begin(positions)
    assert (mark.row, mark.rejected) == (4, 2)
    old = {name: (3).to_bytes(8, "big") for name in positions}  # of an earlier release
    assert FileSource(path, Options(2)).begin(old).row == 3


def test_a_pipe_is_read_once_in_either_format(tmp_path: Path) -> None:
    texts = {
        "json": b"\n".join(record(i) for i in range(5)) + b"\n",
        "csv": b"key,emb\n" + b"".join(b'k%d,"[1,%d]"\n' % (i, i + 1) for i in range(5)),
    }
    for name, text in texts.items():
        path = tmp_path / name
        os.mkfifo(path)
        feeder = threading.Thread(target=path.write_bytes, args=(text,))
        feeder.start()
        source = FileSource(path, Options(2))
        source.begin({})
        chunks = [chunk for chunk in source.chunks() if chunk.rows]
        feeder.join()
        assert [key for chunk in chunks for key in chunk.batch.keys] == [b"k0", b"k1", b"k2", b"k3", b"k4"], (
            name
        )
        assert all(not chunk.batch.positions for chunk in chunks)


def test_a_followed_file_is_read_as_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(record(0) + b"\n" + record(1)[:10])
    source = FileSource(path, Options(10, follow=True))
    source.begin({})
    chunks = source.chunks()
    assert next(chunks).batch.keys == [b"k0"]
    assert next(chunks).rows == 0  # nothing comes, and half a line waits
    with path.open("ab") as stream:
        stream.write(record(1)[10:] + b"\n" + record(2) + b"\n")
    grown = next(chunk for chunk in chunks if chunk.rows)
    assert grown.batch.keys == [b"k1", b"k2"]
    positions = dict(grown.batch.positions)
    with path.open("ab") as stream:
        stream.write(record(3) + b"\n")
    later = FileSource(path, Options(10, follow=True))
    assert later.begin(positions).row == 3
    again = later.chunks()
    assert next(again).batch.keys == [b"k3"]
    assert [chunk.batch.keys for chunk in read(path, positions=positions)] == [
        [b"k3"]
    ]  # not followed any more
    other = tmp_path / "new"
    other.write_bytes(record(7) + b"\n")
    other.rename(path)
    replaced = next(chunk for chunk in again if chunk.rows)
    assert replaced.batch.keys == [b"k7"]
    assert "was replaced" in later.notes[0]
    with pytest.raises(InputError, match="cannot be followed"):
        FileSource(written(tmp_path / "a.npz"), Options(10, follow=True))
