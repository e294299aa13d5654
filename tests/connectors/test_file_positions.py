"""Where reading goes on: grown, interrupted and followed files, pipes, and keys made of file names."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from connectors.files.source import FileSource, Options
from engine.errors import InputError
from tests.support.files import EMB, Positions, lines, read, record, written


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
    assert "continues after 4 records" in source.notes[0]
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
