"""Models of random weights, for tests that need no trained one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from engine.model.features import list_edges, raw_features
from engine.model.lander import LanderCard, LanderModel, shapes
from engine.model.linkage import Card, LinkageModel
from engine.model.network import Linkage, Universal, UniversalConfig
from engine.model.ranges import Ranges
from engine.types import Epoch, EvidenceArrays, Int32, KnnGraph

import torch  # isort: skip


def random_lander(seed: int, dim: int, k: int = 10, hidden: int = 16, **card: Any) -> LanderModel:
    """A lander; p spreads over 0 to 1."""
    rng = np.random.default_rng(seed)
    made = LanderCard(dim=dim, k=k, hidden=hidden, **card)
    weights = {
        name: torch.from_numpy(rng.normal(size=shape) * 2.0 / (shape[-1] ** 0.5 if len(shape) > 1 else 4.0))
        for name, shape in shapes(made).items()
    }
    weights["conv.0.gcn_layer.mlp.weight" if made.variant == "mean" else "conv.0.gcn_layer.fc.weight"] *= 3.0
    weights["classifier_conn.3.weight"] *= 2.0
    return LanderModel(weights, made)


def random_model(seed: int, k: int = 10, hidden: int = 16) -> LinkageModel:
    """A universal model; p spreads over 0 to 1 on a mixture of clusters."""
    rng = np.random.default_rng(seed)
    graph, epoch = _mixture(rng, k)
    base = _random_linkage(rng, graph, epoch, UniversalConfig(k, hidden))
    upper = _random_linkage(rng, graph, epoch, UniversalConfig(k, hidden, is_base=False))
    return LinkageModel(base, upper, Card(k=k, hidden=hidden, upper_hidden=hidden))


def _random_linkage(
    rng: np.random.Generator, graph: KnnGraph, epoch: Epoch, config: UniversalConfig
) -> Linkage:
    sources, ranks = list_edges(graph, np.arange(len(graph.degree), dtype=np.int32))
    targets = graph.neighbors[sources, ranks]
    if config.is_base:
        graph = replace(graph, size=np.ones_like(graph.size), is_base=True, evidence=None)
    raw_x, raw_e = raw_features(graph, epoch, sources, ranks)
    nodes, edges = Ranges.measured(raw_x), Ranges.measured(raw_e)
    x, e = torch.from_numpy(nodes.apply(raw_x)), torch.from_numpy(edges.apply(raw_e))
    net = Universal(config)
    with torch.no_grad():
        for value in net.parameters():
            spread = rng.normal(size=tuple(value.shape)) * 1.4 / value.shape[-1] ** 0.5
            value.copy_(torch.from_numpy(spread))
        ends = torch.from_numpy(graph.degree.astype(np.int64)), torch.from_numpy(targets.astype(np.int64))
        logits = net(x, e, *ends)
        net.head_out.weight.mul_(3.0 / logits.std())
        net.head_out.bias.add_(0.5 - net(x, e, *ends).median())
    return Linkage(net, nodes, edges)


def _mixture(rng: np.random.Generator, k: int, n: int = 400, d: int = 16) -> tuple[KnnGraph, Epoch]:
    """A level of supernodes in clusters of ten or so, with its epoch."""
    x = rng.normal(size=(n // 10, d))[rng.integers(0, n // 10, n)] + 0.5 * rng.normal(size=(n, d))
    identity = np.round(x / np.linalg.norm(x, axis=1, keepdims=True) * 2**14).astype(np.int16)
    mean = (identity * rng.uniform(0.7, 1.0, (n, 1))).astype(np.int16)
    dots = identity.astype(np.int32) @ identity.astype(np.int32).T
    pairs = dots[~np.eye(n, dtype=bool)] * 2.0**-28
    np.fill_diagonal(dots, -(2**30))
    neighbors = np.argsort(-dots, axis=1, kind="stable")[:, :k].astype(np.int32)
    kept = np.take_along_axis(dots, neighbors, axis=1).astype(np.int32)
    degree, size = np.full(n, k, dtype=np.int32), rng.integers(1, 20, n)
    evidence = _mixture_evidence(np.random.default_rng(n), neighbors, kept)
    graph = KnnGraph(k, neighbors, kept, degree, size, identity, mean, False, evidence)
    return graph, Epoch(float(pairs.mean()), float(pairs.std()), n)


def _mixture_evidence(rng: np.random.Generator, neighbors: Int32, dots: Int32) -> EvidenceArrays:
    """Some edges to each node of the lists, and some inside."""
    n, k = neighbors.shape
    edges = rng.integers(1, 20, (n, k + 1))
    similarity = np.concatenate([dots, dots[:, :1]], axis=1).astype(np.int64) >> 12
    p = (edges * rng.uniform(0, 1, edges.shape) * 2**16).astype(np.int64)
    squares = edges * (similarity**2 + rng.integers(0, 2**22, edges.shape))
    columns = np.stack([edges, p, edges * similarity, squares], axis=2).astype(np.int64)
    sums, inner = columns[:, :k], columns[:, k]
    outer = [sums[:, :, 0].sum(axis=1), sums[:, :, 1].sum(axis=1), sums[:, :, 1].max(axis=1)]
    order = np.argsort(neighbors, axis=1)
    return EvidenceArrays(
        starts=np.arange(n, dtype=np.int64) * k,
        counts=np.full(n, k, np.int32),
        partners=np.take_along_axis(neighbors, order, axis=1).ravel(),
        sums=np.take_along_axis(sums, order[:, :, None], axis=1).reshape(n * k, 4),
        totals=np.concatenate([inner, np.stack(outer, axis=1)], axis=1),
    )
