"""CSV, Arrow, compressed text, the usual names of columns, and dumps of vector databases."""

from __future__ import annotations

import gzip
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard

from connectors.files.source import FileSource, Options
from engine.errors import InputError
from engine.records import FIELDS
from engine.vectors import quantize
from tests.support.files import EMB, lines, read, single, write, write_parquet, written

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


@pytest.mark.parametrize(
    "head", ["id\tvector\ttitle (a, b, c)", 'id;vector;"title, a, b, c"', 'id,vector,"title;a;b;c;d"']
)
def test_names_of_columns_may_have_delimiters_in_them(tmp_path: Path, head: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{head}\n{head[2].join(['7', '1 2', 'x'])}\n")
    batch, rejects = single(path)
    assert batch.keys == [b"7"]
    assert rejects == []


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
        InputError,
        match=r"b\.csv is not an embedding file: it has no column embedding, but a, b\..* --vector-column",
    ):
        read(tmp_path / "b.csv")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'id,vector\r1,"[1,2]"\r2,"[2,1]"\r', r"a\.csv ends its lines with carriage returns only: convert"),
        (b'id,vector\r1,"[1,2]\r', "ends its lines with carriage returns only"),
        (b"PAR1\x15\x04\r\x15\x80embedding,\x00\n", r"a\.csv is not text: a file of another format"),
        (b"PK\x03\x04\x14\r\x08\n\x00emb.npy", r"a\.csv is not text"),
        (b"\x89PNG\r\n\x1a\n", r"a\.csv is not text"),
        (b"id," + 200_000 * b"x" + b"\n", r"The first line of .*a\.csv names no columns: field larger than"),
        (b"id,vector" + 2_000_000 * b" " + b"\n1,[1 2]\n", r"first line of .*a\.csv is longer than"),
    ],
)
def test_a_first_line_that_names_no_columns(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.csv.gz"])
def test_a_file_without_records(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for text in (b"", b"\xef\xbb\xbf", b"\n \r\n", b"id,vector\n\n" if "csv" in name else b""):
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
        with pytest.raises(InputError, match=rf"{name} holds no records: name another file\."):
            read(path)
    if path.suffix != ".gz":  # there something may come
        FileSource(path, Options(2, follow=True))


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.parquet", "a.feather"])
def test_arrays_and_tables_without_records(tmp_path: Path, name: str) -> None:
    table = pa.table({"key": pa.array([], pa.string()), "emb": pa.array([], pa.list_(pa.float32()))})
    make = {
        "a.npz": lambda path: np.savez(path, emb=EMB[:0]),
        "a.npy": lambda path: np.save(path, EMB[:0]),
        "a.parquet": lambda path: pyarrow.parquet.write_table(table, path),
        "a.feather": lambda path: pa.feather.write_feather(table, path),
    }
    make[name](tmp_path / name)
    with pytest.raises(InputError, match=rf"{name} holds no records: name another file\."):
        read(tmp_path / name)


def test_text_that_a_table_has_as_bytes(tmp_path: Path) -> None:
    """As Parquet of older writers has it; what is no text is named by its column."""
    columns: dict[str, Any] = {"key": ["a", "b"], "emb": [[1.0, 2.0], [3.0, 4.0]]}
    batch, _ = single(write_parquet(tmp_path / "a.parquet", **columns, text=["ä".encode(), None]))
    assert list(batch.payloads) == ['{"text":"ä"}'.encode(), b""]
    image = {"bytes": b"\x89PNG", "path": "a.png"}
    batch, rejects = single(write_parquet(tmp_path / "b.parquet", **columns, image=[image, None]))
    assert batch.keys == [b"b"]
    why = "there is a value of type bytes in it; give text, numbers, lists and objects of them"
    assert rejects == [f"row 0: the image is not JSON: {why}"]


def test_text_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("key,emb,text,color\na,1 2,café,rot\nb,1 2,Tee,grün\n".encode("latin-1"))
    batch, rejects = single(path)
    assert batch.keys == [b"b"]
    assert rejects == ["row 0: the text is not UTF-8"]


def test_a_table_is_read_from_its_first_line_again(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,emb\na,1 2\n")
    source = FileSource(tmp_path / "a.csv", Options(2))
    for _ in range(2):
        assert [part.rows.kept().rejected for part in source.parts()] == [[]]


def test_decimal_commas_are_no_embeddings(tmp_path: Path) -> None:
    good = ["[1, 2]", "{1,2}", "1 2", "[1. 2.]", " {1 , 2} ", "(1,2)", "1;2"]
    bad = ["0,5 0,2", "1,2", "[0,5 0,2]", "{0,5;0,2}", "0,5"]
    path = tmp_path / "a.tsv"
    path.write_text("id\tvector\n" + "".join(f"{text}\t{text}\n" for text in good + bad))
    batch, rejects = single(path)
    assert [key.decode().strip() for key in batch.keys] == [text.strip() for text in good]
    assert np.array_equal(batch.vectors, np.repeat(quantize([[1, 2]])[0], len(good), 0))
    assert len(rejects) == len(bad)
    assert rejects[0] == (
        "row 7: the embedding must be written [0.1, 0.9], {0.1, 0.9} or 0.1 0.9, not '0,5 0,2'"
    )


def test_compressed_text(tmp_path: Path) -> None:
    plain = written(tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain[:40]) + gzip.compress(plain[40:]))
    pack = zstandard.ZstdCompressor().compress
    (tmp_path / "a.ndjson.zst").write_bytes(pack(plain[:40]) + pack(plain[40:]))
    (tmp_path / "A.JSONL.GZ").write_bytes(gzip.compress(plain))
    (tmp_path / "A.JSONL.ZST").write_bytes(pack(plain))
    expected, _ = single(tmp_path / "a.jsonl")
    for name in ("a.jsonl.gz", "a.ndjson.zst", "A.JSONL.GZ", "A.JSONL.ZST"):
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
    columns = {"v": EMB, "sku": list("abcde"), "emb": EMB[::-1], "keys": list("vwxyz")}
    path = write(tmp_path / "a.npz", **columns, when=[1.7e9] * 5, extra=list("vwxyz"))
    [chunk] = read(path, fields=fields)
    assert chunk.batch.keys == [b"a", b"b", b"c", b"d", b"e"]
    assert chunk.batch.times[0] == 1_700_000_000_000
    assert chunk.batch.payloads[0] == b'"v"'
    assert np.array_equal(chunk.batch.vectors, quantize(EMB)[0])
    with pytest.raises(InputError, match="no array nothing, but v, sku, emb, keys"):
        read(path, fields=FIELDS.named(vector="nothing"))


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.parquet", "a.csv"])
@pytest.mark.parametrize("role", ["key", "time", "payload"])
def test_a_column_that_was_named_has_to_be_there(tmp_path: Path, name: str, role: str) -> None:
    """Else a misspelled name would give every record another key, or no time."""
    path, what = tmp_path / name, "array" if name[2] == "n" else "column"
    if name == "a.csv":
        path.write_text("key,emb\na,1 2\n")
    elif name == "a.parquet":
        write_parquet(path, key=["a"], emb=[[1.0, 2.0]])
    else:
        written(path)
    with pytest.raises(InputError, match=f"has no {what} nmae, but .*name another with --{role}-column"):
        read(path, fields=FIELDS.named(**{role: "nmae"}))


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


DUMPS = {
    "Qdrant": (
        b'{"id": 5, "payload": {"city": "Berlin"}, "vector": [1.0, 2.0], "shard_key": null}\n',
        b"5",
        {"city": "Berlin"},
    ),
    "Chroma": (
        b'{"id":"doc1","embedding":[1,2],"text":"a document","metadata":{"source":"x"}}\n',
        b"doc1",
        {"text": "a document", "source": "x"},
    ),
    "Milvus": (
        b'{"id":449652,"vector":[1,2],"payload":{"color":"red","$meta":{"a":1}}}\n',
        b"449652",
        {"color": "red", "$meta": {"a": 1}},
    ),
    "pgvector": (
        b'id,embedding,created_at,title\n7,"[1,2]",2024-05-01 10:00:00.5+00,"A ""title"", quoted"\n',
        b"7",
        {"title": 'A "title", quoted'},
    ),
}


@pytest.mark.parametrize("name", DUMPS)
def test_what_the_one_liners_for_vector_databases_print(tmp_path: Path, name: str) -> None:
    """As documented in the guide of files, through a pipe."""
    text, key, payload = DUMPS[name]
    path = tmp_path / "pipe"
    os.mkfifo(path)
    feeder = threading.Thread(target=path.write_bytes, args=(text,))
    feeder.start()
    [chunk] = [chunk for chunk in read(path) if chunk.rows]
    feeder.join()
    assert chunk.rejects == []
    assert chunk.batch.keys == [key]
    assert np.array_equal(chunk.batch.vectors, quantize([[1, 2]])[0])
    assert orjson.loads(chunk.batch.payloads[0]) == payload
    if name == "pgvector":
        assert chunk.batch.times.tolist() == [1_714_557_600_500]
