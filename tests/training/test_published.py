"""Weights trained with the authors' code come over by name; nothing but tensors is unpickled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.clustering.level import Shape
from engine.errors import InputError
from engine.evaluation import scores
from engine.evaluation.bulk import hierarchy, partitions
from engine.model.lander import LanderModel
from engine.training.lander.published import model_of, read
from engine.vectors import quantize
from tests.conftest import Run
from tests.support import plain_lander, reference
from tests.support.random_models import random_lander

TAU, LEVELS = 0.6, 4


def authors(path: Path, **card: object) -> LanderModel:
    """A file as their code saves it, and the model that it is."""
    model = random_lander(4, 16, 5, hidden=12, **card)
    torch.save(dict(model.weights), path)
    return model


@pytest.mark.parametrize("card", [
    {"variant": "mean"}, {"variant": "mean", "average": False},
    {"variant": "gat"}, {"variant": "gat", "heads": 3, "average": False},
], ids=str)  # fmt: skip
def test_weights_come_over(tmp_path: Path, shoal: Run, card: dict[str, object]) -> None:
    wanted = authors(tmp_path / "authors.pth", **card)
    flags = [] if card.get("average", True) else ["--no-average"]
    done = shoal("model", "import", "authors.pth", "-o", "m.safetensors", "--k", "5", *flags)
    assert done.returncode == 0, done.stderr
    assert f"{wanted.card.variant}, embeddings of 16 components, hidden 12, k 5" in done.stdout
    assert LanderModel.load(tmp_path / "m.safetensors").sha256 == wanted.sha256


@pytest.mark.parametrize(("variant", "shift"), [("mean", 0.0), ("gat", 8.0)])
def test_the_whole_clustering_agrees_with_plain_code(tmp_path: Path, variant: str, shift: float) -> None:
    """2,000 items, their decoding rule and tau: a denser neighbour of greatest p above tau."""
    authors(tmp_path / "authors.pth", variant=variant)
    weights = read(tmp_path / "authors.pth")
    weights["classifier_conn.3.bias"] += torch.tensor([shift, 0.0])  # or all would be one cluster
    model = model_of(weights, True, 5, TAU, LEVELS)
    rng = np.random.default_rng(3)
    emb = rng.normal(size=(150, 16))[rng.integers(0, 150, 2000)] + 0.3 * rng.normal(size=(2000, 16))
    found = partitions(hierarchy(emb.astype(np.float32), model, TAU, LEVELS))[-1]
    plain = plain_clusters(model, emb)
    assert 20 < len(np.unique(plain)) < 1900
    assert scores.ari(plain, found) > 0.999


def plain_clusters(model: LanderModel, emb: np.ndarray) -> np.ndarray:
    """The cluster of each item by `plain_lander`, and by loops over nodes."""
    grid = quantize(emb)[0]
    place, nodes = np.arange(len(grid)), np.arange(len(grid))
    hashes = np.arange(len(grid)).astype(np.uint64)
    shape = Shape(dim=16, k=5, tau=TAU, max_levels=LEVELS)
    for level in range(LEVELS):
        mean = [reference.rounded_mean(grid[place == row]) for row in range(len(nodes))] if level else None
        graph = reference._graph(
            grid[nodes], hashes[nodes], None if mean is None else np.array(mean, np.int16),
            [[0]] * len(nodes), shape,
        )  # fmt: skip
        p, density = plain_lander.answers(model, graph)
        parent = np.arange(len(nodes))
        for row in range(len(nodes)):
            best = TAU
            for other, probability in zip(graph.neighbors[row].tolist(), p[row], strict=False):
                if density[other] > density[row] and probability > best:
                    parent[row], best = other, probability
        root = parent.copy()
        while (root != parent[root]).any():
            root = parent[root]
        peaks = np.unique(root)
        if len(peaks) == len(nodes):
            break
        place, nodes = np.searchsorted(peaks, root[place]), nodes[peaks]
    return place


def test_files_that_are_no_weights_are_refused(tmp_path: Path, shoal: Run) -> None:
    def refused(words: str, *flags: str) -> None:
        done = shoal("model", "import", "authors.pth", "-o", "m.safetensors", *flags)
        assert done.returncode == 3, done.stdout
        assert done.stderr.startswith("shoal: ")
        assert done.stderr.count("\n") == 1
        assert words in done.stderr
        assert not (tmp_path / "m.safetensors").exists()

    file = tmp_path / "authors.pth"
    refused("cannot be read: No such file")
    model = authors(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused("damaged")
    file.write_bytes(b"")
    refused("damaged")
    marker = tmp_path / "ran"
    torch.save(Runs(marker), file)
    refused("not of tensors alone")
    assert not marker.exists()
    torch.save([torch.zeros(2)], file)
    refused("holds no state dict")
    torch.save({"weight": torch.zeros(2)}, file)
    refused("the weights are no lander")
    torch.save({**model.weights, "extra": torch.zeros(2)}, file)
    refused("not those of a `mean` lander: extra too many")
    torch.save({name: each for name, each in model.weights.items() if name != "src_mlp.bias"}, file)
    refused("not those of a `mean` lander: src_mlp.bias missing")
    torch.save({**model.weights, "conv.1.gcn_layer.mlp.weight": torch.zeros(2, 2)}, file)
    refused("2 graph convolutions; Shoal runs one")
    torch.save({**model.weights, "src_mlp.weight": torch.zeros(2, 2)}, file)
    refused("src_mlp.weight has the shape (2, 2)")
    layer = "conv.0.gcn_layer.mlp.weight"
    torch.save({**model.weights, layer: model.weights[layer].ravel()}, file)
    refused(f"{layer} is a matrix, but here has the shape")
    torch.save({**model.weights, layer: model.weights[layer].int()}, file)
    refused(f"{layer} holds torch.int32")
    sparse = {name: each.to_sparse() if each.dim() == 2 else each for name, each in model.weights.items()}
    torch.save(sparse, file)
    assert model_of(read(file), True, 10, 0.8, 1).weights.keys() == model.weights.keys()
    torch.save(dict(random_lander(1, 5, hidden=4, average=False).weights), file)
    refused("5 features, which are no two vectors")
    authors(file)
    refused("tau is in", "--tau", "1.5")
    refused("a model has at most 32 levels, not 1,000", "--levels", "1000")
    assert shoal("model", "import", "authors.pth", "-o", "no/m.safetensors").returncode == 3


class Runs:
    """Unpickling it would write a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.marker,)  # type: ignore[return-value]


def test_a_checkpoint_and_a_wrapped_model_are_unwrapped(tmp_path: Path) -> None:
    weights = {"a.weight": torch.ones(2), "module.b": torch.zeros(1)}
    wrapped = {f"module.{name}": each for name, each in weights.items()}
    for saved in (weights, wrapped, {"state_dict": weights, "epoch": 3}, {"state_dict": wrapped}):
        torch.save(saved, tmp_path / "a.pth")
        assert read(tmp_path / "a.pth").keys() == weights.keys()


def test_read_takes_tensors_alone(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="no state dict"):
        read(tmp_path / "a.pth")
