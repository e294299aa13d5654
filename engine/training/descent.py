"""How a network descends: AdamW with a warm-up and a cosine rate, and the average of its weights (EMA)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

LAST_RATE = 1 / 30  # of the first one
MOST_GRADIENT = 1.0  # norm

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Pace:
    """Rate, decay of the weights, decay of their average, and steps of warm-up."""

    rate: float
    decay: float
    average: float
    warm: int


class Descent(Generic[Net]):
    """One network in training and the average of its weights over the last steps."""

    def __init__(self, net: Net, pace: Pace) -> None:
        self.net, self.pace, self.steps = net, pace, 0
        self.mean_net = copy.deepcopy(net).eval()
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
            for mean, value in zip(self.mean_net.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(value, 1.0 - decay)
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        """Return everything that the next steps depend on."""
        return {
            "net": self.net.state_dict(),
            "mean": self.mean_net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.net.load_state_dict(state["net"])
        self.mean_net.load_state_dict(state["mean"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
