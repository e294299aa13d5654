"""Meta-training of the universal model: `shoal train`.

First on levels that a nearly perfect oracle makes of many collections, then on roll-outs: levels that the
model itself makes (`engine.training.rollout`). A student learns its teacher's probabilities instead of
labels. The weights that are kept are an average over the last steps (EMA), and of several such averages
the one that does best on collections held out for choosing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from engine.errors import InputError
from engine.evaluation import scores
from engine.evaluation.bulk import Built, hierarchy, measured_epoch, partitions, regrown
from engine.model.linkage import Card, LinkageModel
from engine.model.network import Linkage, UniversalConfig
from engine.system.determinism import one_thread
from engine.training import topics
from engine.training.datasets import (
    Collection,
    distinct,
    embedded_again,
    generated,
    large_part,
    read_labelled,
    subset,
    view,
)
from engine.training.learner import Course, Learner
from engine.training.pool import keep
from engine.training.progress import Progress
from engine.training.rollout import Oracle, Scene, scenes, twins
from engine.types import Epoch, Float32, Int64

import torch  # isort: skip

MOST_ITEMS = 2500  # of most training graphs
CARD = Card(tau=0.42, base_tau=0.6, max_levels=3)  # pure pieces first, then joined
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
    course: Course = field(default_factory=Course)
    oracle_share: float = 0.15  # of the time, before roll-outs
    generated_share: float = 0.35  # of the other collections drawn
    large_share: float = 0.25  # of parts of files: of thousands of items, whose levels have more nodes
    first: int = 60  # collections drawn before the first step; they set the features' ranges
    fresh_every: int = 12  # steps between new collections
    fresh_topics: int = 6  # so too, of few topics: they are small and vary more
    upper_noise: float = 0.12  # see `Course`
    upper_rate: float = 2e-3
    steadiness: float = 0.5
    twins_every: int = 10  # steps between new pairs of successive versions
    regrow_every: int = 4  # so too, levels grown anew from a level 0 that is there
    rooted: int = 250  # of those
    checks: int = 6  # evaluations on the held-out collections, in the second half
    imitation: float = 0.5  # the teacher's part in the targets, where there is one


@dataclass(frozen=True, slots=True)
class Given:
    """Models that a training begins with."""

    start: LinkageModel | None = None  # to go on from, on roll-outs alone
    base: LinkageModel | None = None  # its level 0 stays as it is; the network above it is trained anew
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


def train(
    files: Sequence[Path],
    out: Path,
    plan: Plan | None = None,
    held_out: Sequence[Path] = (),
    progress: Callable[[Progress], None] = lambda _: None,
    given: Given | None = None,
) -> LinkageModel:
    """Train on labelled `files` (.npz) and generated mixtures; write weights and card to `out`.

    `held_out` files choose the checkpoint and are not trained on; without them the last average is
    kept. Learning a teacher's probabilities is distillation: Hinton et al., arXiv 1503.02531. Raises
    InputError where a file cannot be used.
    """
    given = given or Given()
    plan = _plan(plan or Plan(), given)
    if not files:
        raise InputError("name at least one labelled .npz file to train on")
    sources = [_versions(Path(path), plan.seed) for path in files]
    judges = [read_labelled(Path(path)) for path in held_out]
    trainer = Trainer(sources, plan, given)
    choice = Choice(judges)
    started, share, checked = time.monotonic(), 0.0, 0
    while share < 1.0:
        loss = trainer.step(share)
        passed = (time.monotonic() - started) / max(60.0 * plan.minutes, 1e-3)
        share = min(1.0, trainer.steps / plan.steps if plan.steps else passed)
        due = share >= 1.0 or (judges and share > 0.5 + 0.5 * checked / plan.checks)
        if due:
            checked += 1
            choice.consider(trainer.model())
        if due or trainer.steps % 100 == 0:
            progress(Progress(share, trainer.steps, loss, choice.last if due else None))
    about = {
        "trained_on": [Path(path).stem for path in files] + ["generated mixtures"],
        "checkpoint_chosen_on": choice.score,
        "plan": asdict(plan),
        "steps": trainer.steps,
        "given": given.sha256,
        "torch": torch.__version__,
    }
    assert choice.best is not None
    model = choice.best.with_card(replace(choice.best.card, about=about))
    model.save(Path(out))
    return model


def _plan(plan: Plan, given: Given) -> Plan:
    """Return the plan with what follows from the given models."""
    if given.start:
        own = given.start.card
        plan = replace(plan, hidden=own.hidden, upper_hidden=own.upper_hidden)
    if given.base:
        plan = replace(plan, hidden=given.base.card.hidden)
    if given.start or given.base:
        plan = replace(plan, oracle_share=0.0)
    return plan if given.teacher else replace(plan, imitation=0.0)


def read_model(path: Path | None) -> LinkageModel | None:
    """Return the model at `path`, if one is named. Raises InputError where it cannot be read."""
    return LinkageModel.load(path) if path else None


class Choice:
    """The best of some models on held-out collections by mean BCubed F; without any, the last."""

    def __init__(self, judges: Sequence[Collection]) -> None:
        self.judges = judges
        self.best: LinkageModel | None = None
        self.score: Mapping[str, float] = {}
        self.last: Mapping[str, float] = {}

    def consider(self, model: LinkageModel) -> None:
        """Keep the model if it is no worse than the best."""
        self.last = {judge.name: evaluate(model, judge)["Fb"] for judge in self.judges}
        if sum(self.last.values()) >= sum(self.score.values()):
            self.best, self.score = model, self.last


def evaluate(
    model: LinkageModel, collection: Collection, tau: float | None = None, max_levels: int | None = None
) -> dict[str, float]:
    """Cluster a collection in bulk; its Fb, Fp, NMI, ARI and clusters, and Fb after each level."""
    tau, depth = model.tau if tau is None else tau, max_levels or model.max_levels
    built = hierarchy(collection.emb, model, tau, depth, base_tau=model.base_tau)
    found = partitions(built)
    result = {f"Fb_{depth}": scores.bcubed_f(collection.labels, part) for depth, part in enumerate(found)}
    last = found[-1]
    return {
        "Fb": result[f"Fb_{len(found) - 1}"],
        "Fp": scores.pairwise_f(collection.labels, last),
        "NMI": scores.nmi(collection.labels, last),
        "ARI": scores.ari(collection.labels, last),
        "clusters": float(len(np.unique(last))),
        **result,
    }


@dataclass(frozen=True, slots=True)
class Rooted:
    """A collection with its level 0: the levels above are grown again and again from it."""

    built: Built
    labels: Int64
    epoch: Epoch
    few: bool  # of few topics


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
        self.upper = self._learner(drawn, 1, plan.upper_hidden, start.upper if start else None)

    def _learner(
        self, drawn: Sequence[Sequence[Levels]], at: int, hidden: int, start: Linkage | None
    ) -> Learner:
        """`drawn`: the first scenes, of most collections and of few topics; `at`: 0: level 0, 1: above it."""
        config = UniversalConfig(hidden=hidden, dropout=self.plan.dropout, is_base=at == 0)
        most, few = ([scene for levels in kind for scene in levels[at]] for kind in drawn)
        course = self.plan.course
        if at == 1:
            course = replace(
                course,
                rate=self.plan.upper_rate,
                noise=self.plan.upper_noise,
                steadiness=self.plan.steadiness,
            )
        return Learner(config, course, self.rng, (most, few), start)

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
        drawn = _collection(self.sources, self.rng, self.plan)
        first = max(2, int(len(drawn.emb) * self.rng.uniform(0.93, 0.985)))
        epoch, seed = measured_epoch(drawn.emb), int(self.rng.integers(1 << 31))
        tau, base_tau = self._tau(), self._base_tau()
        before, after = (
            hierarchy(emb, model, tau, UPPER_LEVELS, epoch, seed, base_tau)
            for emb in (drawn.emb[:first], drawn.emb)
        )
        self.upper.keep_twins(twins(before, after, drawn.labels, epoch))

    def _regrow(self, model: LinkageModel) -> None:
        """Grow other levels from a level 0 that is there."""
        at = self.rooted[self.rng.integers(len(self.rooted))]
        built = regrown(at.built, model, self._tau(), UPPER_LEVELS, at.epoch)
        self._keep([], scenes(built, at.labels, at.epoch, lowest=1), at.few)

    def _keep(self, base: Sequence[Scene], upper: Sequence[Scene], few: bool) -> None:
        for learner, drawn in ((self.base, base), (self.upper, upper)):
            if learner:
                learner.keep(drawn, learner.few if few else learner.pool)

    def model(self) -> LinkageModel:
        """Return the averages of the weights so far, as the engine runs them."""
        given = self.given.base
        base = given.base if given else self.base and self.base.linkage()
        assert base is not None
        card = replace(CARD, hidden=self.plan.hidden, upper_hidden=self.plan.upper_hidden)
        return LinkageModel(base, self.upper.linkage(), card)

    def _draw(self, model: LinkageModel | None, few: bool, levels: int = UPPER_LEVELS) -> Levels:
        """Return level 0 and the levels above it of a new collection, made by `model` or else by an oracle.

        `few`: one of few topics and their like, whose labels are right, whatever a teacher thinks.
        """
        collection = self._few_topics() if few else _collection(self.sources, self.rng, self.plan)
        base, *upper = self._levels(collection, model, few, levels)
        return [base if few else replace(base, target=self._target(base))], upper

    def _few_topics(self) -> Collection:
        least = 16 if self.rng.random() < 0.7 else MOST_ITEMS // 3
        items = int(np.exp(self.rng.uniform(np.log(least), np.log(MOST_ITEMS))))
        return distinct(topics.drawn(self.rng, items))

    def _levels(
        self, collection: Collection, model: LinkageModel | None, few: bool, levels: int
    ) -> list[Scene]:
        rng = self.rng
        epoch = measured_epoch(collection.emb)
        drift = 0.07 * rng.normal(size=2)  # the engine's epoch lags behind the collection
        epoch = Epoch(
            epoch.mean + drift[0] * epoch.deviation, epoch.deviation * float(np.exp(drift[1])), epoch.items
        )
        maker, levels = (Oracle(collection.labels, rng), 2) if model is None else (model, levels)
        tau, seed = self._tau(), int(rng.integers(1 << 31))
        built = hierarchy(collection.emb, maker, tau, levels, epoch, seed, self._base_tau())
        if model:
            rooted = Rooted(built, collection.labels, epoch, few)
            keep(self.rooted, rooted, self.plan.rooted, rng)
        return scenes(built, collection.labels, epoch)

    def _tau(self) -> float:
        return float(self.rng.uniform(0.3, 0.8))

    def _base_tau(self) -> float:
        return float(CARD.base_tau + self.rng.uniform(-0.1, 0.1))

    @one_thread()
    def _target(self, scene: Scene) -> Float32:
        """What the network is to say of the edges of a scene with raw features."""
        if self.given.teacher is None:
            return scene.target
        told = self.given.teacher.base.probabilities(scene.x, scene.e, scene.degrees, scene.tails)
        share = np.float32(self.plan.imitation)
        target: Float32 = share * told + (1 - share) * scene.target
        return target


def _versions(path: Path, seed: int) -> list[Collection]:
    collection = read_labelled(path)
    return [collection, *embedded_again(path, collection, seed)]


def _collection(sources: Sequence[Sequence[Collection]], rng: np.random.Generator, plan: Plan) -> Collection:
    """A random part of a random view of a random collection; two items or more, distinct, not zero."""
    while True:
        drawn = _drawn(sources, rng, plan)
        usable = np.linalg.norm(drawn.emb, axis=1) > 1e-6
        drawn = distinct(replace(drawn, emb=drawn.emb[usable], labels=drawn.labels[usable]))
        if len(drawn.emb) > 1:
            return drawn


def _drawn(sources: Sequence[Sequence[Collection]], rng: np.random.Generator, plan: Plan) -> Collection:
    if rng.random() < plan.generated_share:
        drawn = generated(rng, int(np.exp(rng.uniform(np.log(100), np.log(MOST_ITEMS)))))
        drawn = subset(drawn, rng, MOST_ITEMS) if rng.random() < 0.3 else drawn
    else:
        versions = sources[int(rng.integers(len(sources)))]
        own = rng.random() < 0.6
        drawn = versions[0] if own else versions[int(rng.integers(len(versions)))]
        large = rng.random() < plan.large_share
        drawn = large_part(drawn, rng) if large else view(subset(drawn, rng, MOST_ITEMS), rng)
    if rng.random() < 0.1:
        drawn = topics.in_cone(rng, drawn)
    return topics.planted(rng, drawn) if rng.random() < 0.02 else drawn
