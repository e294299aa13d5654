"""One network from several: its logits are the mean of theirs.

Trainings that differ by their seed alone err in different ways, and the mean of their logits errs
less than most of them. With block-diagonal weights the ensemble is again a `Universal` network,
as wide as all of them together, and the engine needs to know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from engine.model.features import Ranges
from engine.model.linkage import LinkageModel, Universal, UniversalConfig

import torch  # isort: skip
from torch import Tensor  # isort: skip


def average(models: Sequence[LinkageModel]) -> LinkageModel:
    """The mean of the logits of models with the same k; the card is the first one's.

    Features are clipped to the widest of the models' ranges; within all of them the mean is exact up
    to rounding.
    """
    first = models[0]
    nodes, edges = _widest([m.nodes for m in models]), _widest([m.edges for m in models])
    hidden = sum(m.card.hidden for m in models)
    net = Universal(UniversalConfig(first.k, hidden))
    parts = [_rescaled(model, nodes, edges) for model in models]
    state = {
        "node_ends.weight": _chunked([p["node_ends.weight"] for p in parts], 3, _stacked),
        "node_ends.bias": _chunked([p["node_ends.bias"] for p in parts], 3, _stacked),
        "message_edge.weight": torch.cat([p["message_edge.weight"] for p in parts]),
        "update.weight": _diagonal([p["update.weight"] for p in parts]),
        "head_ends.weight": _chunked([p["head_ends.weight"] for p in parts], 2, _diagonal),
        "head_ends.bias": _chunked([p["head_ends.bias"] for p in parts], 2, _stacked),
        "head_edge.weight": torch.cat([p["head_edge.weight"] for p in parts]),
        "head_inner.weight": _diagonal([p["head_inner.weight"] for p in parts]),
        "head_inner.bias": torch.cat([p["head_inner.bias"] for p in parts]),
        "head_out.weight": torch.cat([p["head_out.weight"] for p in parts], dim=1) / len(parts),
        "head_out.bias": torch.stack([p["head_out.bias"] for p in parts]).mean(dim=0),
    }
    net.load_state_dict({name: value.float() for name, value in state.items()})
    return LinkageModel(net, nodes, edges, replace(first.card, hidden=hidden))


def _widest(ranges: Sequence[Ranges]) -> Ranges:
    low = np.min([r.low for r in ranges], axis=0)
    high = np.max([r.high for r in ranges], axis=0)
    return Ranges(low, high, ranges[0].center, ranges[0].scale)


def _rescaled(model: LinkageModel, nodes: Ranges, edges: Ranges) -> dict[str, Tensor]:
    """The model's weights for features standardised by other centres and scales, in float64.

    The edge layers have no bias: theirs goes to the head node's term of the same sum.
    """
    state = {name: value.double() for name, value in model.net.state_dict().items()}
    width = model.card.hidden
    shift, factor = _change(model.nodes, nodes)
    state["node_ends.bias"] += state["node_ends.weight"] @ shift
    state["node_ends.weight"] = state["node_ends.weight"] * factor
    shift, factor = _change(model.edges, edges)
    state["node_ends.bias"][:width] += state["message_edge.weight"] @ shift
    state["head_ends.bias"][:width] += state["head_edge.weight"] @ shift
    for name in ("message_edge.weight", "head_edge.weight"):
        state[name] = state[name] * factor
    return state


def _change(own: Ranges, other: Ranges) -> tuple[Tensor, Tensor]:
    """(x - c) / s by `own` from that by `other`: times the factor, plus the shift."""
    return (
        torch.from_numpy((other.center - own.center) / own.scale),
        torch.from_numpy(other.scale / own.scale),
    )


def _chunked(tensors: Sequence[Tensor], chunks: int, join: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
    """Layers whose outputs are several chunks, joined chunk by chunk."""
    split = [tensor.chunk(chunks) for tensor in tensors]
    return torch.cat([join([parts[at] for parts in split]) for at in range(chunks)])


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(tensors))


def _diagonal(tensors: Sequence[Tensor]) -> Tensor:
    joined: Tensor = torch.block_diag(*tensors)  # type: ignore[no-untyped-call]
    return joined
