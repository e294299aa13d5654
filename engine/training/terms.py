"""Adds two terms to the upper network's logits: of the sizes of two supernodes, and of whether they touch.

The p of an edge says how many pairs across are of one class. What a link is worth differs by size all the
same: a wrong one between two small supernodes is one of many candidates, of which decoding takes the most
probable; a missing one between two large ones leaves a class in pieces. The term is

    slope * log(min(n_i, n_j, most)) - offset

with n the distinct vectors of a supernode. Where pairs are spread as those of random directions are, in a
plane for instance, classes lie side by side however large they are: there the logarithm counts less, or
nothing.

The other term takes `apart` off where no member of one supernode has one of the other in its list. Twelve
clear clusters say nothing of each other; without the term the network's p was that of a coin, above tau.

Units beside the trained ones compute the terms, so they are a part of the weights: the engine,
fine-tuning and other readers of the file need not know of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from engine.model.features import edge_feature_names, node_feature_names
from engine.model.linkage import LinkageModel
from engine.model.network import Linkage, Universal

import torch  # isort: skip
from torch import Tensor  # isort: skip

ADDED = 4  # hidden units: three for sizes, one for touching


@dataclass(frozen=True, slots=True)
class Terms:
    """Chosen on collections left out of the training; see ARCHITECTURE, "Two large supernodes"."""

    slope: float = 0.4
    offset: float = 0.3
    most: int = 16  # larger supernodes count as this large
    isotropy: tuple[float, float] = (0.1, 0.4)  # of the collection: the first: no logarithm, the second: all
    apart: float = 10.0  # taken off where no edge of level 0 leads from one to the other


def with_terms(model: LinkageModel, terms: Terms) -> LinkageModel:
    """Return a model whose upper network adds the terms to its logits; it is `ADDED` units wider."""
    upper = _widened(model.upper, terms)
    return LinkageModel(model.base, upper, replace(model.card, upper_hidden=upper.width))


def _widened(linkage: Linkage, terms: Terms) -> Linkage:
    config = linkage.net.config
    net = Universal(replace(config, hidden=config.hidden + ADDED))
    weights = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}
    for name, value in linkage.net.state_dict().items():
        blocks = {"node_ends": 3, "head_ends": 2}.get(name.partition(".")[0], 1)
        for own, trained in zip(weights[name].chunk(blocks), value.chunk(blocks), strict=True):
            own[tuple(slice(count) for count in trained.shape)] = trained
    _add_size(weights, linkage, terms)
    _add_apart(weights, linkage, terms)
    net.load_state_dict(weights)
    return Linkage(net, linkage.nodes, linkage.edges)


def _add_size(weights: Mapping[str, Tensor], linkage: Linkage, terms: Terms) -> None:
    """Write the units of the term of sizes behind those of `linkage`.

    Hidden units, of z = log n: z, (z - log most)+, and what `isotropy` takes off.

    Head units of an edge, for v = min(z, log most): v_i, (v_i - v_j)+, and what is taken off; the inner one
    is the smaller v less the latter, or 0.
    """
    config, at = linkage.net.config, linkage.width
    log_most = math.log(terms.most)
    none, whole = terms.isotropy
    steep = log_most / (whole - none)
    update, update_bias = (weights[f"node_ends.{kind}"].chunk(3)[2] for kind in ("weight", "bias"))
    for unit, name, factor, origin in (
        (at, "size", 1.0, 0.0),
        (at + 1, "size", 1.0, log_most),
        (at + 2, "isotropy", -steep, whole),
    ):
        feature = node_feature_names(config.k, config.is_base).index(name)
        center, scale = float(linkage.nodes.center[feature]), float(linkage.nodes.scale[feature])
        update[unit, feature] = factor * scale  # undoes the standardisation
        update_bias[unit] = factor * (center - origin)
    source, target = weights["head_ends.weight"].chunk(2)
    smaller = torch.tensor([1.0, -1.0])
    source[at, at : at + 2] = smaller
    source[at + 1, at : at + 2] = smaller
    target[at + 1, at : at + 2] = -smaller
    source[at + 2, at + 2] = 1.0
    weights["head_inner.weight"][at, at : at + 3] = torch.tensor([1.0, -1.0, -1.0])
    weights["head_out.weight"][0, at] = terms.slope
    weights["head_out.bias"].sub_(terms.offset)


def _add_apart(weights: Mapping[str, Tensor], linkage: Linkage, terms: Terms) -> None:
    """Write the unit of the other term behind those of `_add_size`: 1 - joined."""
    at, feature = linkage.width + ADDED - 1, edge_feature_names(False).index("joined")
    center, scale = float(linkage.edges.center[feature]), float(linkage.edges.scale[feature])
    weights["head_edge.weight"][at, feature] = -scale  # undoes the standardisation
    weights["head_ends.bias"].chunk(2)[0][at] = 1.0 - center
    weights["head_inner.weight"][at, at] = 1.0
    weights["head_out.weight"][0, at] = -terms.apart
