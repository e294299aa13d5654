"""`shoal opis`, `adapt` and `encode` as a user sees them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from engine.errors import InputError
from engine.learning.encoder import Encoder, train_encoder
from engine.learning.networks import KINDS
from engine.learning.pictures import Pictures, read_pictures
from engine.learning.training import Plan
from engine.model.adapter import Adapter
from engine.vectors import quantize
from tests.cli.test_cli import refused
from tests.conftest import Run
from tests.support.random_models import random_lander


def labelled(path: Path, seed: int = 0, classes: int = 12, each: int = 12) -> Path:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    spread = rng.uniform(0.2, 1.2, classes)[labels][:, None]
    emb = rng.normal(size=(classes, 16))[labels] + spread * rng.normal(size=(len(labels), 16))
    np.savez(
        path,
        emb=emb.astype(np.float32),
        labels=labels,
        label_names=np.array([f"kind {c}" for c in range(classes)]),
    )
    return path


def test_opis_prints_figures_and_draws(shoal: Run, tmp_path: Path) -> None:
    file = labelled(tmp_path / "set.npz")
    told = shoal("opis", file, "--json", "--png", "curves.png", "--epsilon", "0.2")
    assert told.returncode == 0, told.stderr
    figures = json.loads(told.stdout)
    assert {"opis", "opis_worst", "recall_at_1", "range"} <= figures.keys()
    assert figures["errors"] is None
    low, high = figures["range"]
    assert low <= figures["recommended"]["threshold"] <= high
    assert 0.009 < figures["recommended"]["false_acceptance"] < 0.11
    assert figures["worst"][0]["class"].startswith("kind ")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    words = shoal("opis", file, "--range", 0.2, 0.4)
    assert words.returncode == 0, words.stderr
    assert "0.2000 to 0.4000" in words.stdout
    assert words.stdout.count("kind ") == 10


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--range", "0.5", "0.2"), "calibration range"),
        (("--range", "0.5", "0.5"), "calibration range"),
        (("--rates", "0.1", "0.01"), "false-acceptance rates"),
        (("--epsilon", "2"), "epsilon"),
    ],
)
def test_opis_refuses_what_cannot_be(
    shoal: Run, tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    told = shoal("opis", labelled(tmp_path / "set.npz"), *arguments)
    assert told.returncode == 3
    assert told.stderr.startswith("shoal: ")
    assert reason in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1


def test_opis_and_adapt_take_what_can_be_ingested(shoal: Run, tmp_path: Path) -> None:
    """The same figures of an .npz and of its records as lines; what is left out is told."""
    arrays = np.load(labelled(tmp_path / "set.npz", classes=30, each=8))
    rows = zip(arrays["emb"].tolist(), arrays["label_names"][arrays["labels"]].tolist(), strict=True)
    lines = [json.dumps({"key": at, "embedding": emb, "label": name}) for at, (emb, name) in enumerate(rows)]
    lines.append(json.dumps({"key": "zero", "embedding": [0.0] * 16, "label": "kind 0"}))
    (tmp_path / "set.jsonl").write_text("\n".join(lines))
    np.savez(tmp_path / "named.npz", emb=arrays["emb"], labels=arrays["label_names"][arrays["labels"]])
    of_lines, of_arrays = (shoal("opis", tmp_path / name, "--json") for name in ("set.jsonl", "named.npz"))
    assert of_lines.returncode == 0, of_lines.stderr
    assert "left out 1 record that cannot be used" in of_lines.stderr
    assert json.loads(of_lines.stdout) == json.loads(of_arrays.stdout)
    fast = "--dim", 8, "--steps", 5, "--loss", "SupConLoss", "--tcm", 0, "--keep"
    told = shoal("adapt", tmp_path / "set.jsonl", "-o", "a.safetensors", *fast)
    assert told.returncode == 0, told.stderr
    (tmp_path / "bare.jsonl").write_text(json.dumps({"key": 1, "embedding": [1.0, 0.0]}))
    refused(shoal("opis", tmp_path / "bare.jsonl"), 3, "line 1 has no label")


def test_opis_of_a_store_is_that_of_the_file(shoal: Run, tmp_path: Path) -> None:
    file = labelled(tmp_path / "set.npz")
    assert shoal("ingest", file).returncode == 0
    of_file, of_store = (
        json.loads(shoal("opis", *place, "--json", "--range", 0.3, 0.6).stdout)
        for place in ((file,), ("--store", "shoal-store"))
    )
    assert of_store["items"] == of_file["items"] == 144
    assert of_store["opis"] == pytest.approx(of_file["opis"], rel=1e-3)  # the store's vectors are rounded
    assert {each["class"] for each in of_store["worst"]} <= {f"kind {c}" for c in range(12)}
    for arguments, reason in (
        ((), "name either a labelled file, or a store"),
        (("set.npz", "--store", "shoal-store"), "name either a labelled file, or a store"),
        (("--store", "shoal-store", "--label", "x"), "field x"),
    ):
        told = shoal("opis", *arguments)
        assert told.returncode == 3
        assert reason in told.stderr


def test_opis_without_matplotlib_says_what_to_install(shoal: Run, tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "matplotlib.py").write_text("raise ImportError('none here')\n")
    file = labelled(tmp_path / "set.npz")
    told = shoal(
        "opis",
        file,
        "--png",
        "curves.png",
        env={"PYTHONPATH": f"{tmp_path / 'without'}:{Path(__file__).parents[2]}"},
    )
    assert told.returncode == 3
    assert "pip install 'shoal[plots]'" in told.stderr
    assert not (tmp_path / "curves.png").exists()
    assert shoal("opis", tmp_path / "set.npz").returncode == 0


def test_adapt_writes_what_helps_and_refuses_what_does_not(shoal: Run, tmp_path: Path) -> None:
    file = labelled(tmp_path / "set.npz", classes=30)
    fast = "--steps", 30, "--dim", 8, "--loss", "SupConLoss"
    told = shoal("adapt", file, "-o", "a.safetensors", *fast, "--json", "--keep")
    assert told.returncode == 0, told.stderr
    figures = json.loads(told.stdout)
    assert figures["before"].keys() == figures["after"].keys() == {
        "opis", "opis_worst", "recall_at_1", "Fp", "Fb", "NMI",
    }  # fmt: skip
    assert figures["recommended"] == (not figures["drawbacks"])
    assert Adapter.load(tmp_path / "a.safetensors").sha256 == figures["sha256"]
    # Two components cannot hold 16 of noise apart.
    worse = shoal("adapt", file, "-o", "b.safetensors", "--steps", 2, "--dim", 2, "--loss", "SupConLoss")
    assert worse.returncode == 3
    assert "b.safetensors is not written: on held-out classes" in worse.stderr
    assert not (tmp_path / "b.safetensors").exists()


def test_an_adapter_maps_a_file(shoal: Run, tmp_path: Path) -> None:
    file = labelled(tmp_path / "set.npz")
    adapter = Adapter.of({"direct": np.random.default_rng(0).normal(size=(16, 5)), "bias": np.zeros(5)}, {})
    adapter.save(tmp_path / "a.safetensors")
    told = shoal("encode", "adapt", "a.safetensors", file, "-o", "out.npz")
    assert told.returncode == 0, told.stderr
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found, np.load(file) as given:
        np.testing.assert_array_equal(found["labels"], given["labels"])
        np.testing.assert_array_equal(quantize(found["emb"])[0], adapter.apply(quantize(given["emb"])[0]))
    np.savez(tmp_path / "five.npz", emb=np.eye(5), labels=np.zeros(5, int))
    told = shoal("encode", "adapt", "a.safetensors", "five.npz", "-o", "none.npz")
    assert told.returncode == 3
    assert "takes embeddings of 16 components, these have 5" in told.stderr
    assert not (tmp_path / "none.npz").exists()


BAD_ADAPT = {
    "is no loss": ("--loss", "NoLoss"),
    "an adapter is": ("--kind", "cubic"),
    "margins are": ("--margins", "2", "0"),
    "is not a folder": ("-o", "nowhere/a.safetensors"),
    "too few": ("--held-out", "0.1"),
}


@pytest.mark.parametrize("reason", BAD_ADAPT)
def test_adapt_refuses_what_cannot_be(shoal: Run, tmp_path: Path, reason: str) -> None:
    told = shoal(
        "adapt", labelled(tmp_path / "set.npz"), "-o", "a.safetensors", "--steps", 2, *BAD_ADAPT[reason]
    )
    assert told.returncode == 3, told.stderr
    assert reason in told.stderr
    assert not (tmp_path / "a.safetensors").exists()


def test_adapt_refuses_two_spaces(shoal: Run, tmp_path: Path) -> None:
    one = labelled(tmp_path / "one.npz")
    np.savez(
        tmp_path / "two.npz", emb=np.random.default_rng(0).normal(size=(20, 5)), labels=np.arange(20) // 2
    )
    told = shoal("adapt", one, tmp_path / "two.npz", "-o", "a.safetensors")
    assert told.returncode == 3
    assert "5 components" in told.stderr


def test_pictures_become_embeddings_that_ingest_takes(shoal: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "seen.npz", **pictures(range(5)))
    np.savez(tmp_path / "new.npz", **pictures(range(5, 10)))
    made = shoal("encode", "train", "seen.npz", "-o", "encoder.safetensors", "--steps", 12, "--dim", 16)
    assert made.returncode == 0, made.stderr
    told = shoal("encode", "apply", "encoder.safetensors", "new.npz", "-o", "new-emb.npz")
    assert told.returncode == 0, told.stderr
    with np.load(tmp_path / "new-emb.npz", allow_pickle=False) as found:
        assert found["emb"].shape == (200, 16)
        assert found["labels"].shape == (200,)
    assert shoal("ingest", "new-emb.npz").returncode == 0
    assert json.loads(shoal("query", "0", "--json").stdout)["key"] == "0"


def test_a_folder_of_pictures_is_read_by_class(tmp_path: Path) -> None:
    arrays = pictures(range(3))
    for row, (image, label) in enumerate(zip(arrays["images"], arrays["labels"], strict=True)):
        folder = tmp_path / "set" / f"digit {label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((20, 24)).save(folder / f"{row:03}.png")
    found = read_pictures(tmp_path / "set")
    assert found.grey.shape == (120, 28, 28)
    assert found.label_names is not None
    assert [found.label_names[c] for c in (0, 2)] == ["digit 0", "digit 2"]
    assert found.keys[0] == "digit 0/000.png"
    (tmp_path / "set" / "digit 0" / "000.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"000\.png is no picture"):
        read_pictures(tmp_path / "set")


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_is_the_same_after_reading(kind: str, tmp_path: Path) -> None:
    arrays = pictures(range(3))
    set_ = Pictures(arrays["images"].astype(np.float32) / 255, arrays["labels"], None, ())
    made, _ = train_encoder(set_, kind, 8, Plan(steps=2, batch=24))
    made.save(tmp_path / "e.safetensors")
    np.testing.assert_array_equal(
        Encoder.load(tmp_path / "e.safetensors").apply(set_.grey), made.apply(set_.grey)
    )
    with pytest.raises(InputError, match="pictures of 28 pixels"):
        made.apply(np.zeros((1, 9, 9), np.float32))
    (tmp_path / "e.safetensors").write_bytes((tmp_path / "e.safetensors").read_bytes()[:-9])
    with pytest.raises(InputError, match="is no encoder"):
        Encoder.load(tmp_path / "e.safetensors")


BAD_PICTURES = {
    "no array images": {"emb": np.eye(3)},
    "of the shape": {"images": np.zeros((3, 4))},
    "labels must be 3": {"images": np.ones((3, 9, 9)), "labels": np.zeros(2, int)},
    "NaN": {"images": np.full((3, 9, 9), np.nan)},
    "one class": {"images": np.ones((3, 9, 9)), "labels": np.zeros(3, int)},
    "one picture": {"images": np.ones((3, 9, 9)), "labels": np.arange(3)},
    "no labels": {"images": np.ones((3, 9, 9))},
    "pixels": {"images": np.ones((3, 2, 2)), "labels": np.array([0, 0, 1])},
}


@pytest.mark.parametrize("reason", BAD_PICTURES)
def test_pictures_that_are_none_are_refused(reason: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **BAD_PICTURES[reason])
    with pytest.raises(InputError, match=reason):
        _ = read_pictures(tmp_path / "bad.npz").classes


def test_an_empty_folder_and_an_adapter_are_no_input(shoal: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    told = shoal("encode", "train", "empty", "-o", "e.safetensors")
    assert told.returncode == 3
    assert "has no pictures" in told.stderr
    Adapter.of({"direct": np.eye(3), "bias": np.zeros(3)}, {}).save(tmp_path / "a.safetensors")
    told = shoal("encode", "apply", "a.safetensors", "empty", "-o", "x.npz")
    assert told.returncode == 3
    assert "is no encoder" in told.stderr


def pictures(digits: range) -> dict[str, Any]:
    """Forty handwritten digits of each kind, 28 pixels a side."""
    found = load_digits()
    rows = np.concatenate([np.flatnonzero(found.target == digit)[:40] for digit in digits])
    images = (found.images[rows].repeat(3, axis=1).repeat(3, axis=2) * 15.9).astype(np.uint8)
    return {"images": np.pad(images, ((0, 0), (2, 2), (2, 2))), "labels": found.target[rows]}


def test_a_model_is_neither_an_adapter_nor_an_encoder(shoal: Run, tmp_path: Path) -> None:
    random_lander(1, 16).save(tmp_path / "l.safetensors")
    np.savez(tmp_path / "a.npz", emb=np.eye(16), labels=np.arange(16) // 2, images=np.zeros((16, 8, 8)))
    for kind in ("apply", "adapt"):
        done = shoal("encode", kind, "l.safetensors", "a.npz", "-o", "x.npz")
        refused(done, 3, "l.safetensors is no ", " of Shoal: it has no card of an ")
        assert "__metadata__" not in done.stderr
