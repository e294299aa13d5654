"""Trains both networks of the universal model on hierarchies that it draws and clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.evaluation.bulk import BulkClustering, hierarchy, measure_epoch, recluster_upper_levels
from engine.model.linkage import Card, LinkageModel, upper_of
from engine.model.network import Linkage, UniversalConfig
from engine.system.determinism import one_thread
from engine.training.datasets import Collection
from engine.training.draws import collection, few_topics, lagging
from engine.training.learner import Learner
from engine.training.plan import BASE_TAU, CARD, UPPER_LEVELS, InitialModels, Plan
from engine.training.pool import keep
from engine.training.rollout import Oracle, TrainingGraph, training_graphs, version_pairs
from engine.types import Epoch, Float32, Int64

import torch  # isort: skip
from torch import Tensor  # isort: skip


@dataclass(frozen=True, slots=True)
class GrownCollection:
    """A drawn collection with its levels; those above level 0 are clustered again from time to time."""

    built: BulkClustering
    labels: Int64
    epoch: Epoch
    few: bool  # whether it is of few topics
    seed: int  # of the draw
    maker: Linkage | None  # the network that clustered level 0; None: an oracle


Levels = tuple[list[TrainingGraph], list[TrainingGraph]]  # of level 0, of the levels above it


class Trainer:
    """Both networks in training; see `engine.training.training_run.Trainer`."""

    def __init__(
        self,
        sources: Sequence[Sequence[Collection]],
        plan: Plan,
        initial: InitialModels | None = None,
    ) -> None:
        self.sources, self.plan, self.initial = sources, plan, initial or InitialModels()
        self.rng = np.random.default_rng(plan.seed)
        torch.manual_seed(plan.seed)
        self.steps = 0
        self.grown: list[GrownCollection] = []
        base = self.initial.base
        levels = 2 if base else UPPER_LEVELS  # `base` is untrained above level 1
        first = range(plan.drawn_first)
        drawn = tuple([self._draw(base, few, levels) for _ in first] for few in (False, True))
        self.base = None if base else self._learner(drawn, 0, None)
        self.upper = self._learner(drawn, 1, upper_of(base.base) if base else None)

    def _learner(self, drawn: Sequence[Sequence[Levels]], at: int, start: Linkage | None) -> Learner:
        """`drawn`: the first graphs, of most collections and of few topics; `at`: 0: level 0, 1: above it."""
        config = UniversalConfig(hidden=self.plan.hidden, dropout=self.plan.dropout, is_base=at == 0)
        most, few = ([graph for levels in kind for graph in levels[at]] for kind in drawn)
        learner_plan = self.plan.learner
        if at == 1:
            learner_plan = replace(
                learner_plan,
                rate=self.plan.upper_rate,
                noise=self.plan.upper_noise,
                consistency=self.plan.consistency,
            )
        return Learner(config, learner_plan, self.rng, (most, few), start)

    @one_thread()
    def step(self, share: float) -> float:
        """Do one step of one network at `share` of the whole training; return the loss."""
        self._refresh(share)
        upper = self.base is None or self.rng.random() < self.plan.upper_share
        self.steps += 1
        return (self.upper if upper or self.base is None else self.base).step(share)

    def _refresh(self, share: float) -> None:
        """Draw new collections, or cluster upper levels again, where that is due."""
        plan = self.plan

        def due(every: int) -> bool:
            return self.steps % every == 0

        kinds = [few for few, every in ((False, plan.fresh_every), (True, plan.fresh_topics)) if due(every)]
        regrow = due(plan.regrow_every)
        pair = plan.consistency > 0 and due(plan.pairs_every)
        if not (kinds or regrow or pair):
            return
        maker = None if share < plan.oracle_share else self.model()
        for few in kinds:
            self._keep(*self._draw(maker, few), few)
        if maker and regrow and self.grown:
            self._regrow(maker)
        if maker and pair:
            self._draw_twins(maker)

    def _draw_twins(self, model: LinkageModel) -> None:
        """Draw a collection before and after its last 1.5 to 7 % of items came."""
        drawn = collection(self.sources, self.rng, self.plan)
        first = max(2, int(len(drawn.emb) * self.rng.uniform(0.93, 0.985)))
        epoch, seed = measure_epoch(drawn.emb), int(self.rng.integers(1 << 31))
        tau, base_tau = _tau(self.rng), _base_tau(self.rng)
        before, after = (
            hierarchy(emb, model, tau, UPPER_LEVELS, epoch, seed, base_tau)
            for emb in (drawn.emb[:first], drawn.emb)
        )
        self.upper.keep_pairs(version_pairs(before, after, drawn.labels, epoch))

    def _regrow(self, model: LinkageModel) -> None:
        """Cluster the upper levels of a kept collection again."""
        at = self.grown[self.rng.integers(len(self.grown))]
        built = recluster_upper_levels(at.built, model, _tau(self.rng), UPPER_LEVELS, at.epoch)
        self._keep([], training_graphs(built, at.labels, at.epoch, lowest=1), at.few)

    def _keep(self, base: Sequence[TrainingGraph], upper: Sequence[TrainingGraph], few: bool) -> None:
        for learner, drawn in ((self.base, base), (self.upper, upper)):
            if learner:
                learner.keep(drawn, learner.few if few else learner.pool)

    def model(self) -> LinkageModel:
        """Return the model with the averaged weights."""
        fixed = self.initial.base.base if self.initial.base else None
        base = self.base.linkage() if self.base else fixed
        assert base is not None
        return LinkageModel(base, self.upper.linkage(), self._card())

    def _card(self) -> Card:
        return replace(CARD, hidden=self.plan.hidden, upper_hidden=self.plan.hidden)

    def _draw(self, maker: LinkageModel | None, few: bool, levels: int = UPPER_LEVELS) -> Levels:
        """Return the training graphs of a new collection, clustered by `maker` or else by an oracle.

        `few`: draw one of few topics. Its labels are exact, so the teacher has no part in its targets.
        """
        drawn = self._rolled_out(int(self.rng.integers(1 << 62)), few, maker, levels)
        if maker:
            keep(self.grown, drawn, self.plan.grown, self.rng)
        base, *upper = training_graphs(drawn.built, drawn.labels, drawn.epoch)
        return [base if few else replace(base, target=self._target(base))], upper

    def _rolled_out(self, seed: int, few: bool, maker: LinkageModel | None, levels: int) -> GrownCollection:
        """Draw and cluster a collection: a function of the seed and the level-0 network."""
        rng = np.random.default_rng(seed)
        drawn = few_topics(rng, self.plan) if few else collection(self.sources, rng, self.plan)
        epoch = lagging(measure_epoch(drawn.emb), rng)
        model, levels = (maker, levels) if maker else (Oracle(drawn.labels, rng), 2)
        tau, base_tau, ties = _tau(rng), _base_tau(rng), int(rng.integers(1 << 31))
        built = hierarchy(drawn.emb, model, tau, levels, epoch, ties, base_tau)
        return GrownCollection(built, drawn.labels, epoch, few, seed, maker.base if maker else None)

    @one_thread()
    def _target(self, graph: TrainingGraph) -> Float32:
        """Return the targets (e,) of a level-0 graph with raw features: of its labels and the teacher's p."""
        if self.initial.teacher is None:
            return graph.target
        p = self.initial.teacher.base.probabilities(graph.x, graph.e, graph.degrees, graph.tails)
        share = np.float32(self.plan.imitation)
        target: Float32 = share * p + (1 - share) * graph.target
        return target

    def tensors(self, model: LinkageModel) -> dict[str, Tensor]:
        """Return the weights and ranges of a model."""
        return model.tensors()

    def model_of(self, tensors: dict[str, Tensor]) -> LinkageModel:
        """Return the model of these weights and ranges."""
        return LinkageModel.of(tensors, self._card())

    def state(self) -> dict[str, Any]:
        """Return the state of the training, for a checkpoint; kept collections as what draws them again."""
        makers = {id(each.maker): each.maker for each in self.grown if each.maker}
        place = {name: at for at, name in enumerate(makers)}
        return {
            "steps": self.steps,
            "rng": self.rng.bit_generator.state,
            "torch": torch.get_rng_state(),
            "base": self.base.state() if self.base else {},
            "upper": self.upper.state(),
            "makers": [maker.tensors() for maker in makers.values()],
            "grown": [[each.seed, each.few, place[id(each.maker)]] for each in self.grown],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.steps = state["steps"]
        if self.base:
            self.base.restore(state["base"])
        self.upper.restore(state["upper"])
        config = UniversalConfig(hidden=self.plan.hidden)
        makers = [
            LinkageModel(Linkage.of(each, config), self.upper.linkage(), self._card())
            for each in state["makers"]
        ]
        self.grown = [self._rolled_out(seed, few, makers[at], 1) for seed, few, at in state["grown"]]
        self.rng.bit_generator.state = state["rng"]
        torch.set_rng_state(state["torch"])


def _tau(rng: np.random.Generator) -> float:
    return float(rng.uniform(0.3, 0.8))


def _base_tau(rng: np.random.Generator) -> float:
    return BASE_TAU + float(rng.uniform(-0.1, 0.1))
