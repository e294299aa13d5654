"""The network of the universal model, for training and as the engine runs it.

It is a LANDER network (Xing et al., ICCV 2021, arXiv 2107.01319) whose inputs are the relations of
`engine.model.features` in place of embeddings, so that it fits any embedding space. With node features x,
edge features e, and N(i) the neighbours of i:

    m_ij = relu(W1 x_i + W2 x_j + W3 e_ij)              a message
    h_i  = relu(U x_i + V mean_{j in N(i)} m_ij)        one graph convolution
    q_ij = relu(A h_i + B h_j + C e_ij)                 the edge head
    p_ij = sigmoid(w relu(Q q_ij))                      probability of one class; the logit is bounded

The first layers are factored: the terms of a node are computed once per node, not once per edge.

The engine uses `Linkage`. Its output is a function of the graph's content, bit for bit: every dense layer
runs over padded blocks of one size, because a matrix product may add in another order at another size.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from engine.model.blocks import parts, share_out
from engine.model.features import (
    edge_feature_names,
    edge_features,
    list_edges,
    mark_missing,
    node_feature_names,
    node_features,
)
from engine.model.network_kernels import add_ends, add_messages
from engine.model.ranges import Ranges
from engine.types import Cache, Epoch, Float32, Int32, Int64, KnnGraph

import torch  # isort: skip
from torch import Tensor, nn  # isort: skip

BLOCK = 1024  # rows of every dense layer over edges: a buffer of 48 columns stays in the L2 cache
CHUNK = 512  # rows of every dense layer over nodes, half of BLOCK: those over a node's own features are wider
MOST_LOGIT = 4.0  # beyond it the digits of p are noise, which would order the densities of near-copies
_LOCAL = threading.local()


@dataclass(frozen=True, slots=True)
class UniversalConfig:
    """Sizes of the network."""

    k: int = 10  # length of the neighbour lists
    hidden: int = 48
    dropout: float = 0.0  # training only
    is_base: bool = True  # for level 0; the network of the levels above also reads evidence


class Universal(nn.Module):
    """The network above. Inputs are standardised features of `engine.model.features`."""

    def __init__(self, config: UniversalConfig) -> None:
        super().__init__()
        nodes = len(node_feature_names(config.k, config.is_base))
        edges, hidden = len(edge_feature_names(config.is_base)), config.hidden
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

        `x` (n, F): node features. `e` (e, G), `tails` (e,): features and target nodes of the edges, which are
        side by side by source node; `degrees` (n,): edges of each node.
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
    """Return the mean (n, hidden) of each node's messages, 0 without messages.

    `messages` (e, hidden): side by side by node, summed in their order; `degrees` (n,) int64: of each node.
    """
    import dgl.ops  # training only: the engine, which starts sooner without it, sums in `add_messages`

    if not len(messages):  # DGL would divide by zero
        return messages.new_zeros((len(degrees), messages.shape[1]))
    mean: Tensor = dgl.ops.segment_reduce(degrees, messages, "mean")
    return mean


class Linkage:
    """A trained network with the ranges of its inputs, as the engine runs it.

    `hidden`: width of what `embed` returns. `cache_widths`: floats of a node and of an edge in `Cache`.
    """

    def __init__(self, net: Universal, nodes: Ranges, edges: Ranges) -> None:
        self.net, self.nodes, self.edges = net.eval(), nodes, edges
        self.width = net.config.hidden
        self.hidden = 2 * self.width
        self._features = len(nodes.low), len(edges.low)
        self.cache_widths = self.width, len(edges.low)  # W2 x of a node, features of an edge
        # (inputs, outputs) and contiguous, as the products below read them
        self._weights = {name: value.detach().t().contiguous() for name, value in net.named_parameters()}
        near, far, update = self._weights["node_ends.weight"].chunk(3, dim=1)
        w1, w2, u = self._weights["node_ends.bias"].chunk(3)
        self._weights["near"] = torch.cat([near, update], dim=1)
        self._weights["near.bias"] = torch.cat([w1 + w2, u])  # of W1 and W2: both enter every message
        self._weights["far"] = far.contiguous()

    @torch.inference_mode()
    def embed(self, graph: KnnGraph, epoch: Epoch, rows: Int32, cache: Cache | None = None) -> Float32:
        """Return the edge head's terms A h_i | B h_i of the distinct nodes `rows` (m,): (m, hidden) float32.

        Reads the lists of `rows` and of their neighbours. Valid results are read from `cache`, missing ones
        added; discard the cache if the call fails.
        """
        sources, ranks = list_edges(graph, rows)
        tails = graph.neighbors[sources, ranks]
        far = self._far(graph, epoch, tails, cache)
        degrees = graph.degree[rows]
        heads = np.repeat(np.arange(len(rows), dtype=np.int32), degrees)
        out = torch.empty((len(rows), self.hidden))
        stops = np.searchsorted(heads, np.arange(0, len(rows) + CHUNK, CHUNK))

        def work(share: Sequence[slice]) -> None:
            buffers = _Buffers.own(self.width, *self._features)
            for chunk in share:
                part = slice(stops[chunk.start // CHUNK], stops[chunk.start // CHUNK + 1])
                edges = _Edges(sources[part], ranks[part], heads[part] - chunk.start, tails[part])
                self._near(graph, epoch, rows[chunk], buffers)
                self._sum(graph, epoch, edges, far, buffers, cache)
                buffers.mean.numpy()[: len(degrees[chunk])] /= np.maximum(degrees[chunk], 1)[:, None]
                self._update(out[chunk], buffers)

        share_out(len(rows), CHUNK, work)
        return out.numpy()

    @torch.inference_mode()
    def link(
        self,
        graph: KnnGraph,
        epoch: Epoch,
        hidden: Float32,
        sources: Int32,
        ranks: Int32,
        cache: Cache | None = None,
    ) -> Float32:
        """Return p (e,) float32 of the edges from `sources` to their neighbours at `ranks`, (e,) each.

        `hidden` (n, hidden): output of `embed`, by row, at least for the nodes at both ends. `cache`: as
        there.
        """
        w, out = self._weights, np.empty(len(sources), dtype=np.float32)
        targets = graph.neighbors[sources, ranks]

        def work(share: Sequence[slice]) -> None:
            features, q, inner, p = _buffers(self.cache_widths[1], self.width, self.width, 1)
            for part in share:
                m = part.stop - part.start
                own = features.numpy()[:m]
                edge_features(graph, epoch, sources[part], ranks[part], self.edges, own, cache)
                torch.mm(features, w["head_edge.weight"], out=q)
                add_ends(q.numpy(), hidden, sources[part], targets[part])
                torch.addmm(w["head_inner.bias"], q, w["head_inner.weight"], out=inner).relu_()
                torch.addmm(w["head_out.bias"], inner, w["head_out.weight"], out=p)
                p.clamp_(-MOST_LOGIT, MOST_LOGIT).sigmoid_()
                out[part] = p.numpy()[:m, 0]

        share_out(len(sources), BLOCK, work)
        return out

    @torch.inference_mode()
    def probabilities(self, x: Float32, e: Float32, degrees: Int32, tails: Int64) -> Float32:
        """Return p (e,) float32 of all edges of a graph, for training.

        `x`, `e`: raw features, of `raw_features`; the rest as in `Universal.forward`.
        """
        features = torch.from_numpy(self.nodes.apply(x)), torch.from_numpy(self.edges.apply(e))
        logits = self.net(*features, torch.from_numpy(degrees).long(), torch.from_numpy(tails))
        p: Float32 = torch.sigmoid(logits.clamp(-MOST_LOGIT, MOST_LOGIT)).numpy()
        return p

    def _far(self, graph: KnnGraph, epoch: Epoch, tails: Int32, cache: Cache | None) -> Float32:
        """Return W2 x of the nodes `tails`, which may repeat: (n, hidden), by row of the graph.

        Marks nodes as valid in the cache before it computes them.
        """
        if cache:
            far, holds = cache.nodes, cache.node_valid
        else:
            far = np.empty((len(graph.degree), self.width), np.float32)
            holds = np.zeros(len(far), np.bool_)
        nodes, w = mark_missing(tails, holds), self._weights["far"]

        def work(share: Sequence[slice]) -> None:
            x, product = _buffers(len(self.nodes.low), self.width)
            for part in share:
                m = part.stop - part.start
                node_features(graph, epoch, nodes[part], self.nodes, x.numpy()[:m])
                torch.mm(x, w, out=product)
                far[nodes[part]] = product.numpy()[:m]

        share_out(len(nodes), BLOCK, work)
        return far

    def _near(self, graph: KnnGraph, epoch: Epoch, rows: Int32, buffers: _Buffers) -> None:
        """Write W1 x | U x of a chunk's nodes, with the biases, to `buffers.near`."""
        node_features(graph, epoch, rows, self.nodes, buffers.x.numpy()[: len(rows)])
        torch.addmm(self._weights["near.bias"], buffers.x, self._weights["near"], out=buffers.near)

    def _sum(
        self,
        graph: KnnGraph,
        epoch: Epoch,
        edges: _Edges,
        far: Float32,
        buffers: _Buffers,
        cache: Cache | None,
    ) -> None:
        """Write the sums of a chunk's messages, a row for each of its nodes, to `buffers.mean`."""
        features, products, sums = buffers.features, buffers.products, buffers.mean.numpy()
        sums[:] = 0.0
        for part in parts(len(edges.sources), BLOCK):
            m = part.stop - part.start
            own = features.numpy()[:m]
            edge_features(graph, epoch, edges.sources[part], edges.ranks[part], self.edges, own, cache)
            torch.mm(features, self._weights["message_edge.weight"], out=products)
            near = buffers.near.numpy()
            add_messages(sums, products.numpy(), near, far, edges.heads[part], edges.tails[part])

    def _update(self, out: Tensor, buffers: _Buffers) -> None:
        """Write A h | B h of a chunk's nodes to `out`, from U x (in `buffers.near`) and the mean messages."""
        w, m = self._weights, len(out)
        h = torch.mm(buffers.mean, w["update.weight"], out=buffers.h)
        h += buffers.near[:, self.width :]
        out[:] = torch.addmm(w["head_ends.bias"], h.relu_(), w["head_ends.weight"], out=buffers.ends)[:m]

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights and ranges by name."""
        tensors = {name: value.detach().contiguous() for name, value in self.net.state_dict().items()}
        for kind, ranges in (("nodes", self.nodes), ("edges", self.edges)):
            for name, value in asdict(ranges).items():
                tensors[f"{kind}.{name}"] = torch.from_numpy(value)
        return tensors

    @classmethod
    def of(cls, tensors: dict[str, Tensor], config: UniversalConfig) -> Linkage:
        """Return the network that gave `tensors`. Raises KeyError, RuntimeError for other tensors."""
        tensors = dict(tensors)
        nodes, edges = (
            Ranges(*(tensors.pop(f"{kind}.{name}").numpy() for name in ("low", "high", "center", "scale")))
            for kind in ("nodes", "edges")
        )
        net = Universal(config)
        net.load_state_dict(tensors)
        return cls(net, nodes, edges)


@dataclass(frozen=True, slots=True)
class _Edges:
    """The edges out of one chunk of nodes, int32 (e,) each."""

    sources: Int32  # rows of the graph
    ranks: Int32
    heads: Int32  # the sources again, as rows of the chunk
    tails: Int32  # rows of the graph


class _Buffers:
    """Work arrays of one thread for embedding a chunk of nodes."""

    def __init__(self, width: int, node_features: int, edge_features: int) -> None:
        self.x = torch.zeros((CHUNK, node_features))
        self.near = torch.zeros((CHUNK, 2 * width))
        self.features = torch.zeros((BLOCK, edge_features))
        self.products = torch.zeros((BLOCK, width))
        self.mean, self.h = torch.zeros((CHUNK, width)), torch.zeros((CHUNK, width))
        self.ends = torch.zeros((CHUNK, 2 * width))

    @classmethod
    def own(cls, *shape: int) -> _Buffers:
        """Return this thread's buffers. Their reuse halves the cost for a few nodes."""
        kept: dict[tuple[int, ...], _Buffers] = _LOCAL.__dict__.setdefault("buffers", {})
        if shape not in kept:
            kept[shape] = cls(*shape)
        return kept[shape]


def _buffers(*widths: int) -> list[Tensor]:
    """Return this thread's padded blocks. Leftovers in the last rows of a block do not affect other rows."""
    kept: dict[tuple[int, ...], list[Tensor]] = _LOCAL.__dict__.setdefault("blocks", {})
    if widths not in kept:
        kept[widths] = [torch.zeros((BLOCK, width)) for width in widths]
    return kept[widths]
