"""Trains adapters: a linear map or a small MLP on top of existing embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from engine.errors import InputError
from engine.learning.labelled import LabelledSet, unit
from engine.learning.losses import Margins
from engine.learning.training import Plan, fit
from engine.model.adapter import Adapter as Adapter  # for the command line too
from engine.types import Float32
from engine.vectors import as_float, quantize

import torch  # isort: skip
from torch import Tensor, nn  # isort: skip

KINDS = ("linear", "mlp")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Architecture of an adapter."""

    kind: str = "linear"
    dim: int = 128  # of its output
    hidden: int = 256  # units of an MLP


class AdapterNet(nn.Module):
    """The map of `engine.model.adapter` in real numbers, with batch normalisation of its output.

    It is initialised as a random projection, and trained with dropout on its input.
    """

    def __init__(self, dim: int, shape: AdapterConfig) -> None:
        super().__init__()
        self.direct = nn.Linear(dim, shape.dim, bias=False)
        self.inner = nn.Linear(dim, shape.hidden) if shape.kind == "mlp" else None
        self.outer = nn.Linear(shape.hidden, shape.dim, bias=False) if shape.kind == "mlp" else None
        self.centre = nn.BatchNorm1d(shape.dim, affine=False)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(x)
        y = self.direct(x)
        if self.inner is not None and self.outer is not None:
            y = y + self.outer(torch.relu(self.inner(x)))
        out: Tensor = self.centre(y)
        return out

    def weights(self) -> dict[str, NDArray[Any]]:
        """Return the weights for `Adapter.of`, with the batch normalisation folded in."""
        mean, variance = self.centre.running_mean, self.centre.running_var
        assert mean is not None
        assert variance is not None
        scale = torch.rsqrt(variance + self.centre.eps)
        found = {"direct": self.direct.weight.T * scale, "bias": -mean * scale}
        if self.inner is not None and self.outer is not None:
            found["inner"], found["inner_bias"] = self.inner.weight.T, self.inner.bias
            found["outer"] = self.outer.weight.T * scale
        return {name: tensor.detach().double().numpy() for name, tensor in found.items()}


def train_adapter(
    labelled: LabelledSet,
    shape: AdapterConfig,
    plan: Plan,
    about: Mapping[str, Any],
    progress: Callable[[float, float], None] = lambda share, loss: None,
) -> tuple[Adapter, Margins | None]:
    """Train an adapter on a labelled set; return it and the margins of TCM, None: without TCM.

    `progress` is called with the share done and the loss. Raises InputError where the loss cannot be used.
    """
    torch.manual_seed(plan.seed)
    x = torch.from_numpy(as_float(quantize(labelled.emb)[0]))
    net = AdapterNet(x.shape[1], shape)
    margins = fit(net, lambda items: x[items], labelled.classes, plan, progress)
    return Adapter.of(net.weights(), about), margins


def adapted(adapter: Adapter, labelled: LabelledSet) -> LabelledSet:
    """Return the set with adapted embeddings."""
    return LabelledSet(map_embeddings(adapter, labelled.emb), labelled.classes, labelled.names)


def map_embeddings(adapter: Adapter, emb: NDArray[Any]) -> Float32:
    """Map embeddings (n, d) of any number type to unit vectors (n, dim_out).

    Raises InputError for another dimension or shape, NaN, infinity, or a zero vector.
    """
    if emb.ndim != 2 or emb.dtype.kind not in "fiu" or not emb.size:
        raise InputError(f"emb must be numbers of the shape (n, d), not {emb.dtype} {emb.shape}.")
    grid, bad = quantize(emb)
    if bad:
        row, reason = next(iter(bad.items()))
        raise InputError(f"row {row} of emb: {reason}.")
    return unit(as_float(adapter.apply(grid)))
