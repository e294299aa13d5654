"""Every labelled file can be trained on: pictures of any shape, texts without words; odd labels are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from connectors.files.labelled import read_labelled
from engine.training.datasets import Collection, collection_of, label_warnings, other_embeddings, unit


def file_of(path: Path, **more: np.ndarray) -> Path:
    rng = np.random.default_rng(1)
    np.savez(path, emb=rng.normal(size=(30, 6)).astype(np.float32), labels=np.arange(30) % 5, **more)
    return path


def again(path: Path) -> list[Collection]:
    file = read_labelled(path)
    return other_embeddings(collection_of(path.stem, file), file, 0)


@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (20, 30, 3), (5, 40), (64, 64, 4)])
def test_pictures_of_any_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Five classes: fewer than are drawn from large files."""
    images = np.random.default_rng(2).integers(0, 255, (30, *shape)).astype(np.uint8)
    file = file_of(tmp_path / "a.npz", images=images)
    made = again(file)
    assert [each.emb.shape[1] for each in made] == [64, 196]
    for each in made:
        assert np.isfinite(each.emb).all()
        assert set(each.labels) == set(range(5))
        assert each.emb.std() > 1.0


def test_what_is_no_picture_or_no_text_is_not_embedded_again(tmp_path: Path) -> None:
    flat = file_of(tmp_path / "flat.npz", images=np.ones((30, 9), np.uint8))
    assert again(flat) == []
    silent = file_of(tmp_path / "silent.npz", text=np.array([" "] * 30))
    assert again(silent) == []


def test_odd_labels_are_told() -> None:
    emb = np.random.default_rng(3).normal(size=(12, 4)).astype(np.float32)
    emb[5] = emb[4]
    labels = np.array([0, 0, 1, 1, 2, 3, 3, 4, 4, 4, 5, 5])
    assert label_warnings(Collection("a", emb, labels)) == [
        "a has 1 class of one item",
        "a has 1 vector with several labels",
    ]
    assert label_warnings(Collection("b", emb[:4], labels[:4])) == []
    assert label_warnings(Collection("c", emb[:2], labels[:2])) == ["c has one class only"]


@pytest.mark.parametrize("length", [1e-300, 1e-30, 1e-7, 1e30, 1e200])
@pytest.mark.filterwarnings("error")
def test_directions_count_whatever_the_length(tmp_path: Path, length: float) -> None:
    emb = np.random.default_rng(1).normal(size=(30, 6))
    wanted = unit(emb)
    emb[::2] *= length
    np.savez(tmp_path / "a.npz", emb=emb, labels=np.arange(30) % 5)
    read = collection_of("a", read_labelled(tmp_path / "a.npz"))
    for found in (unit(emb), unit(read.emb)):
        assert np.abs(found - wanted).max() < 1e-6
    norms = np.linalg.norm(read.emb, axis=1)
    assert 0.1 < norms.min() <= norms.max() < 100
