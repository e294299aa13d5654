"""`shoal train --kind lander`, and its model in use."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.model.lander import LanderModel
from engine.model.linkage import LinkageModel
from tests.cli.test_cli import mixture, refused
from tests.conftest import Run
from tests.finetuning.test_space import spread


def test_train_a_lander_and_use_it(tmp_path: Path, shoal: Run) -> None:
    emb, labels = mixture()
    emb[1] = emb[0]
    labels[1] = 1 - labels[0] if labels[0] < 2 else 0
    np.savez(tmp_path / "data.npz", emb=emb, labels=labels)
    lander = ("train", "--kind", "lander", "data.npz", "-o", "lander.safetensors")
    done = shoal(*lander, "--minutes", "0.01", "--hidden", "32", "--variant", "gat")
    assert done.returncode == 0, done.stderr
    assert "lander.safetensors: k 10" in done.stdout
    assert "replaced" not in done.stdout
    assert "100%" in done.stderr
    assert " s left" in done.stderr
    assert "data has 1 vector with several labels" in done.stderr
    report = (tmp_path / "lander.md").read_text()
    for words in ("| data.npz | training |", "300 | 30 | 16 |", "## Held out", "- seed: 0", "![Loss"):
        assert words in report
    assert (tmp_path / "lander.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "lander.checkpoint").exists()
    done = shoal("ingest", "data.npz", "-m", "lander.safetensors")
    assert done.returncode == 0, done.stderr
    np.savez(tmp_path / "narrow.npz", emb=emb[:, :7], labels=labels)
    done = shoal("ingest", "narrow.npz", "-m", "lander.safetensors", "--store", "other")
    assert done.returncode == 3
    assert "The model is bound to one embedding space, of 16 dimensions." in done.stderr.splitlines()[-1]
    assert shoal("evaluate", "data.npz", "-m", "lander.safetensors").returncode == 0
    wanted = "the model takes embeddings of 16 components, these have 7"
    refused(shoal("evaluate", "narrow.npz", "-m", "lander.safetensors"), 3, wanted)
    (tmp_path / "copy.npz").write_bytes((tmp_path / "data.npz").read_bytes())
    refused(shoal(*lander, "--choose", "copy.npz"), 3, "copy.npz and data.npz are the same data")
    refused(shoal(*lander, "--kind", "other"), 3, "universal, lander", "'other'")
    weighed = ("--begin", "random", "--focal", "2", "--balance", "--steps", "2")
    done = shoal(*lander[:-1], "weighed.safetensors", *weighed)
    assert done.returncode == 0, done.stderr
    plan = LanderModel.load(tmp_path / "weighed.safetensors").card.about["plan"]
    assert (plan["focal"], plan["balance"]) == (2.0, True)
    for flags, words in (
        (("--variant", "conv"), "one of mean, gat, not 'conv'"),
        (("--hidden", "8"), "name --hidden 16 or more"),
        (("--begin", "zero"), "begins with one of metric, random, not 'zero'"),
        (("--teacher", "lander.safetensors"), "--base and --teacher are universal's"),
        (("--start", "data.npz"), "data.npz"),
        (
            ("--resume",),
            "there is no checkpoint lander.checkpoint: the training is finished, or was never begun",
        ),
    ):
        done = shoal(*lander, *flags)
        assert done.returncode == 3
        assert words in done.stderr.splitlines()[-1]
        assert "step" not in done.stderr  # before the work, not after it
    done = shoal("train", "data.npz", "-o", "u.safetensors", "--resume")
    assert "there is no checkpoint u.checkpoint" in done.stderr.splitlines()[-1]


def test_fine_tune_on_a_few_classes_among_others(tmp_path: Path, shoal: Run) -> None:
    emb, labels = mixture()
    few = labels < 8
    np.savez(tmp_path / "few.npz", emb=emb[few], labels=labels[few])
    np.savez(tmp_path / "all.npz", emb=emb, labels=labels)
    command = ("train", "few.npz", "--start", "universal", "-o", "mine.safetensors")
    done = shoal(*command, "--among", "all.npz", "--steps", "8")
    assert done.returncode == 0, done.stderr
    said = next(line for line in done.stderr.splitlines() if "F of held-out classes" in line)
    assert ("is kept unchanged" in said) != ("is taken" in said)
    report = (tmp_path / "mine.md").read_text()
    assert said.removeprefix("shoal: ") in report
    assert "| all.npz |" in report
    assert shoal("evaluate", "all.npz", "-m", "mine.safetensors").returncode == 0
    for flags, words in (
        (("--teacher", "universal"), "name no --base, --teacher or --hidden"),
        (("--start", "none.safetensors"), "none.safetensors cannot be read"),
        (("--resume",), "there is no checkpoint mine.checkpoint"),
    ):
        refused(shoal(*command, *flags), 3, words)
    refused(shoal("train", "few.npz", "-o", "x.safetensors", "--among", "all.npz"), 3, "--start")


def test_a_space_is_learned(tmp_path: Path, shoal: Run) -> None:
    source = spread(0)
    np.savez(tmp_path / "many.npz", emb=source.emb, labels=source.labels)
    command = ("train", "many.npz", "-o", "mine.safetensors", "--space")
    refused(shoal(*command), 3, "--start")
    refused(shoal("train", "many.npz", "-o", "x.safetensors", "--adapter", "a"), 3, "--space")
    lander = ("train", "many.npz", "--kind", "lander", "-o", "x.safetensors", "--adapter", "a.safetensors")
    refused(shoal(*lander, "--begin", "random"), 3, "begins with a metric")
    refused(shoal(*command, "--start", "universal", "--teacher", "universal"), 3, "--teacher")
    refused(shoal(*command, "--start", "universal", "--adapter", "none/a.safetensors"), 3, "none")
    done = shoal(*command, "--start", "universal", "--steps", "8", "--adapter", "a.safetensors")
    assert done.returncode == 0, done.stderr
    about = LinkageModel.load(tmp_path / "mine.safetensors").card.about
    assert f"shoal: {about['said']}" in done.stderr
    assert not (tmp_path / "mine.checkpoint").exists()
    refused(shoal("evaluate", "many.npz", "-m", "mine.safetensors"), 3, "trained behind the adapter")
    out = ("-o", "x.safetensors")
    refused(shoal("train", "many.npz", "--start", "mine.safetensors", *out), 3, "behind an adapter")
    began = ("train", "many.npz", "--start", "universal", "--space")
    for flags, words in (
        (("-o", "many.npz"), "many.npz is read or written by this command already"),
        ((*out, "--adapter", "x.safetensors"), "x.safetensors is read or written by this command already"),
        ((*out, "--adapter", "x.json"), "x.json is read or written"),
        (("-o", "."), "is a folder"),
        ((*out, "--steps", "3", "--minutes", "1"), "name one"),
        ((*out, "--among", "many.npz"), "without --space"),
    ):
        refused(shoal(*began, *flags), 3, words)
    assert shoal(*began, *out, "--seed", "-1").returncode == 2
    (tmp_path / "mine.toml").write_text('[model]\npath = "mine.safetensors"\nadapter = "a.safetensors"\n')
    done = shoal("evaluate", "many.npz", "-c", "mine.toml")
    assert done.returncode == 0, done.stderr
