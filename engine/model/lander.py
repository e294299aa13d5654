"""The paper's own linkage model, `lander`, which reads embeddings.

LANDER (Xing et al., ICCV 2021, arXiv 2107.01319) reads the embeddings themselves, so it is bound to one
embedding space. With x_i the identity feature (the peak's vector) beside the average feature (the mean of the
tree), s_ij the similarity, floored at 0, and N(i) the neighbours of i:

    mean   h_i = relu(U x_i + V sum_{j in N(i)} a_ij x_j + b),   a_ij = s_ij / sum_{j in N(i)} s_ij
    gat    h_i = relu(mean over heads of sum_{j in N(i)} c_ij W x_j + b),
           c_ij = softmax_{j in N(i)} leaky(l W x_j + r W x_i)   (Velickovic et al., arXiv 1710.10903)
    q_ij = prelu(S h_j + T h_i),   z_ij = Q prelu(R q_ij),   p_ij = softmax(z_ij), second component

`engine.training.lander.network` is the same network in DGL, for training. The engine uses `LanderModel`. It
computes the products of a node's features once per node, and runs every dense layer over blocks of one
size, so that its output is a function of the graph's content, bit for bit. At level 0 both features are the
same vector, so their weights are added.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from engine.config import MAX_DIM
from engine.errors import InputError
from engine.model import files
from engine.model import lander_kernels as kernels
from engine.model.blocks import share_out
from engine.model.features import mark_missing
from engine.types import Bool, Cache, Epoch, Float32, Int32, KnnGraph

import safetensors  # isort: skip
import safetensors.torch  # isort: skip
import torch  # isort: skip
from torch import Tensor  # isort: skip

LARGEST = 1e37  # float32 ends at 3.4e38
BLOCK = 64  # rows of every dense layer; an `assign` of one vector fills one block
VARIANTS = ("mean", "gat")
MAX_HIDDEN = 4096
FORMAT = "shoal-lander-1"


@dataclass(frozen=True, slots=True)
class LanderCard:
    """Hyperparameters and defaults, stored next to the weights. `about`: training sets, scores, seed ..."""

    dim: int  # components of the embeddings
    variant: str = "mean"  # `mean` or `gat`
    hidden: int = 512
    heads: int = 1  # of attention, gat only
    average: bool = True  # reads average features in addition to the identity features
    k: int = 10
    tau: float = 0.5
    base_tau: float | None = None  # level 0's; None: tau
    max_levels: int = 2
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def half(self) -> int:
        """Width of the edge head."""
        return self.hidden // 2

    @property
    def features(self) -> int:
        """Components of x_i."""
        return self.dim * (2 if self.average else 1)


def shapes(card: LanderCard) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every weight, those of the authors' code with one convolution."""
    features, hidden, half = card.features, card.hidden, card.half
    layer = "conv.0.gcn_layer"
    if card.variant == "mean":
        own: dict[str, tuple[int, ...]] = {
            f"{layer}.mlp.weight": (hidden, 2 * features),  # U | V
            f"{layer}.mlp.bias": (hidden,),
        }
    else:
        own = {
            f"{layer}.fc.weight": (card.heads * hidden, features),  # W
            f"{layer}.attn_l": (1, card.heads, hidden),  # of the neighbour
            f"{layer}.attn_r": (1, card.heads, hidden),  # of the node itself
            f"{layer}.bias": (card.heads * hidden,),
            "conv.0.bias": (card.heads, hidden),
        }
    return own | {
        "src_mlp.weight": (half, hidden),  # S, of the neighbour
        "src_mlp.bias": (half,),
        "dst_mlp.weight": (half, hidden),  # T, of the node itself
        "dst_mlp.bias": (half,),
        "classifier_conn.0.weight": (half,),  # slopes of the first PReLU
        "classifier_conn.1.weight": (half, half),  # R
        "classifier_conn.1.bias": (half,),
        "classifier_conn.2.weight": (half,),
        "classifier_conn.3.weight": (2, half),  # Q: another class, the same class
        "classifier_conn.3.bias": (2,),
    }


class LanderModel:
    """Trained weights with their card, as the engine runs them; see `engine.model.linkage.LinkageModel`."""

    dim: int | None  # of its input
    base_tau: float | None  # level 0's; None: tau

    def __init__(self, weights: Mapping[str, Tensor], card: LanderCard) -> None:
        """`weights` as in `shapes(card)`. Raises InputError where they are not."""
        _check(weights, card)
        self.weights = {name: value.detach().float().contiguous() for name, value in weights.items()}
        self.card = card
        self.dim = card.dim
        self.k, self.tau, self.base_tau, self.max_levels = card.k, card.tau, card.base_tau, card.max_levels
        self.hidden = 2 * card.half
        width = 2 * card.hidden if card.variant == "mean" else card.heads * (card.hidden + 2)
        self.cache_widths = width, 0  # of a node: U x | V x, or W x | l W x | r W x
        self.default_epoch = Epoch(0.0, 1.0, 0)  # it reads no calibration
        self.sha256 = _digest(self._bytes(), card)
        node, self._bias = _node_layer(self.weights, card)
        self._node = node.contiguous()
        two = node[: card.dim] + node[card.dim :] if card.average else node
        self._base_node = two.contiguous()
        w = self.weights
        self._ends = torch.cat([w["dst_mlp.weight"], w["src_mlp.weight"]]).t().contiguous()
        self._ends_bias = torch.cat([w["dst_mlp.bias"], w["src_mlp.bias"]])
        self._inner = w["classifier_conn.1.weight"].t().contiguous()
        self._slopes = tuple(w[f"classifier_conn.{at}.weight"].numpy() for at in (0, 2))
        out, bias = w["classifier_conn.3.weight"], w["classifier_conn.3.bias"]
        self._out, self._out_bias = (out[1] - out[0])[:, None].contiguous(), (bias[1] - bias[0])[None]

    @property
    def base(self) -> LanderModel:
        """The network of level 0."""
        return self

    @property
    def upper(self) -> LanderModel:
        """The network of the levels above: the same."""
        return self

    @torch.inference_mode()
    def embed(self, graph: KnnGraph, epoch: Epoch, rows: Int32, cache: Cache | None = None) -> Float32:
        """Return the edge head's terms T h_i | S h_i of the distinct nodes `rows` (m,): (m, hidden) float32.

        Reads the lists of `rows`, and the vectors of `rows` and their neighbours. Valid results are read
        from `cache`, missing ones added; discard the cache if the call fails. Raises InputError: another
        dimension.
        """
        if graph.identity.shape[1] != self.card.dim:
            raise InputError(f"the model {wrong_dim(self.card.dim, graph.identity.shape[1])}")
        products, holds = self._cached(graph, cache)
        near = graph.neighbors[rows, : self.k]
        seen = np.concatenate([rows, near[np.arange(self.k) < graph.degree[rows][:, None]]])
        self._project(graph, mark_missing(seen.astype(np.int32), holds), products)
        lists = kernels.Lists(graph.neighbors, graph.dots, graph.degree)
        out = torch.empty((len(rows), self.hidden))

        def work(share: Sequence[slice]) -> None:
            h, ends = torch.zeros((BLOCK, self.card.hidden)), torch.zeros((BLOCK, self.hidden))
            for block in share:
                own = h.numpy()[: block.stop - block.start]
                if self.card.variant == "mean":
                    kernels.mean_affinity(own, rows[block], lists, products)
                else:
                    kernels.attention(own, rows[block], lists, products, self._bias)
                torch.addmm(self._ends_bias, h, self._ends, out=ends)
                out[block] = ends[: block.stop - block.start]

        share_out(len(rows), BLOCK, work)
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

        `hidden` (n, hidden): output of `embed`, by row, at least for the nodes at both ends.
        """
        out = np.empty(len(sources), np.float32)
        targets = graph.neighbors[sources, ranks]
        bias = self.weights["classifier_conn.1.bias"]

        def work(share: Sequence[slice]) -> None:
            q, inner = torch.zeros((BLOCK, self.card.half)), torch.zeros((BLOCK, self.card.half))
            p = torch.zeros((BLOCK, 1))
            for block in share:
                m = block.stop - block.start
                kernels.add_ends(q.numpy()[:m], hidden, sources[block], targets[block], self._slopes[0])
                torch.addmm(bias, q, self._inner, out=inner)
                kernels.prelu(inner.numpy(), self._slopes[1])
                torch.addmm(self._out_bias, inner, self._out, out=p).sigmoid_()
                out[block] = p.numpy()[:m, 0]

        share_out(len(sources), BLOCK, work)
        return out

    def _cached(self, graph: KnnGraph, cache: Cache | None) -> tuple[Float32, Bool]:
        if cache:
            return cache.nodes, cache.node_valid
        count = len(graph.degree)
        return np.empty((count, self.cache_widths[0]), np.float32), np.zeros(count, np.bool_)

    def _project(self, graph: KnnGraph, nodes: Int32, products: Float32) -> None:
        """Write the products of the features of `nodes` to their rows of `products`."""
        weights = self._base_node if graph.is_base else self._node
        bias = self._bias if self.card.variant == "mean" else torch.zeros(weights.shape[1])
        both = self.card.average and not graph.is_base

        def work(share: Sequence[slice]) -> None:
            x, product = torch.zeros((BLOCK, len(weights))), torch.zeros((BLOCK, weights.shape[1]))
            for block in share:
                rows = nodes[block]
                kernels.put_vectors(x.numpy(), 0, graph.identity, rows)
                if both:
                    kernels.put_vectors(x.numpy(), self.card.dim, graph.mean, rows)
                torch.addmm(bias, x, weights, out=product)
                products[rows] = product.numpy()[: len(rows)]

        share_out(len(nodes), BLOCK, work)

    def _bytes(self) -> bytes:
        return safetensors.torch.save(self.weights)

    def with_weights(self, weights: Mapping[str, Tensor]) -> LanderModel:
        """Return the model with some other weights."""
        return LanderModel({**self.weights, **weights}, self.card)

    def with_card(self, card: LanderCard) -> LanderModel:
        """Return the same weights with another card."""
        return LanderModel(self.weights, card)

    def save(self, path: Path) -> None:
        """Write the weights to `path` (.safetensors) and the card next to it (.json)."""
        files.write(path, {"format": FORMAT, **asdict(self.card), "sha256": self.sha256}, self._bytes())

    @classmethod
    def load(cls, path: Path) -> LanderModel:
        """Read what `save` wrote. Raises InputError where files are missing, broken, or not of one model."""
        return cls.parse(path, *files.read(path))

    @classmethod
    def parse(cls, path: Path, facts: Mapping[str, Any], weights: bytes) -> LanderModel:
        """Return the model of a card and its weights, which were read from `path`. Raises InputError."""
        if "variant" not in facts and "format" not in facts:
            raise files.foreign(path, "it is a universal model; a lander is wanted here", "lander")
        if (form := facts.get("format")) != FORMAT:
            raise files.foreign(path, f"its format is {form}, this version of Shoal reads {FORMAT}", "lander")
        told = {name: value for name, value in facts.items() if name not in ("format", "sha256")}
        files.require_known(path, told, [entry.name for entry in fields(LanderCard)])
        try:
            card = LanderCard(**told)
            model = cls(safetensors.torch.load(weights), card)
        except (KeyError, TypeError, ValueError, safetensors.SafetensorError, InputError) as error:
            raise files.foreign(path, error, "lander") from error
        if _digest(weights, card) != facts.get("sha256"):
            raise InputError(f"{path} and its .json are not of one model: their SHA-256 differ")
        return model


def wrong_dim(takes: int, given: int) -> str:
    """Return the end of a sentence: embeddings have another dimension than the model's."""
    return f"takes embeddings of {takes} components, these have {given}: it is bound to one embedding space"


def _check(weights: Mapping[str, Tensor], card: LanderCard) -> None:
    """Raise InputError where a card is invalid or weights do not fit it."""
    if card.variant not in VARIANTS:
        raise InputError(f"the variant of a lander is one of {', '.join(VARIANTS)}, not {card.variant!r}")
    for name, most in (("dim", MAX_DIM), ("hidden", MAX_HIDDEN), ("heads", 64), ("k", 256)):
        value = getattr(card, name)
        if not isinstance(value, int) or not (2 if name == "hidden" else 1) <= value <= most:
            raise InputError(f"{name} of a lander is an integer up to {most}, not {value!r}")
    if not 0.0 <= card.tau < 1.0 or card.max_levels < 1:
        raise InputError(f"tau is in [0, 1) and max_levels at least 1, not {card.tau} and {card.max_levels}")
    if card.base_tau is not None and not 0.0 <= card.base_tau < 1.0:
        raise InputError(f"base_tau is in [0, 1), or none, not {card.base_tau}")
    wanted = shapes(card)
    if wanted.keys() != weights.keys():
        missing, surplus = wanted.keys() - weights.keys(), weights.keys() - wanted.keys()
        told = [
            f"{', '.join(sorted(names)[:4])} {word}"
            for names, word in ((missing, "missing"), (surplus, "too many"))
            if names
        ]
        raise InputError(f"the weights are not those of a `{card.variant}` lander: {'; '.join(told)}")
    for name, shape in wanted.items():
        found = tuple(weights[name].shape)
        if found != shape:
            raise InputError(f"{name} has the shape {found}, a lander of this card has {shape}")
        if not torch.isfinite(weights[name]).all():
            raise InputError(f"{name} holds weights that are not finite: train it again")
    if not _reach(weights, card) < LARGEST:
        raise InputError("the weights are so large that p could not be computed: train it again")


def _reach(weights: Mapping[str, Tensor], card: LanderCard) -> float:
    """Return a bound of everything that the network computes, as no component of a feature exceeds 1."""
    w = {name: value.detach().double().abs() for name, value in weights.items()}
    node, bias = _node_layer(w, card)
    products = node.sum(dim=0)  # U x | V x, or W x | l W x | r W x
    h = products.sum() + torch.as_tensor(bias).double().abs().max()
    q = (w["src_mlp.weight"] + w["dst_mlp.weight"]).sum(dim=1) * h + w["src_mlp.bias"] + w["dst_mlp.bias"]
    q = q * w["classifier_conn.0.weight"].clamp(min=1.0)
    inner = w["classifier_conn.1.weight"] @ q + w["classifier_conn.1.bias"]
    inner = inner * w["classifier_conn.2.weight"].clamp(min=1.0)
    z = w["classifier_conn.3.weight"] @ inner + w["classifier_conn.3.bias"]
    return float(torch.stack([h, q.max(), inner.max(), z.max()]).max())


def _node_layer(weights: Mapping[str, Tensor], card: LanderCard) -> tuple[Tensor, Any]:
    """Return the matrix (features, keeps) of a node's products, and the bias of the convolution.

    The bias belongs to the products of `mean`, (2 hidden,); of `gat` to the heads, (heads, hidden).
    """
    layer = "conv.0.gcn_layer"
    if card.variant == "mean":
        own, other = weights[f"{layer}.mlp.weight"].chunk(2, dim=1)
        bias = weights[f"{layer}.mlp.bias"]
        return torch.cat([own.t(), other.t()], dim=1), torch.cat([bias, torch.zeros_like(bias)])
    w = weights[f"{layer}.fc.weight"].reshape(card.heads, card.hidden, card.features)
    left = torch.einsum("khf,kh->fk", w, weights[f"{layer}.attn_l"][0])
    right = torch.einsum("khf,kh->fk", w, weights[f"{layer}.attn_r"][0])
    both = weights[f"{layer}.bias"].reshape(card.heads, card.hidden) + weights["conv.0.bias"]
    return torch.cat([w.reshape(-1, card.features).t(), left, right], dim=1), both.numpy()


def _digest(weights: bytes, card: LanderCard) -> str:
    """Return a digest of all that the output depends on; users choose `tau` and `max_levels`."""
    facts = (FORMAT, card.dim, card.variant, card.hidden, card.heads, card.average, card.k)
    return hashlib.sha256(weights + repr(facts).encode()).hexdigest()
