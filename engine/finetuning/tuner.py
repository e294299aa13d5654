"""The network above level 0 in fine-tuning: it goes on from the start's, on levels that both have grown."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from engine.finetuning.ground import Ground, Grown, Known, known
from engine.model.linkage import LinkageModel
from engine.model.network import Linkage, Universal
from engine.system.determinism import one_thread
from engine.training.checkpoint import packed, unpacked
from engine.training.descent import Descent, Pace
from engine.training.graph_loss import density
from engine.training.learner import edge_weights
from engine.training.pool import keep
from engine.training.rollout import Scene

import torch  # isort: skip
from torch import Tensor  # isort: skip

TAUS = (0.3, 0.6)  # levels are grown at, about the models'
POOL = 40  # levels kept


@dataclass(frozen=True, slots=True)
class Pitch:
    """How fast the network learns."""

    pace: Pace = field(default_factory=lambda: Pace(rate=5e-4, decay=0.01, average=0.98, warm=10))
    first: int = 3  # times that levels are grown before the first step
    fresh_every: int = 20  # steps between new ones


class Tuner:
    """One network in fine-tuning on the labelled classes of some grounds."""

    def __init__(
        self, grounds: Sequence[Ground], start: LinkageModel, pitch: Pitch, rng: np.random.Generator
    ) -> None:
        self.grounds, self.start, self.pitch, self.rng = grounds, start, pitch, rng
        net = Universal(replace(start.upper.net.config))
        net.load_state_dict(start.upper.net.state_dict())
        self.descent = Descent(net, pitch.pace)
        self.pool: list[Known] = []

    @one_thread()
    def step(self, share: float) -> float:
        """Do one step of the optimizer at `share` of the whole training; return the loss."""
        if self.descent.steps and self.descent.steps % self.pitch.fresh_every == 0:
            at = int(self.rng.integers(len(self.grounds)))
            self.take(at, self.grounds[at].levels(self.model(), float(self.rng.uniform(*TAUS))))
        if not self.pool:
            return 0.0
        level = self.pool[int(self.rng.integers(len(self.pool)))]
        return self.descent.step(lambda net: known_loss(net, level), share)

    def model(self) -> LinkageModel:
        """Return the start with the average of the upper network's weights so far."""
        start = self.start.upper
        upper = Linkage(copy.deepcopy(self.descent.mean_net), start.nodes, start.edges)
        return LinkageModel(self.start.base, upper, self.start.card)

    def take(self, at: int, levels: Sequence[Grown]) -> None:
        """Keep those levels of a ground of which its labels tell."""
        ranges = self.start.upper
        for level in levels:
            told = known(level, self.grounds[at].labels)
            if told.known.any():
                x, e = ranges.nodes.apply(told.scene.x), ranges.edges.apply(told.scene.e)
                keep(self.pool, replace(told, scene=replace(told.scene, x=x, e=e)), POOL, self.rng)

    def state(self) -> dict[str, Any]:
        """Return everything that the next steps depend on, but for the random numbers."""
        pool = [{"scene": packed(level.scene), "known": torch.from_numpy(level.known)} for level in self.pool]
        return {**self.descent.state(), "pool": pool}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.descent.restore(state)
        self.pool = [Known(unpacked(Scene, each["scene"]), each["known"].numpy()) for each in state["pool"]]


def known_loss(net: Universal, level: Known) -> Tensor:
    """Return the loss of `engine.training.learner.scene_loss` on what labels tell of.

    An edge counts by the share of its pairs that they tell of; where they tell nothing, the network's own p
    stands in the densities.
    """
    scene, told = level.scene, torch.from_numpy(level.known)
    heads, tails = torch.from_numpy(scene.heads), torch.from_numpy(scene.tails)
    target, similarity = torch.from_numpy(scene.target), torch.from_numpy(scene.similarity)
    degrees = torch.from_numpy(scene.degrees)
    logits = net(torch.from_numpy(scene.x), torch.from_numpy(scene.e), degrees.long(), tails)
    p, counts = torch.sigmoid(logits), degrees.clamp(min=1)
    own = density(p, similarity, heads, counts)
    truth = density(told * target + (1.0 - told) * p.detach(), similarity, heads, counts)
    weight = told * edge_weights(scene, [len(scene.e)], logits.detach(), own.detach())
    linkage = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (weight * linkage).sum() / weight.sum().clamp(min=1e-9) + ((own - truth) ** 2).mean()
