"""The model's answers are a function of the graph's content, to the bit."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from engine.errors import InputError
from engine.evaluation.bulk import hierarchy
from engine.model.features import edge_features, list_edges, node_features
from engine.model.linkage import LinkageModel
from engine.model.network import BLOCK, CHUNK, MOST_LOGIT, Linkage
from engine.model.ranges import Ranges
from engine.types import Epoch, EvidenceArrays, Float32, Int32, KnnGraph
from tests.support.random_models import random_lander, random_model

EPOCH = Epoch(0.1, 0.15, 100)


def mixture(seed: int, n: int, d: int = 24) -> KnnGraph:
    """Clusters with short lists, duplicates and supernodes among them, as a level above the base."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(n // 12 + 1, d))
    x = centers[rng.integers(0, len(centers), n)] + 0.7 * rng.normal(size=(n, d))
    x[: n // 20] = x[0]
    mean = x + 0.2 * rng.normal(size=(n, d))
    identity = on_grid(x)
    size = rng.integers(1, 40, n)
    average = np.where((size > 1)[:, None], on_grid(mean) * 0.8, identity).astype(np.int16)
    degree = np.where(rng.random(n) < 0.1, rng.integers(0, 10, n), 10).clip(0, max(n - 1, 0))
    graph = knn(identity, average, size, degree, is_base=False)
    return replace(graph, evidence=random_evidence(rng, graph))


def random_evidence(rng: np.random.Generator, graph: KnnGraph) -> EvidenceArrays:
    """Entries for most neighbours and for some other nodes; some nodes have none, inside or outside."""
    n = len(graph.degree)
    entries: list[dict[int, list[int]]] = []
    totals = np.zeros((n, 7), np.int64)
    for i in range(n):
        near = [int(j) for j in graph.neighbors[i, : graph.degree[i]] if rng.random() < 0.7]
        partners = sorted({*near, *rng.integers(0, n, 3).tolist()} - {i}) if rng.random() < 0.9 else []
        entries.append({j: _sums(rng) for j in partners})
        outer = list(entries[i].values())
        totals[i, :4] = _sums(rng) if rng.random() < 0.8 else 0
        totals[i, 4:] = (
            sum(e[0] for e in outer),
            sum(e[1] for e in outer),
            max((e[1] for e in outer), default=0),
        )
    counts = np.array([len(own) for own in entries], np.int32)
    partners = np.array([j for own in entries for j in own], np.int32)
    sums = np.array([e for own in entries for e in own.values()], np.int64).reshape(-1, 4)
    return EvidenceArrays(np.cumsum(counts, dtype=np.int64) - counts, counts, partners, sums, totals)


def _sums(rng: np.random.Generator) -> list[int]:
    """Of some edges: how many, p, similarity, its square."""
    p, s = rng.uniform(0.02, 0.98, edges := int(rng.integers(1, 30))), rng.uniform(-0.2, 1.0, edges)
    p, s = (np.rint(values * 2**16).astype(np.int64) for values in (p, s))
    return [edges, int(p.sum()), int(s.sum()), int((s * s).sum())]


def on_grid(x: np.ndarray) -> np.ndarray:
    return np.round(x / np.linalg.norm(x, axis=1, keepdims=True) * 2**14).astype(np.int16)


def knn(
    identity: np.ndarray, mean: np.ndarray, size: np.ndarray, degree: np.ndarray, is_base: bool
) -> KnnGraph:
    n, k = len(identity), 10
    dots = identity.astype(np.int32) @ identity.astype(np.int32).T
    order = np.argsort(np.where(np.eye(n, dtype=bool), np.iinfo(np.int32).max, -dots), axis=1, kind="stable")[
        :, :k
    ]
    neighbors = np.full((n, k), -1, dtype=np.int32)
    neighbors[:, : order.shape[1]] = order
    kept = np.take_along_axis(dots, np.maximum(neighbors, 0), axis=1).astype(np.int32)
    hidden = np.arange(k) >= degree[:, None]
    neighbors[hidden], kept[hidden] = -1, 0
    size = np.asarray(size, dtype=np.int64)
    return KnnGraph(k, neighbors, kept, degree.astype(np.int32), size, identity, mean, is_base)


def renumber(graph: KnnGraph, order: np.ndarray) -> KnnGraph:
    """The same graph with row `order[t]` in place t."""
    place = np.argsort(order).astype(np.int32)
    neighbors = graph.neighbors[order]
    neighbors = np.where(neighbors >= 0, place[neighbors], -1).astype(np.int32)
    return KnnGraph(
        graph.k, neighbors, graph.dots[order], graph.degree[order], graph.size[order],
        graph.identity[order], graph.mean[order], graph.is_base, _renumbered(graph.evidence, order, place),
    )  # fmt: skip


def _renumbered(
    evidence: EvidenceArrays | None, order: np.ndarray, place: np.ndarray
) -> EvidenceArrays | None:
    if evidence is None:
        return None
    partners, sums = [], []
    for row in order.tolist():
        at = np.arange(evidence.starts[row], evidence.starts[row] + evidence.counts[row])
        at = at[np.argsort(place[evidence.partners[at]])]
        partners.append(place[evidence.partners[at]])
        sums.append(evidence.sums[at])
    counts = evidence.counts[order]
    starts = np.cumsum(counts, dtype=np.int64) - counts
    return EvidenceArrays(
        starts, counts, np.concatenate(partners), np.concatenate(sums), evidence.totals[order]
    )


def answers(model: Linkage, graph: KnnGraph) -> tuple[Float32, Int32, Int32, Float32]:
    rows = np.arange(len(graph.degree), dtype=np.int32)
    hidden = model.embed(graph, EPOCH, rows)
    sources, ranks = list_edges(graph, rows)
    return hidden, sources, ranks, model.link(graph, EPOCH, hidden, sources, ranks)


@pytest.fixture(scope="module")
def model() -> Linkage:
    return random_model(7).upper


@pytest.mark.parametrize("seed", range(6))
def test_same_bits_beside_any_companions_in_any_order(model: Linkage, seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = mixture(seed, int(rng.choice([40, 700, CHUNK + 900])))
    hidden, sources, ranks, p = answers(model, graph)
    for size in (1, 2, 37, BLOCK - 1, BLOCK + 1, len(hidden)):
        rows = rng.permutation(len(hidden))[:size].astype(np.int32)
        assert (model.embed(graph, EPOCH, rows) == hidden[rows]).all(), f"{seed=} {size=}"
        edges = rng.permutation(len(p))[:size]
        assert (model.link(graph, EPOCH, hidden, sources[edges], ranks[edges]) == p[edges]).all(), (
            f"{seed=} {size=}"
        )


@pytest.mark.parametrize("seed", range(4))
def test_same_bits_under_any_row_numbers(model: Linkage, seed: int) -> None:
    graph = mixture(seed, 900)
    hidden, sources, ranks, p = answers(model, graph)
    order = np.random.default_rng(seed).permutation(len(hidden))
    hidden_too, sources_too, ranks_too, p_too = answers(model, renumber(graph, order))
    assert (hidden_too == hidden[order]).all(), f"{seed=}"
    by_edge = dict(zip(zip(sources, ranks, strict=True), p, strict=True))
    assert all(by_edge[order[i], r] == q for i, r, q in zip(sources_too, ranks_too, p_too, strict=True)), (
        f"{seed=}"
    )


def test_same_bits_on_one_thread_and_two(model: Linkage) -> None:
    graph, threads = mixture(3, 3000), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = answers(model, graph)
        torch.set_num_threads(2)
        two = answers(model, graph)
    finally:
        torch.set_num_threads(threads)
    assert (one[0] == two[0]).all()
    assert (one[3] == two[3]).all()


def test_random_models_are_lively_and_seeded() -> None:
    p = np.concatenate([answers(random_model(seed).upper, mixture(seed, 500))[3] for seed in range(8)])
    assert (np.histogram(p, 5, (0, 1))[0] > 0.03 * len(p)).all()
    assert random_model(1).sha256 == random_model(1).sha256 != random_model(2).sha256


def test_agrees_with_the_network_as_trained(model: Linkage) -> None:
    graph = mixture(5, 500)
    _, sources, ranks, p = answers(model, graph)
    rows = np.arange(500, dtype=np.int32)
    x = np.empty((500, len(model.nodes.low)), dtype=np.float32)
    e = np.empty((len(sources), len(model.edges.low)), dtype=np.float32)
    node_features(graph, EPOCH, rows, model.nodes, x)
    edge_features(graph, EPOCH, sources, ranks, model.edges, e)
    targets = graph.neighbors[sources, ranks]
    columns = (x, e, graph.degree.astype(np.int64), targets.astype(np.int64))
    logits = model.net(*map(torch.from_numpy, columns))
    bounded = torch.sigmoid(logits.clamp(-MOST_LOGIT, MOST_LOGIT))
    np.testing.assert_allclose(bounded.detach().numpy(), p, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_tiny_collections(n: int) -> None:
    identity = on_grid(np.random.default_rng(n).normal(size=(n, 8)))
    graph = knn(identity, identity, np.ones(n), np.full(n, n - 1), is_base=True)
    hidden, sources, _, p = answers(random_model(7).base, graph)
    assert np.isfinite(hidden).all()
    assert len(p) == len(sources) == n * (n - 1)
    assert ((p >= 0) & (p <= 1)).all()


def test_saved_and_loaded_is_the_same_model(tmp_path: Path) -> None:
    model, path = random_model(7), tmp_path / "m.safetensors"
    model.save(path)
    again = LinkageModel.load(path)
    graph = mixture(1, 300)
    assert again.sha256 == model.sha256
    for one, other in ((again.base, model.base), (again.upper, model.upper)):
        seen = replace(graph, is_base=one is again.base)
        assert (answers(one, seen)[3] == answers(other, seen)[3]).all()


def test_broken_model_files_are_refused(tmp_path: Path) -> None:
    model, path = random_model(7), tmp_path / "m.safetensors"
    with pytest.raises(InputError, match="cannot be read"):
        LinkageModel.load(path)
    model.save(path)
    whole, card = path.read_bytes(), path.with_suffix(".json").read_text()
    path.write_bytes(whole[:-7])
    with pytest.raises(InputError, match="not a Shoal model"):
        LinkageModel.load(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="SHA-256"):
        LinkageModel.load(path)
    path.write_bytes(whole)
    for change, told in (
        ({"k": 9}, "reads 41 features of a node, this release computes 38 with k = 9; train it again"),
        ({"mean": 0.2}, "SHA-256"),
        ({"hidden": 47}, "size mismatch for"),
        ({"format": "shoal-universal-9"}, "this version of Shoal does not know format of the card"),
        ({"sha256": "0"}, "SHA-256"),
    ):
        path.with_suffix(".json").write_text(json.dumps(json.loads(card) | change))
        with pytest.raises(InputError, match=told) as problem:
            LinkageModel.load(path)
        assert "\n" not in str(problem.value)
        assert len(str(problem.value)) < 400
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(InputError, match="size mismatch for"):
        LinkageModel.load(path)
    path.with_suffix(".json").write_text(card)
    path.write_bytes(b"\x80" * 5000)
    with pytest.raises(InputError, match="not a Shoal model: Error while deserializing"):
        LinkageModel.load(path)
    safetensors.torch.save_file({"a": torch.ones(3)}, path)
    with pytest.raises(InputError, match=r"not a Shoal model: the weights lack 'nodes\.low'"):
        LinkageModel.load(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(InputError, match=r"there is no card m\.json next to the weights"):
        LinkageModel.load(path)
    random_lander(1, 8).save(path)
    with pytest.raises(InputError, match="it is a lander; a universal model is wanted here"):
        LinkageModel.load(path)


def test_ranges_bound_every_feature(model: Linkage) -> None:
    graph = mixture(2, 200)
    tight = Ranges(*(np.full(len(model.nodes.low), value) for value in (-0.5, 0.25, 0.5, 2.0)))
    x = np.empty((200, len(tight.low)), dtype=np.float32)
    node_features(graph, EPOCH, np.arange(200, dtype=np.int32), tight, x)
    assert x.min() == -0.5
    assert x.max() == -0.125


@pytest.mark.process
def test_import_is_silent(tmp_path: Path) -> None:
    code = "import engine.collection.collection, sys; "
    code += "from engine.system.determinism import fingerprint; print(fingerprint())"
    code += "; assert 'dgl' not in sys.modules; import dgl.ops"  # only training needs it
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"HOME": str(tmp_path)}, check=True
    )
    assert len(run.stdout.strip()) == 16
    assert run.stderr == ""
    assert not (tmp_path / ".dgl").exists()


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = random_model(1)
    with torch.no_grad():
        next(iter(model.upper.net.parameters()))[0] = float("nan")
    model.save(tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="not finite"):
        LinkageModel.load(tmp_path / "m.safetensors")


def test_a_model_that_gives_no_number_is_refused_before_it_makes_rings() -> None:
    model = random_model(1)
    with torch.no_grad():
        for value in model.base.net.parameters():
            value.mul_(1e30)  # finite, but their products are not
    emb = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    with pytest.raises(InputError, match="p is not a number"):
        hierarchy(emb, model, 0.5, 2)


def test_weights_from_before_evidence_answer_as_they_did(tmp_path: Path) -> None:
    """A file with one network serves all levels: evidence is read, and of no weight."""
    model, path = random_model(3), tmp_path / "m.safetensors"
    path.write_bytes(safetensors.torch.save(model.base.tensors()))
    facts = f"{model.k} {model.card.hidden} {model.card.mean!r} {model.card.deviation!r}"
    sha256 = hashlib.sha256(path.read_bytes() + facts.encode()).hexdigest()
    card = {name: value for name, value in asdict(model.card).items() if name != "upper_hidden"}
    path.with_suffix(".json").write_text(json.dumps(card | {"sha256": sha256}))
    old, graph = LinkageModel.load(path), mixture(1, 300)
    blank = replace(graph, evidence=random_evidence(np.random.default_rng(9), graph))
    for one, other in zip(answers(old.upper, graph), answers(old.upper, blank), strict=True):
        assert (one == other).all()
    base = replace(graph, is_base=True, evidence=None)
    for one, other in zip(answers(old.base, base), answers(model.base, base), strict=True):
        assert (one == other).all()


def test_certainty_is_bounded() -> None:
    """Beyond the bound p would be noise that orders near-copies by itself."""
    model = random_model(7).upper
    with torch.no_grad():
        model.net.head_out.weight.mul_(40.0)
    certain = Linkage(model.net, model.nodes, model.edges)
    p = answers(certain, mixture(2, 300))[3]
    least, most = torch.sigmoid(torch.tensor([-MOST_LOGIT, MOST_LOGIT])).tolist()
    assert (p.min(), p.max()) == (np.float32(least), np.float32(most))
