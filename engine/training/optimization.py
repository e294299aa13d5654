"""AdamW with warm-up, a cosine learning rate and clipped gradients, and an average of the weights (EMA)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

LAST_RATE = 1 / 30  # final learning rate, as a share of the highest
MOST_GRADIENT = 1.0  # norm beyond which gradients are clipped

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class OptimizerPlan:
    """Hyperparameters of the optimizer."""

    rate: float  # the highest learning rate
    decay: float  # weight decay
    average: float  # decay of the exponential moving average of the weights
    warm: int  # steps of warm-up


class Optimization(Generic[Net]):
    """One network with its optimizer and the moving average of its weights."""

    def __init__(self, net: Net, pace: OptimizerPlan) -> None:
        self.net, self.pace, self.steps = net, pace, 0
        self.ema_net = copy.deepcopy(net).eval()
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=pace.rate, weight_decay=pace.decay)

    def step(self, loss_of: Callable[[Net], Tensor], share: float) -> float:
        """Do one step of the optimizer at `share` of the whole training; return the loss."""
        warm = min(1.0, (self.steps + 1) / self.pace.warm)
        cosine = 0.5 * (1.0 + math.cos(math.pi * share))
        for group in self.optimizer.param_groups:
            group["lr"] = self.pace.rate * warm * (LAST_RATE + (1 - LAST_RATE) * cosine)
        self.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = loss_of(self.net)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), MOST_GRADIENT)
        self.optimizer.step()
        self.steps += 1
        decay = min(self.pace.average, self.steps / (self.steps + 20))
        with torch.no_grad():
            for mean, value in zip(self.ema_net.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(value, 1.0 - decay)
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        """Return everything that the next steps depend on."""
        return {
            "net": self.net.state_dict(),
            "mean": self.ema_net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.net.load_state_dict(state["net"])
        self.ema_net.load_state_dict(state["mean"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
