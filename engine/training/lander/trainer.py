"""Trains all weights of `lander`, in DGL: from random ones as the paper does, or from a lander.

The loss is the paper's: linkage on the edges that lead to higher density, and the squared error of the
density; first on levels from the true labels, then on roll-outs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from engine.model.adapter import Adapter
from engine.model.lander import LanderCard, LanderModel
from engine.system.determinism import one_thread
from engine.training.checkpoint import packed, unpacked
from engine.training.datasets import Collection, dense, whole_classes
from engine.training.graph_loss import density, importance
from engine.training.lander.graphs import LevelGraph, joined, levels, true_levels
from engine.training.lander.network import Lander
from engine.training.lander.plan import LanderPlan
from engine.training.optimization import Optimization, OptimizerPlan
from engine.training.pool import keep

import torch  # isort: skip
from torch import Tensor  # isort: skip

KS = (10, 10, 10, 5, 3)  # of training graphs, drawn from
WARM = 50  # steps
WHOLE = (0.1, 1.0)  # range of the share of a file's items in a draw


class Trainer:
    """The network in training, its average, and a pool of hierarchies that are drawn from again and again."""

    adapter: Adapter | None = None  # it reads embeddings as they come

    def __init__(
        self, sources: Sequence[Collection], plan: LanderPlan, start: LanderModel | None = None
    ) -> None:
        self.sources = [dense(source) for source in sources]
        self.plan = plan
        self.rng = np.random.default_rng(plan.seed)
        torch.manual_seed(plan.seed)
        card = LanderCard(sources[0].emb.shape[1], plan.variant, plan.hidden, plan.heads)
        net = Lander(start.card if start else card, plan.dropout)
        if start:
            net.load_state_dict(start.weights)
        self.optimization = Optimization(net, OptimizerPlan(plan.rate, plan.decay, plan.average, WARM))
        self.pool: list[LevelGraph] = []
        self.started = start is not None

    @property
    def net(self) -> Lander:
        """The network as the last step left it."""
        return self.optimization.net

    @property
    def steps(self) -> int:
        """Steps so far."""
        return self.optimization.steps

    @one_thread()
    def step(self, share: float) -> float:
        """Do one step of the optimizer at `share` of the whole training; return the loss."""
        if self.steps % self.plan.fresh_every == 0:
            self._refresh(share)
        return self.optimization.step(lambda net: graph_loss(net, self._drawn(), self.plan), share)

    def _drawn(self) -> list[LevelGraph]:
        parts: list[LevelGraph] = []
        while sum(len(part.heads) for part in parts) < self.plan.edges and len(parts) < 30:
            parts.append(self.pool[self.rng.integers(len(self.pool))])
        return parts

    def state(self) -> dict[str, Any]:
        """Return everything that the next steps depend on."""
        return {
            **self.optimization.state(),
            "rng": self.rng.bit_generator.state,
            "torch": torch.get_rng_state(),
            "pool": [packed(each) for each in self.pool],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.optimization.restore(state)
        self.rng.bit_generator.state = state["rng"]
        torch.set_rng_state(state["torch"])
        self.pool = [unpacked(LevelGraph, each) for each in state["pool"]]

    def model(self) -> LanderModel:
        """Return the average of the weights so far, as the engine runs it."""
        found: LanderModel = self.optimization.ema_net.model()
        return found

    def tensors(self, model: LanderModel) -> dict[str, Tensor]:
        """Return the weights of a model."""
        return dict(model.weights)

    def model_of(self, tensors: dict[str, Tensor]) -> LanderModel:
        """Return the model of these weights."""
        return LanderModel(tensors, self.net.card)

    def _refresh(self, share: float) -> None:
        """Put the levels of a new hierarchy into the pool."""
        source = self.sources[int(self.rng.integers(len(self.sources)))]
        drawn = dense(whole_classes(source, self.rng, WHOLE, self.plan.most_items))
        if len(drawn.emb) < 2:
            return self._refresh(share) if not self.pool else None
        k = int(self.rng.choice(KS))
        if share < self.plan.oracle_share and not self.started:
            fresh = true_levels(drawn.emb, drawn.labels, k)
        else:
            model, tau = self.model(), float(self.rng.uniform(0.3, 0.8))
            fresh = levels(drawn.emb, drawn.labels, model.with_card(replace(model.card, k=k)), (tau, tau), 3)
        for each in fresh:
            keep(self.pool, each, self.plan.pool, self.rng)
        return None


def graph_loss(net: Lander, parts: Sequence[LevelGraph], plan: LanderPlan) -> Tensor:
    """Linkage loss plus density loss; each graph counts by the root of its edges.

    At upper levels edges count by the smaller end's items, since a wrong link there moves as many.
    """
    whole = joined(parts)
    logits = net(whole.graph(), whole.features(net.card.average), whole.affinity())
    heads, tails = torch.from_numpy(whole.heads), torch.from_numpy(whole.tails)
    target, similarity = torch.from_numpy(whole.target), torch.from_numpy(whole.similarity)
    degrees = torch.from_numpy(whole.degrees).clamp(min=1)
    p = torch.sigmoid(logits)
    own, truth = (density(value, similarity, heads, degrees) for value in (p, target))
    weight = torch.where(truth[tails] > truth[heads], 1.0, plan.others)
    smaller = np.minimum(whole.size[whole.heads], whole.size[whole.tails])
    weight = weight * torch.from_numpy(importance(smaller, [len(part.heads) for part in parts], 0.5))
    if plan.focal:
        weight = weight * (target - p.detach()).abs() ** plan.focal
    if plan.balance:
        same, other = (weight * target).sum(), (weight * (1 - target)).sum()
        weight = weight * (target / same.clamp(min=1e-9) + (1 - target) / other.clamp(min=1e-9))
    linkage = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (weight * linkage).sum() / weight.sum().clamp(min=1e-9) + ((own - truth) ** 2).mean()
