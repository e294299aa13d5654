"""From labelled embeddings to an adapter, and a store that applies it, as a user goes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from engine.model.adapter import Adapter
from engine.model.linkage import PRETRAINED
from tests.conftest import Run

SHIPPED = {"SHOAL_MODEL__PATH": str(PRETRAINED)}  # random weights say nothing of an embedding space


def nuisance(path: Path, seed: int = 0, classes: int = 60, each: int = 20) -> Path:
    """Half of the components tell the classes apart, half are noise, more of it in some classes."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    spread = rng.uniform(0.3, 1.2, classes)[labels][:, None]
    told = rng.normal(size=(classes, 8))[labels] + 0.25 * rng.normal(size=(len(labels), 8))
    emb = np.concatenate([told, spread * rng.normal(size=(len(labels), 8))], axis=1)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(16, 16)))[0]
    np.savez(path, emb=(emb @ turn).astype(np.float32), labels=labels)
    return path


def test_adapt_finds_what_tells_classes_apart(shoal: Run, tmp_path: Path, long: bool) -> None:
    """By default of two margins and three losses, with --search of six margins.

    Two of four learn to the end; of the others the short form only sees what they try and write.
    """
    full, small = nuisance(tmp_path / "set.npz"), nuisance(tmp_path / "small.npz", classes=30, each=8)
    to_the_end, begun = (full, "--steps", 100), (small, "--steps", 5, "--keep")
    for more, tried, how in (
        ((), 6, to_the_end if long else begun),
        (("--loss", "SupConLoss", "--search"), 6, to_the_end if long else begun),
        (("--loss", "SupConLoss"), 2, to_the_end),
        (("--loss", "SupConLoss", "--tcm", 0), 1, to_the_end),
    ):
        told = shoal("adapt", *how, "-o", "a.safetensors", "--dim", 8, "--json", *more, env=SHIPPED)
        assert told.returncode == 0, told.stderr
        assert told.stderr.count("Loss") == tried
        found = json.loads(told.stdout)
        assert (found["margins"] is None) == (more[-1:] == (0,))
        assert Adapter.load(tmp_path / "a.safetensors").sha256 == found["sha256"]
        if how is to_the_end:
            assert found["recommended"]
            assert found["after"]["opis"] < found["before"]["opis"] / 2
            assert found["after"]["recall_at_1"] >= found["before"]["recall_at_1"]


def test_a_store_with_an_adapter_from_ingest_to_rebuild(shoal: Run, tmp_path: Path) -> None:
    file = nuisance(tmp_path / "set.npz", classes=30, each=10)
    fast = "--dim", 8, "--steps", 40, "--loss", "SupConLoss", "--tcm", 0, "--keep"
    assert shoal("adapt", file, "-o", "one.safetensors", *fast).returncode == 0
    assert shoal("adapt", file, "-o", "two.safetensors", *fast, "--seed", 1).returncode == 0
    Path(tmp_path / "shoal.toml").write_text('[model]\nadapter = "one.safetensors"\n')
    two = {"SHOAL_MODEL__ADAPTER": "two.safetensors"}
    assert shoal("ingest", "-c", "shoal.toml", file).returncode == 0

    assert shoal("encode", "adapt", "one.safetensors", file, "-o", "adapted.npz").returncode == 0
    of_store, of_file = (
        json.loads(shoal("opis", *place, "--json").stdout)
        for place in (("--store", "shoal-store"), ("adapted.npz",))
    )
    assert of_store["opis"] == pytest.approx(of_file["opis"], rel=1e-2)  # rounded to the grid once more

    for refused in (
        shoal("ingest", file),
        shoal("ingest", file, env=two),
        shoal("serve", "--check", env=two),
    ):
        assert refused.returncode == 9
        assert "the adapter" in refused.stderr
        assert "shoal rebuild" in refused.stderr
        assert refused.stderr.count("\n") == 1
    checked = shoal("check", "-c", "shoal.toml", "--json")
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)["version"] == 1
    assert "adapted vectors" in json.loads(checked.stdout)["looked_at"]

    assert shoal("rebuild", env=two).returncode == 0
    assert shoal("check", env=two).returncode == 0
    assert shoal("ingest", "-c", "shoal.toml", file).returncode == 9
    back = shoal("rebuild", env={"SHOAL_MODEL__ADAPTER": ""})
    assert re.search(r"Changed: adapter [0-9a-f]{16}\.\.\. -> none", back.stdout)
    assert json.loads(shoal("check", "--json").stdout)["version"] == 3
    plain = [
        json.loads(shoal("opis", *place, "--json").stdout)["opis"]
        for place in ((file,), ("--store", "shoal-store"))
    ]
    assert plain[0] == pytest.approx(plain[1], rel=1e-3)


def test_an_adapter_that_does_not_fit_the_store_is_one_sentence(shoal: Run, tmp_path: Path) -> None:
    file = nuisance(tmp_path / "set.npz", classes=4)
    assert shoal("ingest", file).returncode == 0
    before = json.loads(shoal("check", "--json").stdout)["version"]
    Adapter.of({"direct": np.eye(9, 4), "bias": np.zeros(4)}, {}).save(tmp_path / "nine.safetensors")
    raw = (tmp_path / "nine.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(raw[:-40])
    for name, reason in (
        ("nine", "the adapter takes embeddings of 9 components, the collection's have 16"),
        ("short", "is no adapter of Shoal, or it is damaged"),
        ("none", "cannot be read: No such file"),
    ):
        told = shoal("rebuild", env={"SHOAL_MODEL__ADAPTER": f"{name}.safetensors"})
        assert told.returncode == 3
        assert reason in told.stderr
        assert told.stderr.count("\n") == 1
    found = json.loads(shoal("check", "--json").stdout)
    assert (found["version"], found["ok"]) == (before, True)
