"""One network in training, with its input ranges and its pools of training graphs.

The loss is Hi-LANDER's: cross-entropy of the linkage plus squared error of the density.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.model.network import MOST_LOGIT, Linkage, Universal, UniversalConfig
from engine.model.ranges import Ranges
from engine.training.checkpoint import packed, unpacked
from engine.training.graph_loss import density, importance
from engine.training.optimization import Optimization, OptimizerPlan
from engine.training.pool import keep
from engine.training.rollout import TrainingGraph, VersionPair, joined
from engine.types import Float32

import torch  # isort: skip
from torch import Tensor  # isort: skip


@dataclass(frozen=True, slots=True)
class LearnerPlan:
    """Hyperparameters of one network's training."""

    rate: float = 3e-3  # Adam's, cosine to 1/30 of it
    average: float = 0.998  # EMA's decay
    edges: int = 8_000  # of a step's batch; a larger graph is a batch of its own
    pool: int = 500  # graphs kept for replay in each of the two pools
    few: float = 0.35  # share of the graphs of few topics in a batch
    warm: int = 200  # steps of linear warm-up
    noise: float = 0.0  # standard deviation of the Gaussian noise added to the standardised features
    consistency: float = 0.0  # weight of `consistency_loss`
    version_pairs: int = 80  # kept for replay


class Learner:
    """One network, the moving average of its weights, and two replay pools of training graphs."""

    def __init__(
        self,
        config: UniversalConfig,
        plan: LearnerPlan,
        rng: np.random.Generator,
        graphs: tuple[Sequence[TrainingGraph], Sequence[TrainingGraph]],
        start: Linkage | None = None,
    ) -> None:
        """`graphs`: the first ones, with raw features, of most collections and of few topics. They set the
        ranges.
        """
        self.plan, self.rng = plan, rng
        net = Universal(config)
        if start:
            net.load_state_dict(start.net.state_dict())
        self.optimization = Optimization(net, OptimizerPlan(plan.rate, 0.01, plan.average, plan.warm))
        both = [*graphs[0], *graphs[1]]
        self.nodes = Ranges.measured(np.concatenate([_thin(graph.x, rng) for graph in both]))
        self.edges = Ranges.measured(np.concatenate([_thin(graph.e, rng) for graph in both]))
        if start:
            self.nodes, self.edges = start.nodes.widened(self.nodes), start.edges.widened(self.edges)
        self.pool: list[TrainingGraph] = []
        self.few: list[TrainingGraph] = []
        self.version_pairs: list[VersionPair] = []
        self.keep(graphs[0], self.pool)
        self.keep(graphs[1], self.few)

    @property
    def net(self) -> Universal:
        """The network as the last step left it."""
        return self.optimization.net

    def keep(self, raw: Sequence[TrainingGraph], pool: list[TrainingGraph]) -> None:
        """Put graphs with raw features into a pool."""
        for graph in raw:
            keep(pool, self._ready(graph), self.plan.pool, self.rng)

    def keep_pairs(self, raw: Sequence[VersionPair]) -> None:
        """Put pairs of versions with raw features into their pool."""
        for pair in raw:
            ready = replace(pair, before=self._ready(pair.before), after=self._ready(pair.after))
            keep(self.version_pairs, ready, self.plan.version_pairs, self.rng)

    def _ready(self, raw: TrainingGraph) -> TrainingGraph:
        return replace(raw, x=self.nodes.apply(raw.x), e=self.edges.apply(raw.e))

    def step(self, share: float) -> float:
        """Do one step of the optimizer at `share` of the whole training; return the loss."""
        return self.optimization.step(self._loss, share)

    def _loss(self, net: Universal) -> Tensor:
        loss = training_loss(net, self._drawn(), self.plan.noise)
        if self.version_pairs and self.plan.consistency:
            pair = self.version_pairs[self.rng.integers(len(self.version_pairs))]
            loss = loss + self.plan.consistency * consistency_loss(net, pair)
        return loss

    def _drawn(self) -> list[TrainingGraph]:
        parts: list[TrainingGraph] = []
        edges = 0
        # 40: bounds a step where the graphs drawn are tiny.
        while edges < self.plan.edges and len(parts) < 40:
            pool = self.few if self.few and self.rng.random() < self.plan.few else self.pool
            parts.append(pool[self.rng.integers(len(pool))])
            edges += len(parts[-1].e)
        return parts

    def state(self) -> dict[str, Any]:
        """Return the state of the training, for a checkpoint."""
        return {
            "descent": self.optimization.state(),
            "ranges": [packed(self.nodes), packed(self.edges)],
            "pools": [[packed(graph) for graph in pool] for pool in (self.pool, self.few)],
            "version_pairs": [
                packed(replace(pair, before=packed(pair.before), after=packed(pair.after)))  # type: ignore[arg-type]
                for pair in self.version_pairs
            ],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.optimization.restore(state["descent"])
        self.nodes, self.edges = (unpacked(Ranges, each) for each in state["ranges"])
        self.pool, self.few = ([unpacked(TrainingGraph, each) for each in pool] for pool in state["pools"])
        self.version_pairs = [_unpacked_pair(each) for each in state["version_pairs"]]

    def linkage(self) -> Linkage:
        """Return the network with the averaged weights, as the engine runs it."""
        return Linkage(copy.deepcopy(self.optimization.ema_net), self.nodes, self.edges)


def _unpacked_pair(found: dict[str, Any]) -> VersionPair:
    ends = {name: unpacked(TrainingGraph, found[name]) for name in ("before", "after")}
    return unpacked(VersionPair, found | ends)


def training_loss(net: Universal, parts: Sequence[TrainingGraph], noise: float = 0.0) -> Tensor:
    """Return the linkage loss plus the density loss of a batch; a graph's weight is the root of its edges."""
    whole = joined(parts)
    heads, tails = torch.from_numpy(whole.heads), torch.from_numpy(whole.tails)
    x, e, counts = torch.from_numpy(whole.x), torch.from_numpy(whole.e), torch.from_numpy(whole.degrees)
    if noise:
        x, e = x + noise * torch.randn_like(x), e + noise * torch.randn_like(e)
    logits = net(x, e, counts.long(), tails)
    target, similarity = torch.from_numpy(whole.target), torch.from_numpy(whole.similarity)
    degrees = counts.clamp(min=1)
    densities = density(torch.sigmoid(logits), similarity, heads, degrees)
    truth = density(target, similarity, heads, degrees)
    weight = edge_weights(whole, [len(part.e) for part in parts], logits.detach(), densities.detach())
    linkage = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (weight * linkage).sum() / weight.sum() + ((densities - truth) ** 2).mean()


def edge_weights(whole: TrainingGraph, edges: Sequence[int], logits: Tensor, densities: Tensor) -> Tensor:
    """Return the weight (e,) of each edge of a batch; `edges`: the number of edges of each of its graphs.

    The weight grows with the number of items at the smaller end, because a wrong link moves that many. It is
    four times as large where decoding considers the edge (d_j > d_i), and four times larger still where
    decoding chooses it: the chosen p is the maximum of several candidates, so upward errors gather there.
    """
    heads, tails = torch.from_numpy(whole.heads), torch.from_numpy(whole.tails)
    upward = densities[tails] > densities[heads]
    smaller = np.minimum(whole.size[whole.heads], whole.size[whole.tails])
    weight = torch.where(upward, 1.0, 0.25) * torch.from_numpy(importance(smaller, edges, 0.75))
    return weight * torch.where(_chosen(logits, upward, heads, len(densities)), 4.0, 1.0)


def consistency_loss(net: Universal, pair: VersionPair) -> Tensor:
    """Return the mean squared difference between the logits of the edges that two versions share.

    An edge's weight is the root of the items at its smaller end. It is largest where p is near 1/2: a change
    there moves items between clusters, and often back again a few batches later.
    """
    logits = [net(*_inputs(graph)) for graph in (pair.before, pair.after)]
    old, new = logits[0][torch.from_numpy(pair.edges_before)], logits[1][torch.from_numpy(pair.edges_after)]
    heads, tails = pair.before.heads[pair.edges_before], pair.before.tails[pair.edges_before]
    smaller = np.minimum(pair.before.size[heads], pair.before.size[tails]) ** 0.5
    middle = torch.exp(-0.25 * ((old + new).detach() / 2) ** 2)
    weight = torch.from_numpy(smaller) * (0.2 + middle)
    mean: Tensor = (weight * (old - new) ** 2).sum() / weight.sum()
    return mean


def _inputs(graph: TrainingGraph) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the arguments of `Universal.forward`."""
    x, e, tails = (torch.from_numpy(column) for column in (graph.x, graph.e, graph.tails))
    return x, e, torch.from_numpy(graph.degrees).long(), tails


def _chosen(logits: Tensor, upward: Tensor, heads: Tensor, nodes: int) -> Tensor:
    """Mark the edges (e,) that decoding chooses at some tau: the most probable upward edge of each node."""
    least = torch.full((nodes,), -MOST_LOGIT * 100)
    candidates = torch.where(upward, logits, least[0])
    best = least.scatter_reduce(0, heads, candidates, "amax")
    return upward & (candidates >= best[heads])


def _thin(rows: Float32, rng: np.random.Generator, most: int = 3000) -> Float32:
    return rows[rng.permutation(len(rows))[:most]]
