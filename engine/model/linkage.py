"""The universal linkage model: which neighbours belong to the same class, seen from relations alone.

A LANDER network (Xing et al., ICCV 2021, arXiv 2107.01319) whose inputs are the relations of
`engine.model.features` in place of embeddings, so that it fits any embedding space. With node features x,
edge features e, and N(i) the neighbours of i:

    m_ij = relu(W1 x_i + W2 x_j + W3 e_ij)              a message
    h_i  = relu(U x_i + V mean_{j in N(i)} m_ij)        one graph convolution
    q_ij = relu(A h_i + B h_j + C e_ij)                 the edge head
    p_ij = sigmoid(w relu(Q q_ij))                      probability of one class; the logit is bounded

First layers are factored: the terms of one node are computed once per node, not once per edge.

`LinkageModel` is what the engine uses. Its answers are a function of the graph's content to the bit:
every dense layer runs over blocks of one fixed, padded size, because a matrix product may add in
another order at another size.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.model.blocks import parts, share_out
from engine.model.features import (
    EDGE_FEATURES,
    Ranges,
    add_ends,
    add_messages,
    edge_features,
    list_edges,
    mark_missing,
    node_feature_names,
    node_features,
    raw_features,
)
from engine.types import Epoch, Float32, Int32, Int64, Kept, KnnGraph

import safetensors  # isort: skip
import safetensors.torch  # isort: skip
import torch  # isort: skip
from torch import Tensor, nn  # isort: skip

BLOCK = 1024  # rows of every dense layer: a buffer of 48 columns stays in the L2 cache
CHUNK = 512  # nodes that are embedded at once: so are their sums
MOST_LOGIT = 4.0  # beyond it the digits of p are noise, which would order the densities of near-copies
_LOCAL = threading.local()
PRETRAINED = Path(__file__).parent / "pretrained" / "universal.safetensors"


@dataclass(frozen=True, slots=True)
class UniversalConfig:
    """Sizes of the network."""

    k: int = 10  # length of the neighbour lists
    hidden: int = 48
    dropout: float = 0.0  # training only


class Universal(nn.Module):
    """The network above. Inputs are standardised features of `engine.model.features`."""

    def __init__(self, config: UniversalConfig) -> None:
        super().__init__()
        nodes, edges, hidden = len(node_feature_names(config.k)), len(EDGE_FEATURES), config.hidden
        self.config = config
        self.node_ends = nn.Linear(nodes, 3 * hidden)  # W1 | W2 | U
        self.message_edge = nn.Linear(edges, hidden, bias=False)  # W3
        self.update = nn.Linear(hidden, hidden, bias=False)  # V
        self.head_ends = nn.Linear(hidden, 2 * hidden)  # A | B
        self.head_edge = nn.Linear(edges, hidden, bias=False)  # C
        self.head_inner = nn.Linear(hidden, hidden)  # Q
        self.head_out = nn.Linear(hidden, 1)  # w
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, e: Tensor, degrees: Tensor, tails: Tensor) -> Tensor:
        """Return the logits (e,) of all edges of a graph, for training.

        `x` (n, F); `e` (e, G) and `tails` (e,) by the edges' other ends, of which node i has
        `degrees[i]`, (n,), side by side.
        """
        heads = torch.repeat_interleave(degrees)
        x, e = self.drop(x), self.drop(e)
        w1, w2, u = self.node_ends(x).chunk(3, dim=1)  # (n, hidden) each
        messages = torch.relu(w1[heads] + w2[tails] + self.message_edge(e))  # (e, hidden)
        h = torch.relu(u + self.update(mean_messages(degrees, messages)))  # (n, hidden)
        a, b = self.head_ends(self.drop(h)).chunk(2, dim=1)
        q = torch.relu(a[heads] + b[tails] + self.head_edge(e))  # (e, hidden)
        logits: Tensor = self.head_out(torch.relu(self.head_inner(q)))[:, 0]
        return logits


def mean_messages(degrees: Tensor, messages: Tensor) -> Tensor:
    """Return the mean (n, hidden) of each node's messages, 0 for none. `degrees` (n,) int64 of them are side
    by side; their order is the order of the sum.
    """
    import dgl.ops  # training only: the engine, which starts sooner without it, sums in `add_messages`

    if not len(messages):  # DGL would divide by zero
        return messages.new_zeros((len(degrees), messages.shape[1]))
    mean: Tensor = dgl.ops.segment_reduce(degrees, messages, "mean")
    return mean


@dataclass(frozen=True, slots=True)
class Card:
    """What a user of the weights has to know. `about` is free: training sets, scores, seed."""

    k: int = 10
    hidden: int = 48
    tau: float = 0.6
    max_levels: int = 2
    mean: float = 0.1  # random-pair similarity assumed for collections too small to measure
    deviation: float = 0.1
    about: dict[str, Any] = field(default_factory=dict)


class LinkageModel:
    """A trained network with its card, as the engine runs it.

    `k`, `tau` and `max_levels` are the card's defaults; `hidden` is the width of what `embed` returns;
    `default_epoch` serves collections too small to be measured; `sha256` names the weights and
    everything else that its answers depend on.
    """

    dim: int | None = None  # of the embeddings that it takes: any
    reads_vectors = False  # at level 0: lists alone

    def __init__(self, net: Universal, nodes: Ranges, edges: Ranges, card: Card) -> None:
        self.net = net.eval()
        self.nodes, self.edges, self.card = nodes, edges, card
        self.k, self.tau, self.max_levels = card.k, card.tau, card.max_levels
        self.hidden = 2 * card.hidden
        self.keeps = card.hidden, len(EDGE_FEATURES)  # W2 x of a node, features of an edge
        self.default_epoch = Epoch(card.mean, card.deviation, 0)
        self.sha256 = _digest(self._bytes(), card)
        # (inputs, outputs) and contiguous, as the products below read them
        self._weights = {name: value.detach().t().contiguous() for name, value in net.named_parameters()}
        near, far, update = self._weights["node_ends.weight"].chunk(3, dim=1)
        w1, w2, u = self._weights["node_ends.bias"].chunk(3)
        self._weights["near"] = torch.cat([near, update], dim=1)
        self._weights["near.bias"] = torch.cat([w1 + w2, u])  # of W1 and W2: both enter every message
        self._weights["far"] = far.contiguous()

    @torch.inference_mode()
    def embed(self, graph: KnnGraph, epoch: Epoch, rows: Int32, kept: Kept | None = None) -> Float32:
        """Return what the edge head reads of the nodes `rows` (m,), distinct: (m, hidden) float32.

        Columns are the head's two factors, A h_i | B h_i. Reads the lists of `rows` and of their
        neighbours. Valid results are read from `kept`, missing ones added; should that fail, discard it.
        """
        sources, ranks = list_edges(graph, rows)
        tails = graph.neighbors[sources, ranks]
        far = self._far(graph, epoch, tails, kept)
        degrees = graph.degree[rows]
        heads = np.repeat(np.arange(len(rows), dtype=np.int32), degrees)
        out = torch.empty((len(rows), self.hidden))
        chunks = parts(len(rows), CHUNK)
        stops = np.searchsorted(heads, np.arange(0, len(rows) + CHUNK, CHUNK))

        def work(share: Sequence[slice]) -> None:
            buffers = _Buffers.own(self.card, len(self.nodes.low))
            for chunk in share:
                part = slice(stops[chunk.start // CHUNK], stops[chunk.start // CHUNK + 1])
                edges = _Edges(sources[part], ranks[part], heads[part] - chunk.start, tails[part])
                self._near(graph, epoch, rows[chunk], buffers)
                self._sum(graph, epoch, edges, far, buffers, kept)
                buffers.mean.numpy()[: len(degrees[chunk])] /= np.maximum(degrees[chunk], 1)[:, None]
                self._update(out[chunk], buffers)

        share_out(chunks, work)
        return out.numpy()

    @torch.inference_mode()
    def link(
        self,
        graph: KnnGraph,
        epoch: Epoch,
        hidden: Float32,
        sources: Int32,
        ranks: Int32,
        kept: Kept | None = None,
    ) -> Float32:
        """Return p (e,) float32 of the edges from `sources` to their neighbours at `ranks`, (e,) each.

        `hidden` (n, hidden) holds `embed` of every node at either end, by row. `kept`: as in `embed`.
        """
        w, out = self._weights, np.empty(len(sources), dtype=np.float32)
        targets = graph.neighbors[sources, ranks]

        def work(parts: Sequence[slice]) -> None:
            features, q, inner, p = _buffers(len(EDGE_FEATURES), self.card.hidden, self.card.hidden, 1)
            for part in parts:
                m = part.stop - part.start
                own = features.numpy()[:m]
                edge_features(graph, epoch, sources[part], ranks[part], self.edges, own, kept)
                torch.mm(features, w["head_edge.weight"], out=q)
                add_ends(q.numpy(), hidden, sources[part], targets[part])
                torch.addmm(w["head_inner.bias"], q, w["head_inner.weight"], out=inner).relu_()
                torch.addmm(w["head_out.bias"], inner, w["head_out.weight"], out=p)
                p.clamp_(-MOST_LOGIT, MOST_LOGIT).sigmoid_()
                out[part] = p.numpy()[:m, 0]

        share_out(parts(len(sources), BLOCK), work)
        return out

    @torch.inference_mode()
    def probabilities(self, x: Float32, e: Float32, degrees: Int32, tails: Int64) -> Float32:
        """Return p (e,) float32 of all edges of a graph, for training: raw features as `raw_features` gives
        them, the rest as in `Universal.forward`.
        """
        features = torch.from_numpy(self.nodes.apply(x)), torch.from_numpy(self.edges.apply(e))
        logits = self.net(*features, torch.from_numpy(degrees).long(), torch.from_numpy(tails))
        p: Float32 = torch.sigmoid(logits.clamp(-MOST_LOGIT, MOST_LOGIT)).numpy()
        return p

    def _far(self, graph: KnnGraph, epoch: Epoch, tails: Int32, kept: Kept | None) -> Float32:
        """W2 x of the nodes `tails`, which may be named repeatedly: (n, hidden), by row of the graph.

        Marks what it is about to compute.
        """
        if kept:
            far, holds = kept.nodes, kept.node_holds
        else:
            far = np.empty((len(graph.degree), self.card.hidden), np.float32)
            holds = np.zeros(len(far), np.bool_)
        nodes, w = mark_missing(tails, holds), self._weights["far"]

        def work(share: Sequence[slice]) -> None:
            x, product = _buffers(len(self.nodes.low), self.card.hidden)
            for part in share:
                m = part.stop - part.start
                node_features(graph, epoch, nodes[part], self.nodes, x.numpy()[:m])
                torch.mm(x, w, out=product)
                far[nodes[part]] = product.numpy()[:m]

        share_out(parts(len(nodes), BLOCK), work)
        return far

    def _near(self, graph: KnnGraph, epoch: Epoch, rows: Int32, buffers: _Buffers) -> None:
        """W1 x | U x of a chunk's nodes, with the biases, to `buffers.near`."""
        node_features(graph, epoch, rows, self.nodes, buffers.x.numpy()[: len(rows)])
        torch.addmm(self._weights["near.bias"], buffers.x, self._weights["near"], out=buffers.near)

    def _sum(
        self,
        graph: KnnGraph,
        epoch: Epoch,
        edges: _Edges,
        far: Float32,
        buffers: _Buffers,
        kept: Kept | None,
    ) -> None:
        """The sums of a chunk's m_ij, a row for each of its nodes, to `buffers.mean`."""
        features, products, sums = buffers.features, buffers.products, buffers.mean.numpy()
        sums[:] = 0.0
        for part in parts(len(edges.sources), BLOCK):
            m = part.stop - part.start
            own = features.numpy()[:m]
            edge_features(graph, epoch, edges.sources[part], edges.ranks[part], self.edges, own, kept)
            torch.mm(features, self._weights["message_edge.weight"], out=products)
            near = buffers.near.numpy()
            add_messages(sums, products.numpy(), near, far, edges.heads[part], edges.tails[part])

    def _update(self, out: Tensor, buffers: _Buffers) -> None:
        """A h | B h of a chunk's nodes to `out`, from U x (in `buffers.near`) and the mean messages."""
        w, m = self._weights, len(out)
        h = torch.mm(buffers.mean, w["update.weight"], out=buffers.h)
        h += buffers.near[:, self.card.hidden :]
        out[:] = torch.addmm(w["head_ends.bias"], h.relu_(), w["head_ends.weight"], out=buffers.ends)[:m]

    def _bytes(self) -> bytes:
        tensors = {name: value.detach().contiguous() for name, value in self.net.state_dict().items()}
        for kind, ranges in (("nodes", self.nodes), ("edges", self.edges)):
            for name, value in asdict(ranges).items():
                tensors[f"{kind}.{name}"] = torch.from_numpy(value)
        return safetensors.torch.save(tensors)

    def with_card(self, card: Card) -> LinkageModel:
        """Return the same weights with another card."""
        return LinkageModel(self.net, self.nodes, self.edges, card)

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
            tensors = _with_all_features(safetensors.torch.load(content), len(node_feature_names(card.k)))
            nodes, edges = (
                Ranges(
                    *(tensors.pop(f"{kind}.{name}").numpy() for name in ("low", "high", "center", "scale"))
                )
                for kind in ("nodes", "edges")
            )
            net = Universal(UniversalConfig(card.k, card.hidden))
            net.load_state_dict(tensors)
        except OSError as error:
            raise InputError(f"the model {path} cannot be read: {error.strerror or error}") from error
        except (KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            raise InputError(f"{path} and its .json are not a Shoal model: {error}") from error
        if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
            raise InputError(f"{path} has weights that are not finite: train it again")
        if _digest(content, card) != sha256:
            raise InputError(f"{path} and its .json are not of one model: their SHA-256 differ")
        return cls(net, nodes, edges, card)


def _digest(weights: bytes, card: Card) -> str:
    facts = f"{card.k} {card.hidden} {card.mean!r} {card.deviation!r}".encode()
    return hashlib.sha256(weights + facts).hexdigest()


def _with_all_features(tensors: dict[str, Tensor], features: int) -> dict[str, Tensor]:
    """Weights from before the last node features existed, with those: read, and of no weight."""
    missing = features - tensors["node_ends.weight"].shape[1]
    if missing <= 0:
        return tensors
    added = {"low": -np.inf, "high": np.inf, "center": 0.0, "scale": 1.0}
    for name, value in added.items():
        column = torch.full((missing,), value, dtype=torch.float64)
        tensors[f"nodes.{name}"] = torch.cat([tensors[f"nodes.{name}"], column])
    weight = tensors["node_ends.weight"]
    tensors["node_ends.weight"] = torch.cat([weight, weight.new_zeros((len(weight), missing))], dim=1)
    return tensors


def random_model(seed: int, k: int = 10, hidden: int = 16) -> LinkageModel:
    """Return a model of random weights whose p spread over 0 to 1 on a mixture of clusters, for tests."""
    rng = np.random.default_rng(seed)
    graph, epoch = _mixture(rng, k)
    sources, ranks = list_edges(graph, np.arange(len(graph.degree), dtype=np.int32))
    targets = graph.neighbors[sources, ranks]
    raw_x, raw_e = raw_features(graph, epoch, sources, ranks)
    nodes, edges = Ranges.measured(raw_x), Ranges.measured(raw_e)
    x, e = torch.from_numpy(nodes.apply(raw_x)), torch.from_numpy(edges.apply(raw_e))
    net = Universal(UniversalConfig(k, hidden))
    with torch.no_grad():
        for value in net.parameters():
            spread = rng.normal(size=tuple(value.shape)) * 1.4 / value.shape[-1] ** 0.5
            value.copy_(torch.from_numpy(spread))
        ends = torch.from_numpy(graph.degree.astype(np.int64)), torch.from_numpy(targets.astype(np.int64))
        logits = net(x, e, *ends)
        net.head_out.weight.mul_(3.0 / logits.std())
        net.head_out.bias.add_(0.5 - net(x, e, *ends).median())
    return LinkageModel(net, nodes, edges, Card(k=k, hidden=hidden))


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
    graph = KnnGraph(k, neighbors, kept, degree, size, identity, mean, is_base=False)
    return graph, Epoch(float(pairs.mean()), float(pairs.std()), n)


@dataclass(frozen=True, slots=True)
class _Edges:
    """The edges out of one chunk of nodes, int32 (e,) each."""

    sources: Int32  # rows of the graph
    ranks: Int32
    heads: Int32  # the sources again, as rows of the chunk
    tails: Int32  # rows of the graph


class _Buffers:
    """What one thread needs to embed a chunk of nodes."""

    def __init__(self, card: Card, node_features: int) -> None:
        width = card.hidden
        self.x = torch.zeros((CHUNK, node_features))
        self.near = torch.zeros((CHUNK, 2 * width))
        self.features = torch.zeros((BLOCK, len(EDGE_FEATURES)))
        self.products = torch.zeros((BLOCK, width))
        self.mean, self.h = torch.zeros((CHUNK, width)), torch.zeros((CHUNK, width))
        self.ends = torch.zeros((CHUNK, 2 * width))

    @classmethod
    def own(cls, card: Card, node_features: int) -> _Buffers:
        """Those of this thread, kept from its last call: for a few nodes, making them is half of the work."""
        shape = card.hidden, node_features
        if getattr(_LOCAL, "shape", None) != shape:
            _LOCAL.shape, _LOCAL.buffers = shape, cls(card, node_features)
        found: _Buffers = _LOCAL.buffers
        return found


def _buffers(*widths: int) -> list[Tensor]:
    """Padded blocks. What a block's last rows hold from before does not touch its other rows."""
    kept: dict[tuple[int, ...], list[Tensor]] = _LOCAL.__dict__.setdefault("blocks", {})
    if widths not in kept:
        kept[widths] = [torch.zeros((BLOCK, width)) for width in widths]
    return kept[widths]
