"""Metric-learning losses by name, and the threshold-consistent margin (TCM) as a regulariser.

The base losses and `ThresholdConsistentMarginLoss` are those of pytorch-metric-learning. With s the
similarity of a pair in a batch, the margin loss (TCM, arXiv 2307.04047, eq. 4) is

    mean of (m+ - s) over the positive pairs with s <= m+  +  mean of (s - m-) over the negative with s >= m-

so only pairs on the wrong side of a margin contribute, and all classes share the same two margins.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from engine.errors import InputError

from pytorch_metric_learning import losses as library  # isort: skip
from torch import Tensor, nn  # isort: skip

DEFAULTS = ("SmoothAPLoss", "ArcFaceLoss", "NormalizedSoftmaxLoss")  # tried unless one is named
MARGIN_LOSS = "ThresholdConsistentMarginLoss"


@dataclass(frozen=True, slots=True)
class Margins:
    """Margins of TCM, as similarities."""

    positive: float  # m+, which positive pairs are to exceed
    negative: float  # m-, below which negative pairs are to stay


# In most trials better on held-out classes than margins from the calibration range: those are lower, and
# training classes reach them early, held-out classes do not.
FIXED_MARGINS = Margins(0.9, 0.5)


class Objective(nn.Module):
    """A base loss plus weighted TCM, once its margins are set."""

    def __init__(self, base: nn.Module, weight: float) -> None:
        super().__init__()
        self.base, self.weight = base, weight
        self.by_angle = "ArcFace" in type(base).__name__
        self.margin: nn.Module | None = None

    def set_margins(self, margins: Margins) -> None:
        """Add TCM from now on."""
        self.margin = library.ThresholdConsistentMarginLoss(
            margin_plus=margins.positive, margin_minus=margins.negative
        )

    def forward(self, emb: Tensor, classes: Tensor) -> Tensor:
        """Return the loss of embeddings (b, d), sorted by class, with equal counts, as Smooth-AP requires."""
        # In float32, angles near 0 have no gradient: in few dimensions half of the batches would be lost.
        loss: Tensor = self.base(emb.double() if self.by_angle else emb, classes)
        if self.margin is not None and self.weight:
            loss = loss + self.weight * self.margin(emb, classes)
        return loss


def make_loss(
    name: str, classes: int, dim: int, settings: Mapping[str, float] = MappingProxyType({})
) -> nn.Module:
    """Return a loss of pytorch-metric-learning; `settings` override its defaults.

    `classes` and `dim` go to losses that learn a vector for each class. Raises InputError for an unknown
    name, or a loss that does not work on labelled batches.
    """
    kind = getattr(library, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, nn.Module) and name.endswith("Loss")):
        known = ", ".join(sorted(each for each in dir(library) if each.endswith("Loss")))
        raise InputError(f"{name} is no loss of pytorch-metric-learning. There are: {known}.")
    if name == MARGIN_LOSS:
        raise InputError(f"{name} is what is added to a base loss: name another.")
    given = {"num_classes": classes, "embedding_size": dim, **settings}
    wanted = inspect.signature(kind).parameters
    try:
        made: nn.Module = kind(**{key: value for key, value in given.items() if key in wanted})
    except TypeError:
        raise InputError(f"{name} needs more than labelled embeddings: name another loss.") from None
    return made


logging.getLogger("PML").setLevel(logging.ERROR)  # silences hints about recording statistics
