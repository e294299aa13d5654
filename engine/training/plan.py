"""Hyperparameters of the universal model's training, and the models that it starts from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from engine.errors import InputError
from engine.model.linkage import Card, LinkageModel
from engine.model.network import UniversalConfig
from engine.training.learner import LearnerPlan
from engine.training.training_run import Schedule

BASE_TAU = 0.6
LEAST_FIRST = 8  # collections of each kind before the first step of the shortest training
# Pure pieces first, then joined. Chosen with `Terms` over three trainings, by collections that were left out.
CARD = Card(tau=0.5, base_tau=BASE_TAU, max_levels=3)
UPPER_LEVELS = 3  # levels of a roll-out, level 0 included


@dataclass(frozen=True, slots=True)
class Plan:
    """Hyperparameters. Those of the shipped weights are on their card."""

    minutes: float = 20.0
    steps: int | None = None  # instead of minutes; repeatable
    seed: int = 0
    hidden: int = 48  # width of both networks
    upper_share: float = 0.5  # share of the steps for the upper network, where both are trained
    dropout: float = 0.05
    learner: LearnerPlan = field(default_factory=LearnerPlan)
    oracle_share: float = 0.15  # share of the training on the oracle's levels, before roll-outs
    generated_share: float = 0.35  # share of generated collections among those not of few topics
    large_share: float = 0.25  # share of large parts (thousands of items) among parts of files
    most_items: int = 2500  # of a collection, large parts apart
    first: int = 60  # collections of each kind drawn before the first step; they set the feature ranges
    fresh_every: int = 12  # steps between new collections
    fresh_topics: int = 6  # steps between new collections of few topics, which are small and vary more
    upper_noise: float = 0.12  # the upper network's; see `LearnerPlan`
    upper_rate: float = 2e-3
    consistency: float = 0.5
    pairs_every: int = 10  # steps between new pairs of successive versions
    regrow_every: int = 4  # steps between two reclusterings of the upper levels of a kept collection
    grown: int = 250  # collections kept for that
    checks: int = 6  # evaluations on the held-out collections, in the second half
    patience: int = 4  # evaluations without improvement before early stopping
    save_every: float = 300.0  # seconds between checkpoints, which are large
    imitation: float = 0.5  # weight of the teacher's p in the targets, where there is a teacher

    @property
    def drawn_first(self) -> int:
        """Return the collections of each kind before the first step: fewer if there are fewer steps."""
        return min(self.first, max(self.steps, LEAST_FIRST)) if self.steps else self.first

    @property
    def length(self) -> Schedule:
        """Duration, evaluations and checkpoints."""
        return Schedule(self.minutes, self.steps, self.checks, 0.5, self.patience, self.save_every)

    def after(self, initial: InitialModels) -> Plan:
        """Return the plan with the widths and targets that the initial models imply."""
        plan = self
        if initial.base:
            plan = replace(plan, hidden=initial.base.card.hidden, oracle_share=0.0)
        return plan if initial.teacher else replace(plan, imitation=0.0)


@dataclass(frozen=True, slots=True)
class InitialModels:
    """Models that a training starts from, all of them optional."""

    base: LinkageModel | None = None  # its level-0 network stays fixed; the upper one starts as a copy
    teacher: LinkageModel | None = None  # its p are distilled into the level-0 network

    def __post_init__(self) -> None:
        k = UniversalConfig().k
        if any(model.k != k for model in (self.base, self.teacher) if model):
            raise InputError(f"a model to start or to learn from must have k = {k}")

    @property
    def sha256(self) -> dict[str, str]:
        """The digests of these models, by role."""
        models = {"base": self.base, "teacher": self.teacher}
        return {name: model.sha256 for name, model in models.items() if model}
