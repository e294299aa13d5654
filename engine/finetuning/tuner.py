"""Fine-tunes the networks of the universal model on partly labelled levels: roll-outs of their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from engine.finetuning.collection import FinetuneCollection, LabelledLevel, RolloutLevel, labelled_level
from engine.model.linkage import LinkageModel
from engine.model.network import Linkage, Universal
from engine.system.determinism import one_thread
from engine.training.checkpoint import packed, unpacked
from engine.training.graph_loss import density
from engine.training.learner import edge_weights
from engine.training.optimization import Optimization, OptimizerPlan
from engine.training.pool import keep
from engine.training.rollout import TrainingGraph

import torch  # isort: skip
from torch import Tensor  # isort: skip

TAUS = (0.3, 0.6)  # range of tau for roll-outs, around the model's
BASE_SPREAD = 0.1  # of level 0's tau for roll-outs, to either side of the model's
POOL = 40  # levels kept for replay


@dataclass(frozen=True, slots=True)
class TunerPlan:
    """Hyperparameters of a fine-tuning on a few classes."""

    pace: OptimizerPlan = field(
        default_factory=lambda: OptimizerPlan(rate=5e-4, decay=0.01, average=0.98, warm=10)
    )
    anchor: float = 0.1  # weight of the start's p where labels say nothing
    kept: float = 0.25  # weight of the start's weights in the mean with the fine-tuned ones
    first: int = 3  # roll-outs of each collection before the first step
    fresh_every: int = 20  # steps between new roll-outs


class NetworkTuner:
    """One network in fine-tuning, the average of its weights, and the levels that it learns from."""

    def __init__(
        self, start: Linkage, plan: OptimizerPlan, pool_size: int, anchor: float = 0.0, kept: float = 0.0
    ) -> None:
        self.start, self.pool_size, self.anchor, self.kept = start, pool_size, anchor, kept
        net = Universal(replace(start.net.config))
        net.load_state_dict(start.net.state_dict())
        self.optimization = Optimization(net, plan)
        self.pool: list[LabelledLevel] = []

    def take(self, level: LabelledLevel, rng: np.random.Generator) -> None:
        """Add a level with raw features to the pool, if labels bear on it."""
        if level.coverage.any():
            level, graph = anchored(level, self.start, self.anchor), level.graph
            x, e = self.start.nodes.apply(graph.x), self.start.edges.apply(graph.e)
            keep(self.pool, replace(level, graph=replace(level.graph, x=x, e=e)), self.pool_size, rng)

    @one_thread()
    def step(self, share: float, rng: np.random.Generator) -> float:
        """Do one step of the optimizer at `share` of the whole training; return the loss."""
        if not self.pool:
            return 0.0
        level = self.pool[int(rng.integers(len(self.pool)))]
        return self.optimization.step(lambda net: labelled_loss(net, level), share)

    def linkage(self) -> Linkage:
        """Return the average of the weights so far, mixed with the start's, as the engine runs it.

        The mixture keeps most of what was learned and forgets less: WiSE-FT (Wortsman et al., arXiv
        2109.01903).
        """
        net = copy.deepcopy(self.optimization.ema_net)
        with torch.no_grad():
            for own, started in zip(net.parameters(), self.start.net.parameters(), strict=True):
                own.lerp_(started, self.kept)
        return Linkage(net, self.start.nodes, self.start.edges)

    def state(self) -> dict[str, Any]:
        """Return the state of the training, for a checkpoint, without the random generators."""
        pool = [
            {"graph": packed(level.graph), "coverage": torch.from_numpy(level.coverage)}
            for level in self.pool
        ]
        return {**self.optimization.state(), "pool": pool}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.optimization.restore(state)
        self.pool = [
            LabelledLevel(unpacked(TrainingGraph, each["graph"]), each["coverage"].numpy())
            for each in state["pool"]
        ]


class Tuner:
    """Both networks in fine-tuning on the labelled classes of some collections."""

    def __init__(
        self,
        collections: Sequence[FinetuneCollection],
        start: LinkageModel,
        plan: TunerPlan,
        rng: np.random.Generator,
    ) -> None:
        self.collections, self.start, self.plan, self.rng = collections, start, plan, rng
        self.base, self.upper = (
            NetworkTuner(each, plan.pace, POOL, plan.anchor, plan.kept) for each in (start.base, start.upper)
        )
        self.steps = 0  # of a network without levels to learn from, too

    def step(self, share: float) -> float:
        """Do one step of each network at `share` of the whole training; return the upper one's loss."""
        if self.steps and self.steps % self.plan.fresh_every == 0:
            at = int(self.rng.integers(len(self.collections)))
            self.take(at, self.collections[at].levels(self.model(), *drawn_taus(self.start, self.rng)))
        self.steps += 1
        self.base.step(share, self.rng)
        return self.upper.step(share, self.rng)

    def model(self) -> LinkageModel:
        """Return the averages of the weights so far."""
        return LinkageModel(self.base.linkage(), self.upper.linkage(), self.start.card)

    def take(self, at: int, levels: Sequence[RolloutLevel]) -> None:
        """Add the levels of collection number `at` on which its labels bear to the pools."""
        for level in levels:
            tuner = self.upper if level.graph.level else self.base
            tuner.take(labelled_level(level, self.collections[at].labels), self.rng)

    def state(self) -> dict[str, Any]:
        """Return the state of the training, for a checkpoint, without the random generators."""
        return {"steps": self.steps, "base": self.base.state(), "upper": self.upper.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.steps = state["steps"]
        self.base.restore(state["base"])
        self.upper.restore(state["upper"])


def anchored(level: LabelledLevel, start: Linkage, weight: float) -> LabelledLevel:
    """Let the start's p count where labels say nothing, with a small weight.

    The network then stays there what it was: learning without forgetting (Li and Hoiem, arXiv 1606.09282).
    Features of the level are raw.
    """
    if not weight:
        return level
    graph, labelled = level.graph, level.coverage
    prior = start.probabilities(graph.x, graph.e, graph.degrees, graph.tails)
    silent = weight * (1.0 - labelled)
    coverage = labelled + silent
    target = (labelled * graph.target + silent * prior) / np.maximum(coverage, 1e-9)
    return LabelledLevel(replace(graph, target=target.astype(np.float32)), coverage.astype(np.float32))


def drawn_taus(model: LinkageModel, rng: np.random.Generator) -> tuple[float, float]:
    """Return tau and level 0's tau of a roll-out."""
    return float(rng.uniform(*TAUS)), drawn_base_tau(model, rng)


def drawn_base_tau(model: LinkageModel, rng: np.random.Generator) -> float:
    """Return level 0's tau of a roll-out, around the model's."""
    base_tau = model.tau if model.base_tau is None else model.base_tau
    return base_tau + float(rng.uniform(-BASE_SPREAD, BASE_SPREAD))


def labelled_loss(net: Universal, level: LabelledLevel) -> Tensor:
    """Return the loss of `engine.training.learner.training_loss` on a partly labelled level.

    An edge's weight is multiplied by its coverage. In the target densities, the network's own p replaces the
    uncovered part of the targets.
    """
    graph, coverage = level.graph, torch.from_numpy(level.coverage)
    heads, tails = torch.from_numpy(graph.heads), torch.from_numpy(graph.tails)
    target, similarity = torch.from_numpy(graph.target), torch.from_numpy(graph.similarity)
    degrees = torch.from_numpy(graph.degrees)
    logits = net(torch.from_numpy(graph.x), torch.from_numpy(graph.e), degrees.long(), tails)
    p, counts = torch.sigmoid(logits), degrees.clamp(min=1)
    own = density(p, similarity, heads, counts)
    truth = density(coverage * target + (1.0 - coverage) * p.detach(), similarity, heads, counts)
    weight = coverage * edge_weights(graph, [len(graph.e)], logits.detach(), own.detach())
    linkage = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (weight * linkage).sum() / weight.sum().clamp(min=1e-9) + ((own - truth) ** 2).mean()
