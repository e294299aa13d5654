"""How the universal model is trained, and the models that a training begins with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from engine.errors import InputError
from engine.model.linkage import Card, LinkageModel
from engine.model.network import UniversalConfig
from engine.training.course import Length
from engine.training.learner import Regime

MOST_ITEMS = 2500  # of most training graphs
BASE_TAU = 0.6
CARD = Card(tau=0.42, base_tau=BASE_TAU, max_levels=3)  # pure pieces first, then joined
UPPER_LEVELS = 3  # grown in training, level 0 included


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train. What the weights that ship took is on their card."""

    minutes: float = 20.0
    steps: int | None = None  # instead of minutes: repeatable
    seed: int = 0
    hidden: int = 48
    upper_hidden: int = 48
    upper_share: float = 0.5  # of the steps: of the network above level 0, where both are trained
    dropout: float = 0.05
    regime: Regime = field(default_factory=Regime)
    oracle_share: float = 0.15  # of the time, before roll-outs
    generated_share: float = 0.35  # of the other collections drawn
    large_share: float = 0.25  # of parts of files: of thousands of items, whose levels have more nodes
    first: int = 60  # collections drawn before the first step; they set the features' ranges
    fresh_every: int = 12  # steps between new collections
    fresh_topics: int = 6  # so too, of few topics: they are small and vary more
    upper_noise: float = 0.12  # see `Regime`
    upper_rate: float = 2e-3
    steadiness: float = 0.5
    twins_every: int = 10  # steps between new pairs of successive versions
    regrow_every: int = 4  # so too, levels grown anew from a level 0 that is there
    rooted: int = 250  # of those
    checks: int = 6  # evaluations on the held-out collections, in the second half
    patience: int = 4  # checks without a better score after which the training ends
    save_every: float = 300.0  # seconds between checkpoints, if a file is named for them: they are large
    imitation: float = 0.5  # the teacher's part in the targets, where there is one

    @property
    def length(self) -> Length:
        """When the training ends."""
        return Length(self.minutes, self.steps, self.checks, 0.5, self.patience, self.save_every)

    @classmethod
    def of_a_space(cls) -> Plan:
        """Return how to go on from a model on many labelled classes of one embedding space alone."""
        regime = Regime(rate=1e-3, warm=50, average=0.99, few=0.0)
        return cls(
            steps=300,
            regime=regime,
            upper_rate=regime.rate,
            steadiness=0.0,
            generated_share=0.0,
            large_share=0.5,
            first=20,
            fresh_every=10,
            fresh_topics=60,
        )

    def after(self, given: Given) -> Plan:
        """Return the plan with what follows from the given models."""
        plan = self
        if given.start:
            own = given.start.card
            plan = replace(plan, hidden=own.hidden, upper_hidden=own.upper_hidden)
        if given.base:
            width = given.base.base.net.config.hidden
            plan = replace(plan, hidden=width, upper_hidden=width)
        if given.start or given.base:
            plan = replace(plan, oracle_share=0.0)
        return plan if given.teacher else replace(plan, imitation=0.0)


@dataclass(frozen=True, slots=True)
class Given:
    """Models that a training begins with."""

    start: LinkageModel | None = None  # to go on from, on roll-outs alone
    base: LinkageModel | None = None  # its level 0 stays; a network that begins as its copy is trained above
    teacher: LinkageModel | None = None  # its probabilities are learned in place of the labels

    def __post_init__(self) -> None:
        k = UniversalConfig().k
        if any(model.k != k for model in (self.start, self.base, self.teacher) if model):
            raise InputError(f"a model to go on from or to learn from has to have k = {k}")
        if self.start and self.base:
            raise InputError("a training goes on from a start, or begins anew above a base: name one")

    @property
    def sha256(self) -> dict[str, str]:
        """Return what tells these models from others."""
        models = {"start": self.start, "base": self.base, "teacher": self.teacher}
        return {name: model.sha256 for name, model in models.items() if model}
