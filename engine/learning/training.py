"""Trains a network that maps items to embeddings: balanced batches, a base loss, TCM.

A batch has equally many items of each of its classes. For Smooth-AP the numbers of classes and of items per
class are equal, because pytorch-metric-learning 2.9 splits other batches wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from engine.errors import InputError
from engine.learning.losses import Margins, Objective, make_loss
from engine.types import Int64

import torch  # isort: skip
from torch import Tensor, nn  # isort: skip

Read = Callable[[Int64], Tensor]  # items (b,) -> input of the network


@dataclass(frozen=True, slots=True)
class Plan:
    """Hyperparameters."""

    loss: str = "NormalizedSoftmaxLoss"
    settings: Mapping[str, float] = field(default_factory=dict)  # of the loss, over its defaults
    steps: int = 400
    batch: int = 144  # items
    each: int = 4  # items per class in a batch
    rate: float = 3e-3  # Adam's; cosine to a hundredth of it
    decay: float = 1e-4
    seed: int = 0
    tcm: float = 0.0  # weight of TCM; 0: without
    margins: Margins | None = None  # None: from the calibration range of the training pairs
    warm: float = 0.3  # share of the steps before TCM


CLASS_RATE = 10.0  # factor on the rate for a loss's class vectors, each of which is in few batches
FALSE_ACCEPTANCE = (0.01, 0.10)  # rates at the ends of the calibration range


def fit(
    net: nn.Module,
    read: Read,
    classes: Int64,
    plan: Plan,
    progress: Callable[[float, float], None] = lambda share, loss: None,
) -> Margins | None:
    """Train `net` in place; `classes` (n,): of the items, from 0. Return the margins of TCM, None: without.

    `progress` is called with the share done and the loss. Raises InputError where the loss cannot be used.
    """
    torch.manual_seed(plan.seed)
    draw = Batches(classes, *_shape(plan), plan.seed)
    with torch.no_grad():
        dim = net.eval()(read(draw.next())).shape[1]
    objective = Objective(make_loss(plan.loss, int(classes.max()) + 1, dim, plan.settings), plan.tcm)
    weights = [*net.parameters(), *objective.parameters()]
    groups = [
        {"params": [*net.parameters()], "factor": 1.0},
        {"params": [*objective.parameters()], "factor": CLASS_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.rate, weight_decay=plan.decay)
    margins = None
    left_out = 0
    recent: list[tuple[Tensor, Tensor]] = []
    net.train()
    for step in range(plan.steps):
        _set_rate(optimizer, plan.rate, step, plan.steps)
        items = draw.next()
        labels = torch.from_numpy(classes[items])
        emb = nn.functional.normalize(net(read(items)), dim=1)
        if plan.tcm and margins is None:
            recent = [*recent[-7:], (emb.detach(), labels)]
            if step >= plan.warm * plan.steps:
                margins = plan.margins or measured_margins(recent)
                objective.set_margins(margins)
        loss = _loss(objective, emb, labels, plan.loss)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        # ArcFace's gradient is infinite where an embedding equals its class vector: skip such a batch.
        if torch.isfinite(nn.utils.clip_grad_norm_(weights, 5.0)):
            optimizer.step()
        else:
            left_out += 1
        if step % 10 == 9 or step + 1 == plan.steps:
            progress((step + 1) / plan.steps, float(loss.detach()))
    net.eval()
    if left_out > plan.steps / 10:
        raise InputError(f"{plan.loss} had no finite gradient in {left_out} of {plan.steps} batches.")
    return margins


def measured_margins(batches: list[tuple[Tensor, Tensor]]) -> Margins:
    """Return the ends of the calibration range, as similarities, of the negative pairs in some batches.

    They accept 1% and 10% of the negative pairs: positive pairs are to exceed the first, negative ones to
    stay below the second.
    """
    emb = torch.cat([emb for emb, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    similarities = (emb @ emb.T)[labels[:, None] != labels]
    low, high = FALSE_ACCEPTANCE
    chosen = np.quantile(similarities.numpy(), [1.0 - low, 1.0 - high])
    return Margins(float(chosen[0]), float(chosen[1]))


class Batches:
    """Random batches of `count` classes with `each` items, sorted by class. Small classes repeat items."""

    def __init__(self, classes: Int64, count: int, each: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        order = np.argsort(classes, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(classes[order])) + 1)
        self.members = [part for part in parts if len(part) > 1]
        if len(self.members) < 2:
            raise InputError("training needs two classes of two items or more.")
        self.count, self.each = count, each
        self.queue: list[int] = []

    def next(self) -> Int64:
        """Return items (count * each,), fewer where there are fewer classes; each class once an epoch."""
        count = min(self.count, len(self.members))
        if len(self.queue) < count:
            self.queue = [*self.rng.permutation(len(self.members)).tolist()]
        chosen, self.queue = self.queue[:count], self.queue[count:]
        return np.concatenate([self._some(self.members[number]) for number in sorted(chosen)])

    def _some(self, items: Int64) -> Int64:
        if len(items) >= self.each:
            return self.rng.permutation(items)[: self.each]
        return np.concatenate([items, self.rng.choice(items, self.each - len(items))])


def _shape(plan: Plan) -> tuple[int, int]:
    """Return the number of classes in a batch, and of items per class."""
    if plan.loss == "SmoothAPLoss":
        side = max(round(plan.batch**0.5), 2)
        return side, side
    return max(plan.batch // plan.each, 2), plan.each


def _loss(objective: Objective, emb: Tensor, labels: Tensor, name: str) -> Tensor:
    try:
        loss: Tensor = objective(emb, labels)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as problem:
        raise InputError(f"{name} cannot be trained on labelled batches: {problem}.") from None
    if not torch.isfinite(loss):
        raise InputError(f"{name} became {float(loss.detach())}: name another loss, or a smaller rate.")
    return loss


def _set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    warm = min(1.0, (step + 1) / max(0.05 * steps, 1.0))
    for group in optimizer.param_groups:
        group["lr"] = (
            group["factor"] * rate * warm * (0.01 + 0.99 * 0.5 * (1.0 + np.cos(np.pi * step / steps)))
        )
