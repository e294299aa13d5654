"""`ingest` in this process: what its summary says of rows that are not items, and how it ends."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from connectors.files.source import Options
from engine.cli.ingest import IGNORED, REASONS, ingest
from engine.collection.collection import Engine
from engine.config import BULK_BATCH, Settings
from engine.errors import InputError
from tests.conftest import Run, environment, warm_command

Take = Callable[..., dict[str, Any]]
RNG = np.random.default_rng(5)


@pytest.fixture
def settings(tmp_path: Path, model: Path) -> Settings:
    return Settings(
        store={"path": tmp_path / "store"},  # type: ignore[arg-type]
        model={"path": model},  # type: ignore[arg-type]
        index={"kind": "exact"},  # type: ignore[arg-type]
    )


@pytest.fixture
def take(settings: Settings, capsys: pytest.CaptureFixture[str]) -> Take:
    """`take(files)` ingests; the summary, with what stood on standard error and the error under names."""

    def run(
        *paths: Path, chosen: Settings = settings, strict: bool = False, **options: Any
    ) -> dict[str, Any]:
        reading = Options(chosen.batch.size or BULK_BATCH, chosen.limits, strict=strict, **options)
        error = ""
        try:
            ingest(chosen, list(paths), reading, as_json=True)
        except InputError as problem:
            error = str(problem)
        out, err = capsys.readouterr()
        return {**orjson.loads(out), "err": err, "error": error}

    return run


def counted(summary: dict[str, Any], *names: str) -> Sequence[int]:
    return [summary[name] for name in names]


def lines(path: Path, *records: Any) -> Path:
    path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    return path


def record(key: str, **more: Any) -> dict[str, Any]:
    return {"key": key, "embedding": RNG.normal(size=4).tolist(), **more}


def test_three_files_of_one_name(take: Take, tmp_path: Path, settings: Settings) -> None:
    paths = []
    for day in ("mon", "tue", "wed"):
        (tmp_path / day).mkdir()
        paths.append(tmp_path / day / "emb.npy")
        np.save(paths[-1], RNG.normal(size=(10, 4)))
    summary = take(*paths)
    assert counted(summary, "rows", "inserted") == [30, 30]
    assert "its keys are tue/emb:0 and so on, for another file has emb:0" in summary["err"]
    with Engine.open(settings) as engine:
        assert len(engine) == 30
        assert "wed/emb:9" in engine
    again = take(*paths)
    assert counted(again, "rows", "skipped") == [0, 30]


def test_what_was_deleted_comes_back_with_again_only(take: Take, tmp_path: Path, settings: Settings) -> None:
    path = lines(tmp_path / "a.jsonl", *(record(f"k{i}") for i in range(5)), {"key": "x"}, {"key": "y"})
    first = take(path)
    assert counted(first, "inserted", "rejected") == [5, 2]
    with Engine.open(settings) as engine:
        engine.delete(["k0", "k1"])
    second = take(path)
    assert counted(second, "rows", "skipped", "rejected_before") == [0, 7, 2]
    third = take(path, again=True)
    assert counted(third, "inserted", "unchanged", "rejected") == [2, 3, 2]
    assert counted(take(path), "skipped", "rejected_before") == [7, 2]


def test_a_file_without_a_usable_record_is_no_success(take: Take, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", *({"key": f"k{i}", "embedding": [0, 0]} for i in range(3)))
    for _ in range(2):  # nor is it the second time
        summary = take(path)
        assert summary["error"] == f"{path} has 3 records, and none that can be used."
    path.write_bytes(b"\n" + path.read_bytes() + b"\n\n")  # nor with blank lines between
    for _ in range(2):
        assert take(path)["error"] == f"{path} has 3 records, and none that can be used."
    good = lines(tmp_path / "b.jsonl", record("k"))
    summary = take(path, good)
    assert summary["inserted"] == 1
    assert "has 3 records, and none" in summary["error"]


def test_blank_lines_alone_hide_no_bad_record(take: Take, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n" + orjson.dumps(record("k")) + b"\n\n")
    assert counted(take(path), "rows", "inserted", "rejected") == [1, 1, 0]  # nor are they rows
    assert counted(take(path), "rows", "skipped") == [0, 1]
    path.write_bytes(path.read_bytes() + b"broken\n\n")  # it goes on behind a record that was good
    for _ in range(2):
        assert take(path)["error"] == ""


def test_times_in_seconds_are_not_from_1970(take: Take, tmp_path: Path, settings: Settings) -> None:
    import time

    now = int(time.time())
    kept = settings.model_copy(update={"retention": type(settings.retention)(max_age_s=3600)})
    fresh = take(lines(tmp_path / "a.jsonl", *(record(f"k{i}", ts=now - i) for i in range(5))), chosen=kept)
    assert counted(fresh, "inserted", "expired", "doubtful") == [5, 0, 0]
    old = [record(f"o{i}", time=17 + i) for i in range(5)]
    summary = take(lines(tmp_path / "b.jsonl", *old), lines(tmp_path / "c.jsonl", record("new")), chosen=kept)
    assert counted(summary, "inserted", "expired", "doubtful") == [6, 5, 5]
    assert "b.jsonl, line 1: the time 1970-01-01T00:00:17Z is before 1990" in summary["err"]
    assert summary["err"].count("doubtful") == 1


def test_names_that_are_not_understood_and_keys_that_come_twice(take: Take, tmp_path: Path) -> None:
    records = [record(f"k{i % 3}", color="red", size=i) for i in range(9)]
    summary = take(lines(tmp_path / "a.jsonl", *records))
    assert counted(summary, "rows", "inserted", "superseded") == [9, 3, 6]
    assert summary["ignored"] == {"color": 9, "size": 9}
    assert summary["err"].count("unknown fields, ignored: color (9), size (9)") == 1


def test_an_appended_file_replays_nothing(take: Take, tmp_path: Path, settings: Settings) -> None:
    path = lines(tmp_path / "log.jsonl", *(record(f"k{i}") for i in range(5)))
    take(path)
    with Engine.open(settings) as engine:
        engine.delete(["k1"])
    with path.open("ab") as stream:
        stream.write(orjson.dumps(record("k5")) + b"\n")
    summary = take(path)
    assert counted(summary, "rows", "inserted", "skipped") == [1, 1, 5]
    with Engine.open(settings) as engine:
        assert "k1" not in engine


def test_an_emptied_collection_takes_another_dimension(
    take: Take, tmp_path: Path, settings: Settings
) -> None:
    take(lines(tmp_path / "a.jsonl", record("a")))
    wide = lines(tmp_path / "b.jsonl", {"key": "b", "embedding": [1, 2]})
    summary = take(wide)
    assert "until all its items are deleted" in summary["error"]
    with Engine.open(settings) as engine:
        engine.delete(["a"])
    assert take(wide, again=True)["inserted"] == 1


def test_many_records_that_are_rejected_for_one_reason_are_counted(
    settings: Settings, take: Take, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of another reason are named still; with --json all are."""
    good = [record(f"good {at}") for at in range(30)]
    bad = [{**record(f"bad {at}"), "embedding": [1, 2, 3]} for at in range(20)]
    zero = {**record("zero"), "embedding": [0, 0, 0, 0]}
    path = lines(tmp_path / "a.jsonl", *good, *bad, zero)
    ingest(settings, [path], Options(16), as_json=False)
    out, err = capsys.readouterr()
    reason = "the embedding has 3 dimensions, not the collection's 4"
    assert err.splitlines() == [
        *(f"rejected: a.jsonl, line {line}: {reason}" for line in range(31, 36)),
        "rejected: a.jsonl, line 51: the embedding is zero",
        f"rejected: {path}: 15 more for this reason, which --again --json names: {reason}",
    ]
    assert "30 inserted, 21 rejected" in out
    told = take(path, again=True)
    assert (len(told["rejects"]), told["err"].count("rejected: ")) == (21, 21)


def test_reasons_that_name_values_are_no_line_for_each_record(
    settings: Settings, take: Take, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lines(tmp_path / "a.jsonl", record("good"), *({**record(""), "key": at + 0.5} for at in range(50)))
    ingest(settings, [path], Options(16), as_json=False)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == REASONS + 1
    assert told[0] == "rejected: a.jsonl, line 2: the key 0.5 must be a string or an integer, not a number"
    assert told[-1] == f"rejected: {path}: {50 - REASONS} more for other reasons, which --again --json names"
    assert take(path, again=True)["err"].count("rejected: ") == 50


def test_a_column_without_a_name_is_told(take: Take, tmp_path: Path) -> None:
    """As pandas writes its index."""
    path = tmp_path / "a.csv"
    path.write_text(",key,embedding\n0,a,1 2\n1,b,2 3\n")
    assert "unknown fields, ignored: a column without a name (2)." in take(path)["err"]


def test_more_names_than_are_told_are_counted(take: Take, tmp_path: Path) -> None:
    many = {f"column {at}": 1 for at in range(IGNORED + 3)}
    summary = take(lines(tmp_path / "a.jsonl", record("a", **many)))
    assert f"column {IGNORED - 1} (1), and 3 more names." in summary["err"]


def test_standard_input_and_the_summary_for_people(tmp_path: Path, model: Path) -> None:
    table = "sku,vec,color\n" + "".join(f'{row},"[{row + 1}, 1]",red\n' for row in range(20)) + '"",1 2,red\n'
    done = subprocess.run(
        warm_command("ingest", "-", "--key-column", "sku", "--vector-column", "vec"),
        cwd=tmp_path,
        env=environment({"SHOAL_MODEL__PATH": str(model)}),
        input=table,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "rejected: standard input, row 20: the key is empty" in done.stderr
    assert "standard input: unknown fields, ignored: color (21)" in done.stderr
    assert done.stdout.startswith("21 rows in ")
    assert "20 inserted, 1 rejected. shoal-store is at version" in done.stdout


def test_binary_on_standard_input_leaves_the_terminal_alone(tmp_path: Path, model: Path) -> None:
    done = subprocess.run(
        warm_command("ingest", "-"),
        cwd=tmp_path,
        env=environment({"SHOAL_MODEL__PATH": str(model)}),
        input=b"PK\x03\x04\x1b[2J" + 1000 * b"x",
        capture_output=True,
        check=False,
    )
    sentence = done.stderr.decode()
    assert done.returncode == 3, sentence
    assert sentence.startswith("shoal: standard input is not text: ")
    assert sentence.rstrip("\n").isprintable()
    assert len(sentence) < 400


def test_files_that_cannot_be_used_leave_the_store_alone(shoal: Run, tmp_path: Path) -> None:
    good = lines(tmp_path / "a.jsonl", record("k"))
    assert "is at version 1." in shoal("ingest", good).stdout
    done = shoal("ingest", "none.npz", "none.csv")
    assert done.returncode == 3
    assert "version" not in done.stdout
