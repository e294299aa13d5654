"""The universal linkage model: which neighbours belong to the same class, seen from relations alone.

Two networks of `engine.model.network`: one for level 0, one for the levels above it, which also reads the
evidence between supernodes. A file of weights holds both; its card lies beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.model.evidence_features import EDGE_EVIDENCE, NODE_EVIDENCE
from engine.model.features import list_edges, raw_features
from engine.model.network import Linkage, Universal, UniversalConfig
from engine.model.ranges import Ranges
from engine.types import Epoch, EvidenceArrays, Int32, KnnGraph

import safetensors  # isort: skip
import safetensors.torch  # isort: skip
import torch  # isort: skip
from torch import Tensor  # isort: skip

PRETRAINED = Path(__file__).parent / "pretrained" / "universal.safetensors"
UPPER = "upper."  # before the names of the upper network's tensors


@dataclass(frozen=True, slots=True)
class Card:
    """What a user of the weights has to know. `about` is free: training sets, scores, seed."""

    k: int = 10
    hidden: int = 48  # of the network of level 0
    upper_hidden: int = 48  # of the other one
    tau: float = 0.6
    base_tau: float | None = None  # level 0's; None: tau
    max_levels: int = 2
    mean: float = 0.1  # random-pair similarity assumed for collections too small to measure
    deviation: float = 0.1
    about: dict[str, Any] = field(default_factory=dict)


class LinkageModel:
    """Both networks with their card. `k`, `tau`, `base_tau` and `max_levels` are the card's.

    `default_epoch` serves collections too small to be measured; `sha256` names the weights and
    everything else that its answers depend on.
    """

    dim: int | None = None  # of the embeddings that it takes: any
    reads_vectors = False  # at level 0: lists alone

    def __init__(self, base: Linkage, upper: Linkage, card: Card) -> None:
        self.base, self.upper, self.card = base, upper, card
        self.k, self.tau, self.base_tau, self.max_levels = card.k, card.tau, card.base_tau, card.max_levels
        self.default_epoch = Epoch(card.mean, card.deviation, 0)
        self.sha256 = _digest(self._bytes(), card)

    def _bytes(self) -> bytes:
        return safetensors.torch.save(self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights and ranges by name."""
        upper = {UPPER + name: value for name, value in self.upper.tensors().items()}
        return self.base.tensors() | upper

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], card: Card) -> LinkageModel:
        """Return the model of what `tensors` gave. Raises KeyError or RuntimeError for others."""
        own = {name: value for name, value in tensors.items() if not name.startswith(UPPER)}
        above = {name.removeprefix(UPPER): tensors[name] for name in tensors.keys() - own.keys()}
        base = Linkage.of(own, UniversalConfig(card.k, card.hidden))
        return cls(base, Linkage.of(above, _upper(card)) if above else upper_of(base), card)

    def with_card(self, card: Card) -> LinkageModel:
        """Return the same weights with another card."""
        return LinkageModel(self.base, self.upper, card)

    def save(self, path: Path) -> None:
        """Write the weights to `path` (.safetensors) and the card beside it (.json)."""
        path.write_bytes(self._bytes())
        card = asdict(self.card) | {"sha256": self.sha256}
        path.with_suffix(".json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path = PRETRAINED) -> LinkageModel:
        """Read what `save` wrote; the weights that ship with Shoal by default.

        Raises InputError where the files are missing, broken, or not of one model.
        """
        try:
            facts = json.loads(path.with_suffix(".json").read_text())
            sha256 = facts.pop("sha256")
            card = Card(**facts)
            content = path.read_bytes()
            model = cls.of(safetensors.torch.load(content), card)
        except OSError as error:
            raise InputError(f"the model {path} cannot be read: {error.strerror or error}") from error
        except (KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            raise InputError(f"{path} and its .json are not a Shoal model: {error}") from error
        weights = [*model.base.net.state_dict().values(), *model.upper.net.state_dict().values()]
        if not all(torch.isfinite(weight).all() for weight in weights):
            raise InputError(f"{path} has weights that are not finite: train it again")
        if _digest(content, card) != sha256:
            raise InputError(f"{path} and its .json are not of one model: their SHA-256 differ")
        return model


def _upper(card: Card) -> UniversalConfig:
    return UniversalConfig(card.k, card.upper_hidden, is_base=False)


def _digest(weights: bytes, card: Card) -> str:
    facts = f"{card.k} {card.hidden} {card.mean!r} {card.deviation!r}".encode()
    if card.base_tau is not None:
        facts += f" {card.base_tau!r}".encode()
    return hashlib.sha256(weights + facts).hexdigest()


def upper_of(base: Linkage) -> Linkage:
    """Return a network for the levels above 0 that answers as `base`: evidence is read, and of no weight."""
    weights = dict(base.net.state_dict())
    added = {
        "node_ends": len(NODE_EVIDENCE),
        "message_edge": len(EDGE_EVIDENCE),
        "head_edge": len(EDGE_EVIDENCE),
    }
    for name, columns in added.items():
        weight = weights[f"{name}.weight"]
        weights[f"{name}.weight"] = torch.cat([weight, weight.new_zeros((len(weight), columns))], dim=1)
    net = Universal(replace(base.net.config, is_base=False))
    net.load_state_dict(weights)
    nodes = base.nodes.beside(Ranges.none(len(NODE_EVIDENCE)))
    return Linkage(net, nodes, base.edges.beside(Ranges.none(len(EDGE_EVIDENCE))))


def random_model(seed: int, k: int = 10, hidden: int = 16) -> LinkageModel:
    """Return a model of random weights whose p spread over 0 to 1 on a mixture of clusters, for tests."""
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
    raw_x, raw_e = raw_features(graph, epoch, sources, ranks)
    if config.is_base:  # as above level 0, where more features differ, but for the evidence
        raw_x, raw_e = raw_x[:, : -len(NODE_EVIDENCE)], raw_e[:, : -len(EDGE_EVIDENCE)]
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
