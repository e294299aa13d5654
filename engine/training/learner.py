"""A network in training: its average over the last steps, the ranges of its inputs, and a pool of scenes.

The loss is that of Hi-LANDER, linkage and density together.
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
from engine.training.descent import Descent, Pace
from engine.training.graph_loss import density, importance
from engine.training.pool import keep
from engine.training.rollout import Scene, Twins, joined
from engine.types import Float32

import torch  # isort: skip
from torch import Tensor  # isort: skip


@dataclass(frozen=True, slots=True)
class Regime:
    """How one network learns."""

    rate: float = 3e-3  # Adam's, cosine to 1/30 of it
    average: float = 0.998  # EMA's decay
    edges: int = 8_000  # a step's, or one scene's where that has more
    pool: int = 500  # scenes kept for replay, of each of two kinds
    few: float = 0.35  # of a step's scenes: of few topics
    warm: int = 200  # steps
    noise: float = 0.0  # deviation of what is added to the standardised features
    steadiness: float = 0.0  # weight of the difference between successive versions' logits
    twins: int = 80  # pairs of versions kept


class Learner:
    """One network, its average, and two pools of scenes that are drawn from again and again."""

    def __init__(
        self,
        config: UniversalConfig,
        regime: Regime,
        rng: np.random.Generator,
        scenes: tuple[Sequence[Scene], Sequence[Scene]],
        start: Linkage | None = None,
    ) -> None:
        """`scenes`: the first ones, raw, of most collections and of few topics: they set the ranges."""
        self.regime, self.rng = regime, rng
        net = Universal(config)
        if start:
            net.load_state_dict(start.net.state_dict())
        self.descent = Descent(net, Pace(regime.rate, 0.01, regime.average, regime.warm))
        both = [*scenes[0], *scenes[1]]
        self.nodes = Ranges.measured(np.concatenate([_thin(scene.x, rng) for scene in both]))
        self.edges = Ranges.measured(np.concatenate([_thin(scene.e, rng) for scene in both]))
        if start:
            self.nodes, self.edges = start.nodes.widened(self.nodes), start.edges.widened(self.edges)
        self.pool: list[Scene] = []
        self.few: list[Scene] = []
        self.twins: list[Twins] = []
        self.keep(scenes[0], self.pool)
        self.keep(scenes[1], self.few)

    @property
    def net(self) -> Universal:
        """The network as the last step left it."""
        return self.descent.net

    def keep(self, raw: Sequence[Scene], pool: list[Scene]) -> None:
        """Put scenes with raw features into a pool."""
        for scene in raw:
            keep(pool, self._ready(scene), self.regime.pool, self.rng)

    def keep_twins(self, raw: Sequence[Twins]) -> None:
        """Keep pairs of versions with raw features."""
        for pair in raw:
            ready = replace(pair, before=self._ready(pair.before), after=self._ready(pair.after))
            keep(self.twins, ready, self.regime.twins, self.rng)

    def _ready(self, raw: Scene) -> Scene:
        return replace(raw, x=self.nodes.apply(raw.x), e=self.edges.apply(raw.e))

    def step(self, share: float) -> float:
        """Do one step of the optimizer at `share` of the whole training; return the loss."""
        return self.descent.step(self._loss, share)

    def _loss(self, net: Universal) -> Tensor:
        loss = scene_loss(net, self._drawn(), self.regime.noise)
        if self.twins and self.regime.steadiness:
            pair = self.twins[self.rng.integers(len(self.twins))]
            loss = loss + self.regime.steadiness * unsteadiness(net, pair)
        return loss

    def _drawn(self) -> list[Scene]:
        parts: list[Scene] = []
        edges = 0
        while edges < self.regime.edges and len(parts) < 40:
            pool = self.few if self.few and self.rng.random() < self.regime.few else self.pool
            parts.append(pool[self.rng.integers(len(pool))])
            edges += len(parts[-1].e)
        return parts

    def state(self) -> dict[str, Any]:
        """Return everything that the next steps depend on."""
        return {
            "descent": self.descent.state(),
            "ranges": [packed(self.nodes), packed(self.edges)],
            "pools": [[packed(scene) for scene in pool] for pool in (self.pool, self.few)],
            "twins": [
                packed(replace(pair, before=packed(pair.before), after=packed(pair.after)))  # type: ignore[arg-type]
                for pair in self.twins
            ],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.descent.restore(state["descent"])
        self.nodes, self.edges = (unpacked(Ranges, each) for each in state["ranges"])
        self.pool, self.few = ([unpacked(Scene, each) for each in pool] for pool in state["pools"])
        pairs = [unpacked(Twins, each) for each in state["twins"]]
        self.twins = [
            replace(pair, before=unpacked(Scene, pair.before), after=unpacked(Scene, pair.after))  # type: ignore[arg-type]
            for pair in pairs
        ]

    def linkage(self) -> Linkage:
        """Return the average of the weights so far, as the engine runs it."""
        return Linkage(copy.deepcopy(self.descent.mean_net), self.nodes, self.edges)


def scene_loss(net: Universal, parts: Sequence[Scene], noise: float = 0.0) -> Tensor:
    """Return the linkage loss plus the density loss of some scenes; each counts by the root of its edges."""
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


def edge_weights(whole: Scene, edges: Sequence[int], logits: Tensor, densities: Tensor) -> Tensor:
    """Return the weight of each edge of some scenes side by side, which have `edges` each.

    An edge counts by its smaller end's items, since a wrong link moves as many; four times as much where
    decoding would consider it (d_j > d_i), and four times more where it would choose it: the p that
    decide are the highest of several, so errors upwards gather in them.
    """
    heads, tails = torch.from_numpy(whole.heads), torch.from_numpy(whole.tails)
    upward = densities[tails] > densities[heads]
    smaller = np.minimum(whole.size[whole.heads], whole.size[whole.tails])
    weight = torch.where(upward, 1.0, 0.25) * torch.from_numpy(importance(smaller, edges, 0.75))
    return weight * torch.where(_chosen(logits, upward, heads, len(densities)), 4.0, 1.0)


def unsteadiness(net: Universal, pair: Twins) -> Tensor:
    """Return the mean squared difference of the logits of edges that two successive versions have.

    Edges count by the root of their smaller end's items, and most where p is near 1/2: what moves there moves
    items between clusters and, a few batches on, back again.
    """
    logits = [
        net(*(torch.from_numpy(column) for column in (scene.x, scene.e)), _counts(scene), _tails(scene))
        for scene in (pair.before, pair.after)
    ]
    old, new = logits[0][torch.from_numpy(pair.edges_before)], logits[1][torch.from_numpy(pair.edges_after)]
    heads, tails = pair.before.heads[pair.edges_before], pair.before.tails[pair.edges_before]
    smaller = np.minimum(pair.before.size[heads], pair.before.size[tails]) ** 0.5
    middle = torch.exp(-0.25 * ((old + new).detach() / 2) ** 2)
    weight = torch.from_numpy(smaller) * (0.2 + middle)
    mean: Tensor = (weight * (old - new) ** 2).sum() / weight.sum()
    return mean


def _counts(scene: Scene) -> Tensor:
    return torch.from_numpy(scene.degrees).long()


def _tails(scene: Scene) -> Tensor:
    return torch.from_numpy(scene.tails)


def _chosen(logits: Tensor, upward: Tensor, heads: Tensor, nodes: int) -> Tensor:
    """The edges (e,) that decoding would choose at some tau: of each node's upward ones the most probable."""
    least = torch.full((nodes,), -MOST_LOGIT * 100)
    candidates = torch.where(upward, logits, least[0])
    best = least.scatter_reduce(0, heads, candidates, "amax")
    return upward & (candidates >= best[heads])


def _thin(rows: Float32, rng: np.random.Generator, most: int = 3000) -> Float32:
    return rows[rng.permutation(len(rows))[:most]]
