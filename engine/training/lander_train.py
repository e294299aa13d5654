"""Training of `lander` on labelled embeddings of one space: `shoal train --kind lander`.

First on levels from the true labels, as in the paper, then on roll-outs. The loss is the paper's: linkage on
the edges that lead to higher density, and the squared error of the density. Some classes are held out; the
checkpoint, tau and the number of levels are those that do best on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.evaluation import scores
from engine.evaluation.bulk import hierarchy, partitions
from engine.model.lander import LanderCard, LanderModel
from engine.system.determinism import one_thread
from engine.training.checkpoint import packed, unpacked
from engine.training.datasets import Collection, distinct, read_labelled, whole_classes
from engine.training.graph_loss import density, importance
from engine.training.lander_graphs import LevelGraph, joined, levels, true_levels
from engine.training.lander_network import Lander
from engine.training.optimization import Optimization, OptimizerPlan
from engine.training.pool import keep
from engine.training.training_run import (
    Checkpoint,
    Progress,
    Schedule,
    TrainingRun,
    fingerprint,
    held_out_scores,
)
from engine.types import Int64

import torch  # isort: skip
from torch import Tensor  # isort: skip

KS = (10, 10, 10, 5, 3)  # of training graphs, drawn from
WARM = 50  # steps
WHOLE = (0.1, 1.0)  # range of the share of a file's items in a draw
TAUS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)  # tried on the classes held out


@dataclass(frozen=True, slots=True)
class LanderPlan:
    """How to train."""

    minutes: float = 20.0
    steps: int | None = None  # instead of minutes: the same seed gives the same weights
    seed: int = 0
    variant: str = "mean"
    hidden: int = 256
    heads: int = 1
    rate: float = 2e-3  # Adam's, cosine to 1/30 of it
    decay: float = 0.3  # of the weights
    dropout: float = 0.4
    focal: float = 0.0  # exponent of the focal loss (Lin et al., arXiv 1708.02002); 0: cross-entropy
    balance: bool = False  # both classes of edges weigh the same
    others: float = 0.25  # weight of edges that do not lead to higher density; the paper's is 0
    edges: int = 10_000  # a step's, or one graph's where that has more
    oracle_share: float = 0.1  # of the training, on levels from true labels
    pool: int = 80  # hierarchies kept for replay
    fresh_every: int = 15  # steps between new hierarchies
    most_items: int = 6_000  # of training graphs, in whole classes
    average: float = 0.995  # EMA's decay
    held_out: float = 0.2  # of the classes, for choosing, where no file is named for it
    checks: int = 8  # evaluations on what is held out, in the last four fifths
    patience: int = 5  # checks without a better score after which the training ends
    save_every: float = 60.0  # seconds between checkpoints, if a file is named for them

    @property
    def length(self) -> Schedule:
        """When the training ends."""
        return Schedule(self.minutes, self.steps, self.checks, 0.2, self.patience, self.save_every)


def train(
    files: Sequence[Path],
    out: Path,
    plan: LanderPlan | None = None,
    held_out: Sequence[Path] = (),
    progress: Callable[[Progress], None] = lambda _: None,
    start: LanderModel | None = None,
    checkpoint: Checkpoint | None = None,
) -> LanderModel:
    """Train on labelled files of one space; write weights and card to `out`.

    `held_out` files choose the checkpoint, tau and levels; without them, classes held out do. `start`: a
    model to go on from. `checkpoint`: where the state is kept meanwhile, and whether to go on from it.
    Raises InputError where a file cannot be used, or files are of several dimensions.
    """
    plan = plan or LanderPlan()
    if start:
        plan = replace(plan, variant=start.card.variant, hidden=start.card.hidden, heads=start.card.heads)
    sources = [distinct(read_labelled(Path(path))) for path in files]
    judges = [distinct(read_labelled(Path(path))) for path in held_out]
    _check(sources, judges, start)
    whole = [(judge, judge.labels) for judge in judges]
    if not judges:
        held = [_held_out(source, plan) for source in sources]
        whole = [(source, classes) for source, classes in zip(sources, held, strict=True) if len(classes)]
        judges = [_part(source, classes, True) for source, classes in whole]
        sources = [_part(source, classes, False) for source, classes in zip(sources, held, strict=True)]
    trainer = Trainer(sources, plan, start)
    trainer.model()  # refuses a plan that makes no model, before the work
    mark = fingerprint([*sources, *judges], plan, start and start.sha256)
    run = TrainingRun(trainer, held_out_scores(judges, evaluate), plan.length, mark)
    best = run.run(progress, checkpoint)
    card = _tuned(best, whole)
    about = {
        "trained_on": [Path(path).stem for path in files],
        "held_out": [Path(path).stem for path in held_out] or "classes",
        "plan": asdict(plan),
        "started_from": start and start.sha256,
        **run.facts(),
    }
    model = best.with_card(replace(card, about=about))
    model.save(Path(out))
    if checkpoint:
        checkpoint.path.unlink(missing_ok=True)
    return model


def read_model(path: Path | None) -> LanderModel | None:
    """Return the lander at `path`, if one is named. Raises InputError where it cannot be read."""
    return LanderModel.load(path) if path else None


def evaluate(
    model: LanderModel,
    judge: Collection,
    tau: float | None = None,
    depth: int | None = None,
    classes: Int64 | None = None,
) -> dict[str, float]:
    """Cluster a collection in bulk; BCubed F after the last level and each, over some `classes` or all."""
    built = hierarchy(judge.emb, model, model.tau if tau is None else tau, depth or model.max_levels)
    counted = judge.labels if classes is None else classes
    by_level = [scores.bcubed_f_of(judge.labels, part, counted) for part in partitions(built)]
    return {"Fb": by_level[-1]} | {f"Fb_{at}": value for at, value in enumerate(by_level)}


def _tuned(model: LanderModel, whole: Sequence[tuple[Collection, Int64]]) -> LanderCard:
    """Return the card with the tau and the number of levels that do best on what is held out.

    Among the items of all classes, whose number matters: in larger collections p is greater.
    """
    if not whole:
        return model.card
    found: dict[tuple[float, int], float] = {}
    for tau in TAUS:
        each = [evaluate(model, collection, tau, 3, held) for collection, held in whole]
        for depth in (1, 2, 3):
            reached = [one.get(f"Fb_{depth - 1}", one["Fb"]) for one in each]
            found[tau, depth] = float(np.mean(reached))
    tau, depth = max(found, key=lambda at: (round(found[at], 3), -at[1]))
    return replace(model.card, tau=tau, max_levels=depth)


def _check(sources: Sequence[Collection], judges: Sequence[Collection], start: LanderModel | None) -> None:
    """Raise InputError where collections cannot be used together."""
    if not sources:
        raise InputError("name at least one labelled file to train on")
    dim = start.card.dim if start else sources[0].emb.shape[1]
    for each in (*sources, *judges):
        if each.emb.shape[1] != dim:
            first = "the model to start from" if start else sources[0].name
            raise InputError(
                f"a lander is of one embedding space: {first} has {dim} components, {each.name} "
                f"{each.emb.shape[1]}"
            )
    for each in sources:
        if len(np.unique(each.labels)) < 2:
            raise InputError(f"{each.name} has one class only: there is nothing to tell apart")


def _held_out(collection: Collection, plan: LanderPlan) -> Int64:
    """Choose the classes that are held out; none where there are fewer than eight."""
    classes = np.unique(collection.labels)
    count = int(len(classes) * plan.held_out) if len(classes) >= 8 else 0
    return np.random.default_rng(plan.seed).permutation(classes)[:count]


def _part(collection: Collection, classes: Int64, is_of_them: bool) -> Collection:
    rows = np.isin(collection.labels, classes, invert=not is_of_them)
    return Collection(collection.name, collection.emb[rows], collection.labels[rows])


class Trainer:
    """The network in training, its average, and a pool of hierarchies that are drawn from again and again."""

    def __init__(
        self, sources: Sequence[Collection], plan: LanderPlan, start: LanderModel | None = None
    ) -> None:
        self.sources = [_dense(source) for source in sources]
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
        drawn = _dense(whole_classes(source, self.rng, WHOLE, self.plan.most_items))
        if len(drawn.emb) < 2:
            return self._refresh(share) if not self.pool else None
        k = int(self.rng.choice(KS))
        if share < self.plan.oracle_share and not self.started:
            fresh = true_levels(drawn.emb, drawn.labels, k)
        else:
            model, tau = self.model(), float(self.rng.uniform(0.3, 0.8))
            fresh = levels(drawn.emb, drawn.labels, model.with_card(replace(model.card, k=k)), tau, 3)
        for each in fresh:
            keep(self.pool, each, self.plan.pool, self.rng)
        return None


def _dense(collection: Collection) -> Collection:
    """The collection with labels 0, 1, ... and without zero vectors or copies."""
    usable = np.linalg.norm(collection.emb, axis=1) > 1e-6
    found = distinct(replace(collection, emb=collection.emb[usable], labels=collection.labels[usable]))
    return replace(found, labels=np.unique(found.labels, return_inverse=True)[1].astype(np.int64))


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
