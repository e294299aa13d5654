"""The command line as a user sees it: processes, files, what they print and how they end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from typer.main import get_command

from engine.cli.console import home_path
from engine.storage.store import Store
from tests.conftest import Run, environment, warm_command
from tests.support.stores import version_of
from tests.support.waiting import until

CLASSES, EACH, DIM = 30, 10, 16


def mixture(seed: int = 1) -> tuple[Any, Any]:
    """Embeddings (300, 16) of 30 classes in random order, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(CLASSES), EACH))
    centres = rng.normal(size=(CLASSES, DIM))
    return (centres[labels] + 0.2 * rng.normal(size=(len(labels), DIM))).astype(np.float32), labels


@pytest.fixture
def data(tmp_path: Path) -> Path:
    emb, labels = mixture()
    keys = np.array([f"item {i}" for i in range(len(emb))])
    np.savez(tmp_path / "data.npz", emb=emb, labels=labels, keys=keys)
    return tmp_path / "data.npz"


def told(done: subprocess.CompletedProcess[str]) -> Any:
    """The JSON that a command printed."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One sentence on standard error, nothing else."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert [word for word in words if word not in done.stderr] == [], done.stderr


def test_help_answers_at_once(shoal: Run) -> None:
    """It loads nothing that takes long; in processor time that is 0.2 s."""
    done = shoal("--help")
    assert done.returncode == 0
    for name in ("demo", "ingest", "query", "clusters", "members", "changes", "train", "evaluate", "rebuild"):
        assert name in done.stdout
        assert shoal(name, "--help").returncode == 0


def test_every_path_of_every_command_may_begin_at_home() -> None:
    """A shell leaves the ~ of --store=~/folder to the command."""
    from engine.cli.main import app

    waiting, paths = [get_command(app)], 0
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        for parameter in command.params:
            described = parameter.type_descriptor
            if described.annotation is Path:
                paths += 1
                assert described.parameter_info.parser is home_path, f"{command.name}: {parameter.name}"
    assert paths > 30


def test_the_home_folder(shoal: Run, data: Path, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "shoal.toml").write_text('[store]\npath = "~/kept"\n[collection]\nname = "own"\n')
    done = shoal("ingest", data, "--config=~/shoal.toml", env=home)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "home" / "kept" / "data.mdb").exists()
    assert shoal("clusters", "--store=~/kept", env=home).returncode == 0
    assert shoal("backup", "--store", "~/kept", "~/copy", env=home).returncode == 0
    assert (tmp_path / "home" / "copy").is_dir()
    assert not (tmp_path / "~").exists()
    done = shoal("clusters", "--store=~nobody-by-this-name/x")
    assert (done.returncode, "home directory" in done.stderr) == (3, True)


def test_a_full_table_of_readers_is_told(shoal: Run, data: Path, tmp_path: Path) -> None:
    assert shoal("ingest", data).returncode == 0
    env = lmdb.open(str(tmp_path / "shoal-store"), max_dbs=32, max_readers=126, readonly=True, lock=True)
    with ExitStack() as held:
        held.callback(env.close)
        for _ in range(126):
            held.enter_context(env.begin())
        done = shoal("clusters")
        refused(done, 4, "126 reader slots", "then try again")
    assert shoal("clusters").returncode == 0


def test_reading_a_store_needs_no_torch(shoal: Run, data: Path, tmp_path: Path) -> None:
    assert shoal("ingest", data).returncode == 0
    script = """
import sys
from engine.cli.main import main
try:
    main()
finally:
    heavy = {"torch", "dgl", "numba", "sklearn", "engine.collection.collection"}
    if sys.argv[1:] == ["--help"]:
        heavy |= {"numpy", "pydantic", "lmdb", "rich", "orjson"}
    heavy &= set(sys.modules)
    assert not heavy, heavy
"""
    for arguments in (["clusters"], ["query", "item 1"], ["members", "1"], ["changes"], ["--help"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_what_went_in_can_be_asked_for(shoal: Run, data: Path) -> None:
    summary = told(shoal("ingest", data, "--json", "--batch", "100"))
    assert (summary["rows"], summary["inserted"], summary["rejected"], summary["version"]) == (300, 300, 0, 3)

    page = told(shoal("clusters", "--json", "--limit", "1000"))
    assert page["cursor"] is None
    assert sum(cluster["size"] for cluster in page["clusters"]) == 300
    of_item: dict[str, int] = {}
    for cluster in page["clusters"][:3]:
        answer = told(shoal("members", str(cluster["cluster"]), "--json", "--limit", "1000"))
        assert len(answer["items"]) == cluster["size"]
        of_item |= {item["key"]: cluster["cluster"] for item in answer["items"]}
    key, cluster_id = next(iter(of_item.items()))
    item = told(shoal("query", key, "--json"))
    assert (item["key"], item["cluster"], item["path"][0]) == (key, cluster_id, cluster_id)
    assert item["payload"]["label"] == mixture()[1][int(key.split()[1])]

    events, after = [], ["--limit", "1000"]
    while (changes := told(shoal("changes", "--json", *after)))["changes"]:
        events += changes["changes"]
        after = ["--limit", "1000", "--after", changes["cursor"]]
    now = {event["key"]: event["cluster"] for event in events if "key" in event}
    assert {key: now[key] for key in of_item} == of_item
    assert len(now) == 300
    for words in (["clusters"], ["members", str(cluster_id)], ["query", key], ["changes"]):
        done = shoal(*words)
        assert done.returncode == 0
        assert str(cluster_id) in done.stdout or words == ["changes"]


def test_a_finished_file_changes_nothing(shoal: Run, data: Path) -> None:
    first = told(shoal("ingest", data, "--json"))
    again = told(shoal("ingest", data, "--json"))
    assert (again["rows"], again["skipped"], again["version"]) == (0, 300, first["version"])


def test_an_upsert_moves_and_a_delete_removes(shoal: Run, data: Path, tmp_path: Path) -> None:
    told(shoal("ingest", data, "--json"))
    lines = [
        {"key": "item 0", "embedding": [1.0] * DIM, "payload": {"new": True}},
        {"key": "item 1", "delete": True},
        {"key": "item 2", "embedding": mixture()[0][2].tolist()},
        {"key": "nobody", "delete": True},
    ]
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, lines)))
    summary = told(shoal("ingest", tmp_path / "more.jsonl", "--json"))
    wanted = {"inserted": 0, "moved": 1, "unchanged": 0, "updated": 1, "deleted": 1, "unknown": 1}
    assert {name: summary[name] for name in wanted} == wanted
    assert told(shoal("query", "item 0", "--json"))["payload"] == {"new": True}
    refused(shoal("query", "item 1"), 3, "item 1")


def test_bad_records_are_named_and_counted(shoal: Run, tmp_path: Path) -> None:
    emb = mixture()[0]
    emb[7], emb[9, 3] = 0, np.nan
    np.save(tmp_path / "some.npy", emb)
    done = shoal("ingest", "some.npy", "--json")
    summary = told(done)
    assert (summary["inserted"], summary["rejected"]) == (298, 2)
    assert "rejected: some.npy, row 7: the embedding is zero" in done.stderr
    assert "rejected: some.npy, row 9: the embedding has a NaN or an infinity" in done.stderr
    assert len(summary["rejects"]) == 2
    other = ["--store", tmp_path / "other"]
    refused(shoal("ingest", "some.npy", "--strict", *other), 3, "some.npy, row 7: the embedding is zero")


def test_records_of_another_dimension_are_rejected(shoal: Run, data: Path, tmp_path: Path) -> None:
    told(shoal("ingest", data, "--json"))
    np.save(tmp_path / "wide.npy", np.ones((2, DIM + 1)))
    done = shoal("ingest", "wide.npy", "--json")
    assert (done.returncode, json.loads(done.stdout)["rejected"]) == (3, 2)
    reason = f"the embedding has {DIM + 1} dimensions, not the collection's {DIM}"
    assert f"wide.npy, row 1: {reason}" in done.stderr
    assert "wide.npy has 2 records, and none that can be used" in done.stderr


def test_an_unusable_file_does_not_hold_up_the_others(shoal: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_bytes(data.read_bytes()[:5000])
    refused(shoal("ingest", "broken.npz"), 3, "broken.npz", "truncated")
    assert not (tmp_path / "shoal-store").exists()
    done = shoal("ingest", "broken.npz", "gone.npz", data)
    assert done.returncode == 3
    assert "300 inserted" in done.stdout
    assert "broken.npz" in done.stderr
    assert "2 of 3 files could not be used" in done.stderr
    refused(shoal("ingest", "broken.npz", data, "--strict"), 3, "broken.npz")


def test_stores_that_cannot_be_used(shoal: Run, data: Path, tmp_path: Path) -> None:
    for words in (["query", "a"], ["clusters"], ["members", "1"], ["changes"], ["rebuild"]):
        refused(shoal(*words), 5, "no store in shoal-store", "shoal ingest")
    (tmp_path / "file").write_text("")
    refused(shoal("ingest", data, "--store", "file"), 4, "file")
    full = {"SHOAL_LIMITS__FREE_DISK_MIN_BYTES": str(10**18)}
    refused(shoal("ingest", data, env=full), 7, "free", "make room")
    assert told(shoal("ingest", data, "--json"))["inserted"] == 300
    with Store.open(tmp_path / "shoal-store"):
        refused(shoal("ingest", data), 6, "shoal-store is being written by process")
        assert shoal("clusters").returncode == 0
    refused(shoal("query", "nobody"), 3, "nobody")
    refused(shoal("members", "999999"), 3, "999999")
    done = shoal("changes", "--after", "yesterday")
    assert done.returncode == 2
    assert "'yesterday' is no event's id" in done.stderr


def test_a_store_made_otherwise_is_refused_until_rebuilt(shoal: Run, data: Path, tmp_path: Path) -> None:
    from tests.support.random_models import random_model

    told(shoal("ingest", data, "--json"))
    random_model(4).save(tmp_path / "other.safetensors")
    refused(shoal("ingest", data, "-m", "other.safetensors"), 9, "model", "shoal rebuild")
    other = {"SHOAL_MODEL__MAX_LEVELS": "1"}
    refused(shoal("ingest", data, env=other), 9, "max_levels", "shoal rebuild")
    refused(shoal("ingest", data, env={"SHOAL_COLLECTION__DIM": "99"}), 9, "dim", "99")
    refused(shoal("ingest", data, env={"SHOAL_COLLECTION__NAME": "other"}), 9, "collection", "other")
    refused(shoal("rebuild", "-m", "nope.safetensors"), 3, "nope.safetensors")
    made = told(shoal("rebuild", "-m", "other.safetensors", "--json"))
    assert (made["version"], made["items"]) == (2, 300)
    assert told(shoal("ingest", data, "-m", "other.safetensors", "--json"))["skipped"] == 300
    refused(shoal("ingest", data), 9, "model", "shoal rebuild")
    done = shoal("rebuild", "-m", "other.safetensors", "--tau", "0.61", "--base-tau", "0.5")
    at = tmp_path / "other.safetensors"
    told_to_write = f'[model] path = "{at}"', "[model] tau = 0.61", "[model] base_tau = 0.5"
    assert done.stdout.splitlines()[-3:] == [f"  {line}" for line in told_to_write]
    assert done.stdout.splitlines()[1] == "Changed: base_tau the model's -> 0.5, tau 0.6 -> 0.61."
    refused(shoal("ingest", data, "-m", at), 9, "([model] base_tau = 0.5, [model] tau = 0.61)")
    lines = [line.removeprefix("[model] ") for line in told_to_write]
    (tmp_path / "new.toml").write_text("\n".join(["[model]", *lines]))
    done = shoal("rebuild", "-c", "new.toml", "--tau", "0.61")
    assert "[model]" not in done.stdout, "the file has it already"
    assert told(shoal("ingest", data, "-c", "new.toml", "--json"))["skipped"] == 300


def test_configuration_and_usage(shoal: Run, data: Path, tmp_path: Path) -> None:
    refused(shoal("clusters", "-c", "nope.toml"), 2, "no configuration file nope.toml")
    (tmp_path / "shoal.toml").write_text("[index]\nef = 'many'")
    refused(shoal("ingest", data, "-c", "shoal.toml"), 2, "index.ef = 'many'", "shoal.toml")
    refused(shoal("ingest", data, "--index", "faiss"), 2, "index.kind = 'faiss'", "the command line")
    (tmp_path / "shoal.toml").write_text("[store]\npath = 'elsewhere'\n[index]\nkind = 'exact'")
    told(shoal("ingest", data, "-c", "shoal.toml", "--json"))
    assert shoal("clusters", "-c", "shoal.toml").returncode == 0
    assert (tmp_path / "elsewhere" / "data.mdb").exists()
    assert shoal("ingest").returncode == 2
    assert shoal("conjure").returncode == 2
    for words, sentence in ((["clusters", "--order", "foo"], "'foo'"), (["changes", "--after", "5"], "12-0")):
        done = shoal(*words, "-c", "shoal.toml")
        assert done.returncode == 2
        assert sentence in done.stderr
    assert shoal("changes", "-c", "shoal.toml", "--after", "1-0").returncode == 0
    assert shoal("--version").stdout.startswith("shoal 0.")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_between_batches(
    shoal: Run, data: Path, tmp_path: Path, model: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        warm_command("ingest", data, "--batch", "2"),
        cwd=tmp_path,
        env=environment({"SHOAL_MODEL__PATH": str(model)}),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    until(lambda: version_of(tmp_path / "shoal-store") >= 2, 300)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + number, err
    assert f"stopped by {number.name} after row" in err
    assert "the same command goes on" in err
    assert "inserted" in out
    rest = told(shoal("ingest", data, "--json"))
    assert 0 < rest["skipped"] < 300
    assert rest["skipped"] + rest["inserted"] == 300


def test_themes_follow_from_a_store_that_nobody_writes(shoal: Run, data: Path) -> None:
    told(shoal("ingest", data, "--json"))
    finals = told(shoal("clusters", "--json", "--limit", "1000"))["clusters"]
    themes = told(shoal("clusters", "--level", "+2", "--json", "--limit", "1000"))["clusters"]
    assert sum(row["clusters"] for row in themes) == len(finals)
    assert sum(row["size"] for row in themes) == CLASSES * EACH
    item = told(shoal("query", "item 3", "--level", "+2", "--json"))
    assert item["cluster"] in {row["cluster"] for row in themes}
    refused(shoal("clusters", "--level", "+3"), 3, "level +3", "+1 to +2", "[model] coarser")
    refused(shoal("clusters", "--level", "top"), 3, "--level", "0 to 64", "'top'")
    none = {"SHOAL_MODEL__COARSER": "[]"}
    refused(shoal("clusters", "--level", "+1", env=none), 3, "there is no level")


def test_reading_while_another_process_writes(shoal: Run, data: Path, tmp_path: Path, model: Path) -> None:
    process = subprocess.Popen(
        warm_command("ingest", data, "--batch", "5"),
        cwd=tmp_path,
        env=environment({"SHOAL_MODEL__PATH": str(model)}),
        stdout=subprocess.DEVNULL,
    )
    until(lambda: version_of(tmp_path / "shoal-store") >= 1, 300)
    versions = []
    while process.poll() is None:
        page = told(shoal("clusters", "--json", "--limit", "1000"))
        versions.append(page["version"])
        assert sum(cluster["size"] for cluster in page["clusters"]) == 5 * page["version"]
        assert told(shoal("query", "item 0", "--json"))["key"] == "item 0"
    assert process.returncode == 0
    assert versions == sorted(versions)
    assert told(shoal("clusters", "--json"))["version"] == 60


KEYS = {
    "items", "Fp", "Fp_precision", "Fp_recall", "Fb", "Fb_precision", "Fb_recall", "NMI", "ARI_labels", "ARI",
    "clusters", "singletons", "churn", "flapping", "seconds",
}  # fmt: skip


def test_evaluate(shoal: Run, data: Path, tmp_path: Path) -> None:
    bulk = told(shoal("evaluate", data, "--json"))
    assert set(bulk) == KEYS | {"tau", "worst"}
    assert (bulk["items"], bulk["ARI"], bulk["churn"]) == (300, None, None)
    done = shoal("evaluate", data, "--stream", "--index", "exact", "--batch", "64", "--json", "--seed", "5")
    streamed = told(done)
    assert set(streamed) == KEYS | {"tau", "worst"}
    assert streamed["ARI"] == 1.0
    assert streamed["churn"] >= 0
    assert "seed 5" in done.stderr
    np.savez(tmp_path / "bare.npz", emb=mixture()[0])
    refused(shoal("evaluate", "bare.npz"), 3, "bare.npz", "labels")
    refused(shoal("evaluate", "gone.npz"), 3, "gone.npz")
    assert not (tmp_path / "shoal-store").exists()


def test_train(shoal: Run, data: Path, tmp_path: Path) -> None:
    refused(shoal("train", data, "-o", "nowhere/my.safetensors"), 3, "nowhere")
    refused(shoal("train", "gone.npz", "-o", "my.safetensors"), 3, "gone.npz")
    other = tmp_path / "other.npz"
    with np.load(data) as found:
        np.savez(other, emb=found["emb"][::-1], labels=found["labels"][::-1])
    done = shoal("train", data, "-o", "my.safetensors", "--steps", "2", "--hidden", "16", "--choose", other)
    assert done.returncode == 0, done.stderr
    assert "my.safetensors: k 10" in done.stdout
    assert told(shoal("evaluate", data, "-m", "my.safetensors", "--json"))["items"] == 300
    (tmp_path / "my.safetensors").write_bytes((tmp_path / "my.safetensors").read_bytes()[:1000])
    refused(shoal("evaluate", data, "-m", "my.safetensors"), 3, "my.safetensors")
