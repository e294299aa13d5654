"""`lander` is the paper's network, and its answers are a function of the graph's content, to the bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.clustering import decode
from engine.errors import InputError
from engine.model.lander import BLOCK, LanderCard, LanderModel, shapes
from engine.model.trained import load
from engine.types import Float32, KnnGraph
from tests.model.test_linkage import EPOCH, answers, mixture, renumber
from tests.support import plain_lander
from tests.support.random_models import random_lander, random_model

KINDS: list[dict[str, Any]] = [
    {"variant": "mean", "hidden": 34},
    {"variant": "mean", "hidden": 7, "average": False},
    {"variant": "gat", "hidden": 34},
    {"variant": "gat", "hidden": 12, "heads": 3},
    {"variant": "gat", "hidden": 9, "average": False},
]
DIM = 24


def base(graph: KnnGraph) -> KnnGraph:
    """The same lists as level 0."""
    return replace(graph, mean=graph.identity, is_base=True)


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def model(request: pytest.FixtureRequest) -> LanderModel:
    return random_lander(7, DIM, **request.param)


def test_agrees_with_the_plain_code(model: LanderModel) -> None:
    """Linkage and density, at level 0 and above it, also of nodes without a neighbour."""
    for graph in (mixture(1, 150, DIM), base(mixture(2, 150, DIM)), mixture(3, 1, DIM)):
        _, sources, ranks, p = told(model, graph)
        plain, density = plain_lander.answers(model, graph)
        assert np.abs(np.concatenate(plain) - p).max(initial=0.0) < 1e-5
        linkage = np.zeros(graph.neighbors.shape, np.float32)
        linkage[sources, ranks] = p
        rows = np.arange(len(graph.degree), dtype=np.int32)
        found = decode.densities(rows, graph.k, graph.dots, graph.degree, linkage)
        assert np.abs(found - density).max() < 1e-5


def test_negative_similarities_weigh_nothing() -> None:
    graph = mixture(4, 30, DIM)
    graph = replace(graph, dots=-np.abs(graph.dots))
    model = random_lander(1, DIM)
    plain, _ = plain_lander.answers(model, graph)
    assert np.abs(np.concatenate(plain) - told(model, graph)[3]).max() < 1e-5


def told(model: LanderModel, graph: KnnGraph) -> Any:
    return answers(model, graph)  # type: ignore[arg-type]


@pytest.mark.parametrize("hidden", [6, 128, 512])
@pytest.mark.parametrize("variant", ["mean", "gat"])
def test_same_bits_beside_any_companions_in_any_order(variant: str, hidden: int) -> None:
    rng = np.random.default_rng(hidden)
    model = random_lander(3, 40, hidden=hidden, variant=variant)
    for graph in (mixture(5, 300, 40), base(mixture(6, 300, 40))):
        hidden_all, sources, ranks, p = told(model, graph)
        for size in (1, 2, 37, BLOCK - 1, BLOCK + 1, 300):
            rows = rng.permutation(300)[:size].astype(np.int32)
            assert (model.embed(graph, EPOCH, rows) == hidden_all[rows]).all(), f"{size=}"
            edges = rng.permutation(len(p))[:size]
            again = model.link(graph, EPOCH, hidden_all, sources[edges], ranks[edges])
            assert (again == p[edges]).all(), f"{size=}"


def test_same_bits_under_any_row_numbers(model: LanderModel) -> None:
    graph = mixture(8, 400, DIM)
    hidden, sources, ranks, p = told(model, graph)
    order = np.random.default_rng(8).permutation(len(hidden))
    hidden_too, sources_too, ranks_too, p_too = told(model, renumber(graph, order))
    assert (hidden_too == hidden[order]).all()
    by_edge = dict(zip(zip(sources, ranks, strict=True), p, strict=True))
    assert all(by_edge[order[i], r] == q for i, r, q in zip(sources_too, ranks_too, p_too, strict=True))


def test_same_bits_on_one_thread_and_two() -> None:
    graph, threads = mixture(3, 700, DIM), torch.get_num_threads()
    model = random_lander(2, DIM, hidden=64)
    try:
        torch.set_num_threads(1)
        one = told(model, graph)
        torch.set_num_threads(2)
        two = told(model, graph)
    finally:
        torch.set_num_threads(threads)
    assert (one[0] == two[0]).all()
    assert (one[3] == two[3]).all()


def test_random_landers_are_lively() -> None:
    for kind in KINDS:
        p: Float32 = np.concatenate(
            [told(random_lander(seed, DIM, **kind), mixture(seed, 300, DIM))[3] for seed in range(6)]
        )
        assert 0.1 < (p > 0.5).mean() < 0.9, kind
        assert p.std() > 0.2, kind


def test_saved_and_loaded_is_the_same_model(model: LanderModel, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    model.save(path)
    again = load(path)
    assert isinstance(again, LanderModel)
    assert (again.sha256, again.card) == (model.sha256, model.card)
    graph = mixture(1, 60, DIM)
    assert (told(again, graph)[3] == told(model, graph)[3]).all()


def test_files_of_other_kinds_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    random_lander(1, 8).save(path)
    with pytest.raises(InputError, match="not a Shoal model"):
        type(random_model(1)).load(path)
    random_model(1).save(path)
    assert load(path).sha256 == random_model(1).sha256
    with pytest.raises(InputError, match="not a lander model: it is a universal model"):
        LanderModel.load(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "shoal-lander-9"}, "its format is shoal-lander-9, this version of Shoal reads"),
        ({"dim": 9}, r"mlp.weight has the shape \(16, 32\), a lander of this card has \(16, 36\)"),
        ({"dim": "many"}, "dim of a lander is an integer"),
        ({"k": 0}, "k of a lander is an integer"),
        ({"k": 3}, "SHA-256 differ"),
        ({"variant": "gat"}, "not those of a `gat` lander: .* missing; conv.0.gcn_layer.mlp.* too many"),
        ({"variant": "conv"}, "one of mean, gat, not 'conv'"),
        ({"tau": 1.5}, "tau is in"),
        ({"speed": 1}, "speed"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = tmp_path / "m.safetensors"
    random_lander(1, 8).save(path)
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(card | change))
    with pytest.raises(InputError, match=told):
        load(path)


def test_weights_that_are_damaged_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(InputError, match="cannot be read"):
        load(path)
    model = random_lander(1, 8)
    model.save(path)
    whole = path.read_bytes()
    for damaged in (whole[:-7], b"", b"\x80\x04pickle"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="not a lander model"):
            load(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="SHA-256"):
        load(path)
    path.with_suffix(".json").write_text("[]")
    with pytest.raises(InputError, match="not a Shoal model"):
        load(path)
    weights = {name: torch.zeros(shape) for name, shape in shapes(LanderCard(8)).items()}
    weights["src_mlp.bias"][0] = float("nan")
    with pytest.raises(InputError, match=r"src_mlp\.bias holds weights that are not finite"):
        LanderModel(weights, LanderCard(8))


@pytest.mark.parametrize("variant", ["mean", "gat"])
def test_weights_whose_products_overflow_are_refused(variant: str) -> None:
    model = random_lander(1, 8, variant=variant)
    for factor, refused in ((1e3, False), (1e9, True), (1e30, True)):
        weights = {name: value * factor for name, value in model.weights.items()}
        if refused:
            with pytest.raises(InputError, match="the weights are so large that p could not be computed"):
                LanderModel(weights, model.card)
        else:
            assert LanderModel(weights, model.card).k == 10


def test_embeddings_of_another_dimension_are_refused() -> None:
    with pytest.raises(InputError, match="takes embeddings of 8 components, these have 24"):
        told(random_lander(1, 8), mixture(1, 30, DIM))
