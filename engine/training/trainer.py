"""Both networks of the universal model in training, and the hierarchies that they are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.evaluation.bulk import Built, hierarchy, measured_epoch, regrown
from engine.model.linkage import Card, LinkageModel, upper_of
from engine.model.network import Linkage, UniversalConfig
from engine.system.determinism import one_thread
from engine.training.datasets import Collection
from engine.training.draws import collection, few_topics
from engine.training.learner import Learner
from engine.training.plan import BASE_TAU, CARD, UPPER_LEVELS, Given, Plan
from engine.training.pool import keep
from engine.training.rollout import Oracle, Scene, scenes, twins
from engine.types import Epoch, Float32, Int64

import torch  # isort: skip
from torch import Tensor  # isort: skip


@dataclass(frozen=True, slots=True)
class Rooted:
    """A drawn collection with its levels; those above level 0 are grown again and again."""

    built: Built
    labels: Int64
    epoch: Epoch
    few: bool  # of few topics
    seed: int  # of the draw
    maker: Linkage | None  # of level 0; None: an oracle


Levels = tuple[list[Scene], list[Scene]]  # level 0, the levels above it


class Trainer:
    """Both networks in training, and the collections that they are trained on."""

    def __init__(
        self,
        sources: Sequence[Sequence[Collection]],
        plan: Plan,
        given: Given | None = None,
    ) -> None:
        self.sources, self.plan, self.given = sources, plan, given or Given()
        self.rng = np.random.default_rng(plan.seed)
        torch.manual_seed(plan.seed)
        self.steps = 0
        self.rooted: list[Rooted] = []
        start, base = self.given.start, self.given.base
        maker, levels = (base, 2) if base else (start, UPPER_LEVELS)  # nothing is known above level 1 yet
        drawn = tuple([self._draw(maker, few, levels) for _ in range(plan.first)] for few in (False, True))
        self.base = None if base else self._learner(drawn, 0, plan.hidden, start.base if start else None)
        above = start.upper if start else upper_of(base.base) if base else None
        self.upper = self._learner(drawn, 1, plan.upper_hidden, above)

    def _learner(
        self, drawn: Sequence[Sequence[Levels]], at: int, hidden: int, start: Linkage | None
    ) -> Learner:
        """`drawn`: the first scenes, of most collections and of few topics; `at`: 0: level 0, 1: above it."""
        config = UniversalConfig(hidden=hidden, dropout=self.plan.dropout, is_base=at == 0)
        most, few = ([scene for levels in kind for scene in levels[at]] for kind in drawn)
        regime = self.plan.regime
        if at == 1:
            regime = replace(
                regime,
                rate=self.plan.upper_rate,
                noise=self.plan.upper_noise,
                steadiness=self.plan.steadiness,
            )
        return Learner(config, regime, self.rng, (most, few), start)

    @one_thread()
    def step(self, share: float) -> float:
        """Do one step of one network at `share` of the whole training; return the loss."""
        self._refresh(share)
        upper = self.base is None or self.rng.random() < self.plan.upper_share
        self.steps += 1
        return (self.upper if upper or self.base is None else self.base).step(share)

    def _refresh(self, share: float) -> None:
        """Draw new collections, or grow levels anew, where it is due."""
        plan = self.plan

        def due(every: int) -> bool:
            return self.steps % every == 0

        kinds = [few for few, every in ((False, plan.fresh_every), (True, plan.fresh_topics)) if due(every)]
        regrow = due(plan.regrow_every)
        pair = plan.steadiness > 0 and due(plan.twins_every)
        if not (kinds or regrow or pair):
            return
        maker = None if share < plan.oracle_share else self.model()
        for few in kinds:
            self._keep(*self._draw(maker, few), few)
        if maker and regrow and self.rooted:
            self._regrow(maker)
        if maker and pair:
            self._draw_twins(maker)

    def _draw_twins(self, model: LinkageModel) -> None:
        """Two versions of a collection: with its last items, 1.5 to 7 % of them, and before they came."""
        drawn = collection(self.sources, self.rng, self.plan)
        first = max(2, int(len(drawn.emb) * self.rng.uniform(0.93, 0.985)))
        epoch, seed = measured_epoch(drawn.emb), int(self.rng.integers(1 << 31))
        tau, base_tau = _tau(self.rng), _base_tau(self.rng)
        before, after = (
            hierarchy(emb, model, tau, UPPER_LEVELS, epoch, seed, base_tau)
            for emb in (drawn.emb[:first], drawn.emb)
        )
        self.upper.keep_twins(twins(before, after, drawn.labels, epoch))

    def _regrow(self, model: LinkageModel) -> None:
        """Grow other levels from a level 0 that is there."""
        at = self.rooted[self.rng.integers(len(self.rooted))]
        built = regrown(at.built, model, _tau(self.rng), UPPER_LEVELS, at.epoch)
        self._keep([], scenes(built, at.labels, at.epoch, lowest=1), at.few)

    def _keep(self, base: Sequence[Scene], upper: Sequence[Scene], few: bool) -> None:
        for learner, drawn in ((self.base, base), (self.upper, upper)):
            if learner:
                learner.keep(drawn, learner.few if few else learner.pool)

    def model(self) -> LinkageModel:
        """Return the averages of the weights so far, as the engine runs them."""
        given = self.given.base.base if self.given.base else None
        base = self.base.linkage() if self.base else given
        assert base is not None
        return LinkageModel(base, self.upper.linkage(), self._card())

    def _card(self) -> Card:
        return replace(CARD, hidden=self.plan.hidden, upper_hidden=self.plan.upper_hidden)

    def _draw(self, maker: LinkageModel | None, few: bool, levels: int = UPPER_LEVELS) -> Levels:
        """Return level 0 and the levels above it of a new collection, made by `maker` or else by an oracle.

        `few`: one of few topics and their like, whose labels are right, whatever a teacher thinks.
        """
        drawn = self._grown(int(self.rng.integers(1 << 62)), few, maker, levels)
        if maker:
            keep(self.rooted, drawn, self.plan.rooted, self.rng)
        base, *upper = scenes(drawn.built, drawn.labels, drawn.epoch)
        return [base if few else replace(base, target=self._target(base))], upper

    def _grown(self, seed: int, few: bool, maker: LinkageModel | None, levels: int) -> Rooted:
        """Return the collection of a draw with its levels: the same for the same seed and level 0."""
        rng = np.random.default_rng(seed)
        drawn = few_topics(rng) if few else collection(self.sources, rng, self.plan)
        epoch = measured_epoch(drawn.emb)
        drift = 0.07 * rng.normal(size=2)  # the engine's epoch lags behind the collection
        epoch = Epoch(
            epoch.mean + drift[0] * epoch.deviation, epoch.deviation * float(np.exp(drift[1])), epoch.items
        )
        model, levels = (maker, levels) if maker else (Oracle(drawn.labels, rng), 2)
        tau, base_tau, ties = _tau(rng), _base_tau(rng), int(rng.integers(1 << 31))
        built = hierarchy(drawn.emb, model, tau, levels, epoch, ties, base_tau)
        return Rooted(built, drawn.labels, epoch, few, seed, maker.base if maker else None)

    @one_thread()
    def _target(self, scene: Scene) -> Float32:
        """What the network is to say of the edges of a scene with raw features."""
        if self.given.teacher is None:
            return scene.target
        told = self.given.teacher.base.probabilities(scene.x, scene.e, scene.degrees, scene.tails)
        share = np.float32(self.plan.imitation)
        target: Float32 = share * told + (1 - share) * scene.target
        return target

    def tensors(self, model: LinkageModel) -> dict[str, Tensor]:
        """Return the weights and ranges of a model."""
        return model.tensors()

    def model_of(self, tensors: dict[str, Tensor]) -> LinkageModel:
        """Return the model of these weights and ranges."""
        return LinkageModel.of(tensors, self._card())

    def state(self) -> dict[str, Any]:
        """Return everything that the next steps depend on; of a kept level 0, how it is made again."""
        makers = {id(each.maker): each.maker for each in self.rooted if each.maker}
        place = {name: at for at, name in enumerate(makers)}
        return {
            "steps": self.steps,
            "rng": self.rng.bit_generator.state,
            "torch": torch.get_rng_state(),
            "base": self.base.state() if self.base else {},
            "upper": self.upper.state(),
            "makers": [maker.tensors() for maker in makers.values()],
            "rooted": [[each.seed, each.few, place[id(each.maker)]] for each in self.rooted],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.steps = state["steps"]
        if self.base:
            self.base.restore(state["base"])
        self.upper.restore(state["upper"])
        config = UniversalConfig(hidden=self.plan.hidden)
        makers = [
            LinkageModel(Linkage.of(each, config), self.upper.linkage(), self._card())
            for each in state["makers"]
        ]
        self.rooted = [self._grown(seed, few, makers[at], 1) for seed, few, at in state["rooted"]]
        self.rng.bit_generator.state = state["rng"]
        torch.set_rng_state(state["torch"])


def _tau(rng: np.random.Generator) -> float:
    return float(rng.uniform(0.3, 0.8))


def _base_tau(rng: np.random.Generator) -> float:
    return BASE_TAU + float(rng.uniform(-0.1, 0.1))
