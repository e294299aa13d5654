"""`shoal opis`, `adapt` and `encode` as a user sees them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Run


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


def test_opis_without_matplotlib_says_what_to_install(shoal: Run, tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('none here')\n")
    file = labelled(tmp_path / "set.npz")
    told = shoal(
        "opis", file, "--png", "curves.png", env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    )
    assert told.returncode == 3
    assert "pip install 'shoal[plots]'" in told.stderr
    assert not (tmp_path / "curves.png").exists()
    assert shoal("opis", tmp_path / "set.npz").returncode == 0
