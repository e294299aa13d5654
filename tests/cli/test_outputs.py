"""What commands write never replaces a file of the user; what cannot be written is one sentence."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import InputError, StoreFull
from engine.training import checkpoint
from tests.cli.test_cli import data as data
from tests.cli.test_cli import mixture, refused
from tests.conftest import Run, environment, warm_command
from tests.support.random_models import random_lander, random_model


@pytest.mark.parametrize("command", ["evaluate", "opis"])
def test_a_picture_does_not_replace_what_it_shows(shoal: Run, data: Path, command: str) -> None:
    before = data.read_bytes()
    refused(shoal(command, data, "--png", data), 3, data.name, "name another file")
    assert data.read_bytes() == before
    done = shoal(command, data, "--png", "none/a.png")
    refused(done, 3, "none is not a folder")
    assert done.stdout == ""  # before the work, not after it


def test_a_model_does_not_replace_the_one_that_it_goes_on_from(
    shoal: Run,
    data: Path,
    tmp_path: Path,
) -> None:
    lander = tmp_path / "start.safetensors"
    random_lander(1, 16).save(lander)
    for flags in (("-o", lander), ("-o", "start.json")):
        refused(
            shoal("train", data, "--kind", "lander", "--start", lander, *flags, "--steps", 1),
            3, "name another file",
        )  # fmt: skip
    refused(shoal("adapt", data, "-m", lander, "-o", lander, "--steps", 1), 3, "name another file")
    refused(shoal("evaluate", data, "-m", lander, "--png", lander), 3, "name another file")


@pytest.mark.parametrize("ending", ["json", "md", "png"])
def test_a_report_does_not_replace_files_of_the_same_name(
    shoal: Run,
    data: Path,
    tmp_path: Path,
    ending: str,
) -> None:
    mine = tmp_path / f"notes.{ending}"
    mine.write_text("of the user")
    train = ("train", data, "-o", "notes.safetensors", "--steps", 1, "--hidden", 32, "--kind", "lander")
    refused(shoal(*train), 3, mine.name, "exists already")
    assert mine.read_text() == "of the user"
    if ending == "json":
        refused(shoal("model", "import", data, "-o", "notes.safetensors"), 3, mine.name, "exists already")
        mine.rename(tmp_path / "elsewhere")
        for _ in range(2):  # a training may replace its own model
            done = shoal(*train)
            assert done.returncode == 0, done.stderr
        assert "(it replaced the model that was there)" in done.stdout


@pytest.mark.parametrize(
    ("command", "ending"),
    [
        ("train data.npz -o x.txt", ".safetensors"),
        ("train data.npz --start universal --space -o m.safetensors --adapter x.txt", ".safetensors"),
        ("model import data.npz -o x.txt", ".safetensors"),
        ("adapt data.npz -o x.txt", ".safetensors"),
        ("encode train data.npz -o x.txt", ".safetensors"),
        ("encode apply a.safetensors data.npz -o x.txt", ".npz"),
        ("encode adapt a.safetensors data.npz -o x.txt", ".npz"),
        ("evaluate data.npz --png x.txt", ".png"),
        ("opis data.npz --png x.txt", ".png"),
    ],
)
def test_what_is_written_has_its_ending(
    shoal: Run, data: Path, tmp_path: Path, command: str, ending: str
) -> None:
    mine = tmp_path / "x.txt"
    mine.write_text("of the user")
    words = [data if word == "data.npz" else word for word in command.split()]
    refused(shoal(*words), 3, f"x.txt does not end in {ending}: name a file that does.")
    assert mine.read_text() == "of the user"


@pytest.mark.parametrize(
    "words",
    [
        "train data.npz data.npz -o x.safetensors",
        "train data.npz --choose ./data.npz -o x.safetensors",
        "train data.npz --start universal --among data.npz -o x.safetensors",
        "adapt data.npz data.npz -o x.safetensors",
    ],
)
def test_a_file_to_learn_from_is_named_once(shoal: Run, data: Path, words: str) -> None:
    refused(shoal(*words.split()), 3, "data.npz is named twice: name each file once.")


@pytest.mark.parametrize("command", ["adapt data.npz", "encode train data.npz"])
def test_margins_are_not_reversed(shoal: Run, data: Path, command: str) -> None:
    done = shoal(*command.split(), "-o", "x.safetensors", "--margins", "0.2", "0.8")
    refused(done, 3, "--margins 0.2 0.8: the first is what pairs of a class are to exceed")


def test_an_option_of_another_kind_is_refused(shoal: Run, data: Path) -> None:
    refused(shoal("train", data, "-o", "m.safetensors", "--variant", "gat"), 3, "--kind lander")
    both = ("--base", "universal", "--teacher", "universal")
    refused(shoal("train", data, "-o", "m.safetensors", *both), 3, "--teacher teaches level 0")
    assert shoal("train", data, "-o", "m.safetensors", "--minutes", "inf").returncode == 2
    refused(shoal("tune", data, "--taus", "0.5,2"), 3, "--taus: '2'")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("tune data.npz --propose 5 --pairs p.csv", "--propose prints pairs before they are judged"),
        ("tune data.npz --propose 5 --labels p.csv", "--propose prints pairs before they are judged"),
        ("tune data.npz --propose 5 --label kind", "--propose prints pairs before they are judged"),
        ("tune data.npz --pairs p.csv --label kind", "--label names a field of payloads"),
        ("evaluate data.npz --seed 0", "--seed and --batch are of a stream: name --stream"),
        ("evaluate data.npz --batch 9", "--seed and --batch are of a stream: name --stream"),
        ("opis data.npz --range 0.1 0.5 --rates 0.01 0.1", "--range and --rates both say"),
        ("opis data.npz --label label", "name it with --store alone"),
        ("adapt data.npz -o x.safetensors --margins 0.9 0.4 --search", "name no --margins with it"),
        ("adapt data.npz -o x.safetensors --margins 0.9 0.4 --tcm 0", "--tcm 0 leaves the margin loss out"),
        ("adapt data.npz -o x.safetensors --search --tcm 0", "--tcm 0 leaves the margin loss out"),
        ("encode train data.npz -o x.safetensors --margins 0.9 0.4 --tcm 0", "leaves the margin loss out"),
        ("train data.npz -o x.safetensors --start universal --begin metric", "--begin says how a lander"),
        ("train data.npz -o x.safetensors --variant mean", "--variant is of a lander"),
        ("train data.npz -o x.safetensors --focal 2", "--focal and --balance are of a lander"),
        ("train data.npz -o x.safetensors --kind lander --balance", "a metric has a loss of its own"),
        ("train data.npz -o x.safetensors --base universal --hidden 32", "name no --hidden with it"),
    ],
)
def test_an_option_without_a_part_is_refused(shoal: Run, data: Path, words: str, said: str) -> None:
    refused(shoal(*words.split()), 3, said)


def test_a_lander_goes_on_from_a_lander(shoal: Run, data: Path, tmp_path: Path) -> None:
    random_lander(1, 16).save(tmp_path / "l.safetensors")
    random_model(1).save(tmp_path / "u.safetensors")
    train = ("train", data, "--kind", "lander", "-o", "x.safetensors", "--start")
    refused(shoal(*train, "universal"), 3, "a lander continues from a lander: universal is not one")
    refused(shoal(*train, "u.safetensors"), 3, "it is a universal model; a lander is wanted here")
    for flags in (("--variant", "gat"), ("--hidden", "32")):
        refused(shoal(*train, "l.safetensors", *flags), 3, "name no --variant or --hidden with it")
    refused(shoal(*train, "l.safetensors", "--begin", "metric"), 3, "--begin says how a lander without")


def test_help_shows_the_choices(shoal: Run) -> None:
    for command, wanted in (
        (("train",), ("universal|lander", "mean|gat", "metric|random", "With --space, or")),
        (("adapt",), ("linear|mlp", "SmoothAPLoss")),
        (("encode", "train"), ("convolutional|transformer",)),
        (("ingest",), ("hnsw|exact",)),
        (("export",), ("ndjson|parquet",)),
    ):
        said = " ".join(shoal(*command, "--help").stdout.split())
        assert [words for words in wanted if words not in said] == []
        assert "--both" not in said


def test_a_file_and_a_store_are_not_tuned_at_once(shoal: Run, data: Path) -> None:
    refused(shoal("tune", data, "--store", "none"), 3, "either a file, or a store with --store")


@pytest.mark.parametrize("words", [("clusters", "--store", ""), ("backup", ""), ("clusters", "-c", "")])
def test_an_empty_path_is_not_the_current_folder(shoal: Run, words: tuple[str, ...]) -> None:
    refused(shoal(*words), 3, "shoal: A path on the command line is empty: name a file or a folder")


@pytest.mark.parametrize("command", [("opis",), ("adapt", "-o", "a.safetensors")])
def test_what_reads_labelled_sets_gives_no_advice_on_pickles(
    shoal: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    unlabelled = '{"key": "a", "embedding": [1, 2]}\n'
    for name, *said in (
        ("part.jsonl", "part.jsonl is not a labelled set: line 1 has no label or labels."),
        ("part.npz", "part.npz is not an .npz, or it is damaged", "numpy.savez"),
    ):
        (tmp_path / name).write_text(unlabelled)
        done = shoal(*command, name)
        refused(done, 3, *said)
        assert "pickle" not in done.stderr
    np.savez(tmp_path / "a.npz", emb=np.eye(2), labels=np.array(["a", 1], object))
    done = shoal(*command, "a.npz")
    refused(done, 3, "a.npz holds Python objects, which are never loaded; save plain arrays.")


def test_an_export_to_a_pipe_leaves_the_pipe(shoal: Run, data: Path, tmp_path: Path) -> None:
    assert shoal("ingest", data).returncode == 0
    pipe = tmp_path / "out.ndjson"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        done = shoal("export", "-o", pipe)
        if not pipe.is_fifo():
            reader.kill()
        assert done.returncode == 0, done.stderr
        assert reader.stdout
        assert len(reader.stdout.read().splitlines()) == 300
    assert pipe.is_fifo()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("flags", [("clusters",), ("clusters", "--json"), ("export",), ("changes",)])
def test_a_full_disk_is_one_sentence(
    data: Path,
    tmp_path: Path,
    shoal: Run,
    flags: tuple[str, ...],
) -> None:
    assert shoal("ingest", data).returncode == 0
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            warm_command(*flags),
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment(), check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        7, "shoal: the output cannot be written: No space left on device.\n",
    )  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_of_files_too(tmp_path: Path, shoal: Run, data: Path) -> None:
    assert shoal("ingest", data).returncode == 0
    full = tmp_path / "full.ndjson"
    full.symlink_to("/dev/full")
    refused(shoal("export", "-o", full), 7, f"shoal: {full} cannot be written: No space left on device.")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(StoreFull, match=r"m\.checkpoint cannot be written: File too large\."):
            checkpoint.save(tmp_path / "m.checkpoint", {"weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_closed_output_is_no_fault(data: Path, tmp_path: Path, shoal: Run) -> None:
    assert shoal("ingest", data).returncode == 0
    for closed in (">&-", ">&- 2>&-"):
        line = f"{sys.executable} -m engine clusters --json {closed}"
        done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_an_adapter_that_is_kept_is_told(shoal: Run, tmp_path: Path) -> None:
    emb, labels = mixture()
    emb[3] = 0.0
    np.savez(tmp_path / "hole.npz", emb=emb, labels=labels)
    done = shoal("train", "hole.npz", "-o", "m.safetensors", "--steps", 1, "--hidden", 32, "--kind", "lander")
    assert "hole.npz: left out 1 record that cannot be used" in done.stderr
    np.savez(tmp_path / "set.npz", emb=np.delete(emb, 3, 0), labels=np.delete(labels, 3))
    flags = ("--steps", 2, "--dim", 2, "--loss", "SupConLoss", "--keep")
    done = shoal("adapt", "set.npz", "-o", "a.safetensors", *flags)
    assert done.returncode == 0, done.stderr
    assert "a.safetensors: SHA-256" in done.stdout
    assert "is written as --keep asks, but on held-out classes" in done.stderr


def test_an_interrupted_training_says_what_is_kept(shoal: Run, data: Path, tmp_path: Path) -> None:
    command = ["train", data, "-o", "m.safetensors", "--hidden", "32", "--kind", "lander"]
    with subprocess.Popen(
        warm_command(*command, "--minutes", "5"),
        stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment(),
    ) as running:  # fmt: skip
        assert running.stderr
        running.stderr.readline()
        running.send_signal(signal.SIGINT)
        said = running.stderr.read().splitlines()[-1]
    assert running.returncode == 130
    checkpoint = tmp_path / "m.checkpoint"
    kept = checkpoint.exists()  # on a slow machine one is written before the first report
    told = (
        "with --resume goes on from m.checkpoint." if kept else "No checkpoint was due yet: nothing is kept."
    )
    assert said.startswith("shoal: stopped by SIGINT. ")
    assert said.endswith(told)
    checkpoint.write_bytes(checkpoint.read_bytes() if kept else b"another training's")
    before = checkpoint.read_bytes()
    done = shoal(*command)
    assert done.returncode == 3
    assert "m.checkpoint is left by an interrupted training" in done.stderr
    assert checkpoint.read_bytes() == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that takes no file")
@pytest.mark.parametrize(
    "command", [("train", "-o"), ("adapt", "-o"), ("evaluate", "--png"), ("opis", "--png")]
)
def test_a_folder_that_takes_no_file_is_told_before_the_work(
    shoal: Run, data: Path, command: tuple[str, str]
) -> None:
    done = shoal(command[0], data, command[1], "/proc/self/made")
    refused(done, 3, "/proc/self/made cannot be written: ")
    assert done.stdout == ""


def test_what_cannot_be_written_after_all_is_one_sentence(tmp_path: Path) -> None:
    model = random_lander(1, 16)
    (tmp_path / "m.json").mkdir()
    for write in (
        lambda: model.save(tmp_path / "none" / "m.safetensors"),
        lambda: model.save(tmp_path / "m.safetensors"),
        lambda: checkpoint.save(tmp_path / "none" / "m.checkpoint", {}),
    ):
        with pytest.raises(InputError, match=r"cannot be written: .*\.$"):
            write()
