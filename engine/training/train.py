"""Meta-training of the universal model: `shoal train`.

First on levels that a nearly perfect oracle makes of many collections, then on roll-outs: levels
that the model itself makes (`engine.training.rollout`). The loss is that of Hi-LANDER, linkage and density
together; a student learns its teacher's probabilities instead of labels. The weights that are kept are
an average over the last steps (EMA), and of several such averages the one that does best on collections
held out for choosing.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from engine.errors import InputError
from engine.model.features import Ranges
from engine.model.linkage import Card, LinkageModel, Universal, UniversalConfig
from engine.system.determinism import one_thread
from engine.training import scores, topics
from engine.training.datasets import (
    Collection,
    distinct,
    embedded_again,
    generated,
    read_labelled,
    subset,
    view,
)
from engine.training.rollout import Oracle, Scene, hierarchy, joined, measured_epoch, partitions, scenes
from engine.types import Epoch, Float32

import torch  # isort: skip
from torch import Tensor  # isort: skip

MOST_ITEMS = 2500  # of most training graphs
LARGE_ITEMS = 10_000  # of some: lists are tighter in large collections
POOL = 500  # scenes kept for replay, of each of two kinds


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train. What the weights that ship took is on their card."""

    minutes: float = 20.0
    seed: int = 0
    hidden: int = 48
    rate: float = 3e-3  # Adam's, cosine to 1/30 of it
    dropout: float = 0.05
    edges: int = 8_000  # a step's, or one scene's where that has more
    oracle_share: float = 0.15  # of the time, before roll-outs
    generated_share: float = 0.35  # of the other collections drawn
    topics_share: float = 0.35  # of a step's scenes: of few topics, none, cones, near-copies
    first: int = 60  # collections drawn before the first step; they set the features' ranges
    fresh_every: int = 12  # steps between new collections
    fresh_topics: int = 6  # so too, of few topics: they are small and vary more
    average: float = 0.998  # EMA's decay
    checks: int = 6  # evaluations on the held-out collections, in the second half
    imitation: float = 0.5  # the teacher's part in the targets, where there is one


@dataclass(frozen=True, slots=True)
class Progress:
    """What a callback learns now and then."""

    share: float  # of the time
    step: int
    loss: float
    held_out: Mapping[str, float] | None = None  # BCubed F


def train(
    files: Sequence[Path],
    out: Path,
    plan: Plan | None = None,
    held_out: Sequence[Path] = (),
    progress: Callable[[Progress], None] = lambda _: None,
    start: LinkageModel | None = None,
    teacher: LinkageModel | None = None,
) -> LinkageModel:
    """Train on labelled `files` (.npz) and generated mixtures; write weights and card to `out`.

    `held_out` files choose the checkpoint and are not trained on; without them the last average is
    kept. `start`: a model to go on from, on roll-outs alone. `teacher`: a model of the same k, maybe a
    larger one, whose probabilities are learned in place of the labels (distillation: Hinton et al.,
    arXiv 1503.02531). Raises InputError where a file cannot be used.
    """
    plan = plan or Plan()
    if any(model.k != UniversalConfig().k for model in (start, teacher) if model):
        raise InputError(f"a model to go on from or to learn from has to have k = {UniversalConfig().k}")
    if start:
        plan = replace(plan, hidden=start.card.hidden, oracle_share=0.0)
    if teacher is None:
        plan = replace(plan, imitation=0.0)
    if not files:
        raise InputError("name at least one labelled .npz file to train on")
    sources = [_versions(Path(path), plan.seed) for path in files]
    judges = [read_labelled(Path(path)) for path in held_out]
    trainer = Trainer(sources, plan, start, teacher)
    choice = Choice(judges)
    started, share, checked = time.monotonic(), 0.0, 0
    while share < 1.0:
        loss = trainer.step(share)
        share = min(1.0, (time.monotonic() - started) / max(60.0 * plan.minutes, 1e-3))
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
        "started_from": start and start.sha256,
        "taught_by": teacher and teacher.sha256,
        "torch": torch.__version__,
    }
    assert choice.best is not None
    model = choice.best.with_card(replace(choice.best.card, about=about))
    model.save(Path(out))
    return model


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
    built = hierarchy(
        collection.emb, model, model.tau if tau is None else tau, max_levels or model.max_levels
    )
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


class Trainer:
    """The network in training, its average, and a pool of scenes that are drawn from again and again."""

    def __init__(
        self,
        sources: Sequence[Sequence[Collection]],
        plan: Plan,
        start: LinkageModel | None = None,
        teacher: LinkageModel | None = None,
    ) -> None:
        self.sources, self.plan, self.teacher = sources, plan, teacher
        self.rng = np.random.default_rng(plan.seed)
        torch.manual_seed(plan.seed)
        self.steps = 0
        self.pool: list[Scene] = []
        self.topics: list[Scene] = []
        self.net = Universal(UniversalConfig(hidden=plan.hidden, dropout=plan.dropout))
        if start:
            self.net.load_state_dict(start.net.state_dict())
        self.mean_net = copy.deepcopy(self.net).eval()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=plan.rate, weight_decay=0.01)
        raw = [scene for _ in range(plan.first) for scene in self._draw(start)]
        few = [scene for _ in range(plan.first) for scene in self._draw_topics(start)]
        self.nodes = Ranges.measured(np.concatenate([_thin(scene.x, self.rng) for scene in raw + few]))
        self.edges = Ranges.measured(np.concatenate([_thin(scene.e, self.rng) for scene in raw + few]))
        if start:
            self.nodes, self.edges = start.nodes.widened(self.nodes), start.edges.widened(self.edges)
        self._keep(raw, self.pool)
        self._keep(few, self.topics)

    @one_thread()
    def step(self, share: float) -> float:
        """One step of the optimizer at `share` of the whole training; returns the loss."""
        self._refresh(share)
        for group in self.optimizer.param_groups:
            warm = min(1.0, (self.steps + 1) / 200)
            group["lr"] = self.plan.rate * warm * (1 / 30 + (1 - 1 / 30) * 0.5 * (1 + np.cos(np.pi * share)))
        parts: list[Scene] = []
        edges = 0
        while edges < self.plan.edges and len(parts) < 40:
            pool = self.topics if self.rng.random() < self.plan.topics_share else self.pool
            parts.append(pool[self.rng.integers(len(pool))])
            edges += len(parts[-1].e)
        self.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = scene_loss(self.net, parts)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.steps += 1
        decay = min(self.plan.average, self.steps / (self.steps + 20))
        with torch.no_grad():
            for mean, value in zip(self.mean_net.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(value, 1.0 - decay)
        return float(loss.detach())

    def _refresh(self, share: float) -> None:
        """New scenes, where some are due."""
        others, few = (self.steps % every == 0 for every in (self.plan.fresh_every, self.plan.fresh_topics))
        if others or few:
            maker = None if share < self.plan.oracle_share else self.model()
            self._keep(self._draw(maker) if others else (), self.pool)
            self._keep(self._draw_topics(maker) if few else (), self.topics)

    def model(self) -> LinkageModel:
        """The average of the weights so far, as the engine runs it."""
        return LinkageModel(
            copy.deepcopy(self.mean_net), self.nodes, self.edges, Card(hidden=self.plan.hidden)
        )

    def _draw(self, model: LinkageModel | None) -> list[Scene]:
        """The levels of a new collection, made by `model` or else by an oracle."""
        collection = _collection(self.sources, self.rng, self.plan)
        return [replace(scene, target=self._target(scene)) for scene in self._levels(collection, model)]

    def _draw_topics(self, model: LinkageModel | None) -> list[Scene]:
        """So too, of few topics and their like: their labels are right, whatever a teacher thinks."""
        least = 16 if self.rng.random() < 0.7 else MOST_ITEMS // 3
        items = int(np.exp(self.rng.uniform(np.log(least), np.log(MOST_ITEMS))))
        return self._levels(distinct(topics.drawn(self.rng, items)), model)

    def _levels(self, collection: Collection, model: LinkageModel | None) -> list[Scene]:
        rng = self.rng
        epoch = measured_epoch(collection.emb)
        drift = 0.07 * rng.normal(size=2)  # the engine's epoch lags behind the collection
        epoch = Epoch(
            epoch.mean + drift[0] * epoch.deviation, epoch.deviation * float(np.exp(drift[1])), epoch.items
        )
        tau = float(rng.uniform(0.3, 0.8))
        maker, levels = (Oracle(collection.labels, rng), 2) if model is None else (model, 3)
        built = hierarchy(collection.emb, maker, tau, levels, epoch, int(rng.integers(1 << 31)))
        return scenes(built, collection.labels, epoch)

    def _keep(self, raw: Sequence[Scene], pool: list[Scene]) -> None:
        for scene in raw:
            ready = replace(scene, x=self.nodes.apply(scene.x), e=self.edges.apply(scene.e))
            if len(pool) < POOL:
                pool.append(ready)
            else:
                pool[self.rng.integers(POOL)] = ready

    @one_thread()
    def _target(self, scene: Scene) -> Float32:
        """What the network is to say of the edges of a scene with raw features."""
        if self.teacher is None:
            return scene.target
        told = self.teacher.probabilities(scene.x, scene.e, scene.degrees, scene.tails)
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
        drawn = view(subset(drawn, rng, LARGE_ITEMS if rng.random() < 0.15 else MOST_ITEMS), rng)
    if rng.random() < 0.1:
        drawn = topics.in_cone(rng, drawn)
    return topics.planted(rng, drawn) if rng.random() < 0.02 else drawn


def _thin(rows: Float32, rng: np.random.Generator, most: int = 3000) -> Float32:
    return rows[rng.permutation(len(rows))[:most]]


def scene_loss(net: Universal, parts: Sequence[Scene]) -> Tensor:
    """Linkage loss plus density loss of some scenes; each counts by the root of its edges.

    Edges that decoding would consider (d_j > d_i) count four times the others; at upper levels edges
    count by the smaller end's items, since a wrong link there moves as many.
    """
    whole = joined(parts)
    heads, tails = torch.from_numpy(whole.heads), torch.from_numpy(whole.tails)
    x, e, counts = torch.from_numpy(whole.x), torch.from_numpy(whole.e), torch.from_numpy(whole.degrees)
    logits = net(x, e, counts.long(), tails)
    target, similarity = torch.from_numpy(whole.target), torch.from_numpy(whole.similarity)
    degrees = counts.clamp(min=1)
    density = _density(torch.sigmoid(logits), similarity, heads, degrees)
    truth = _density(target, similarity, heads, degrees)
    upward = density.detach()[tails] > density.detach()[heads]
    weight = torch.where(upward, 1.0, 0.25) * torch.from_numpy(_importance(whole, parts))
    linkage = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (weight * linkage).sum() / weight.sum() + ((density - truth) ** 2).mean()


def _density(p: Tensor, similarity: Tensor, heads: Tensor, degrees: Tensor) -> Tensor:
    """d_i = mean over N(i) of s_ij (2 p_ij - 1)."""
    total = torch.zeros(len(degrees)).index_add(0, heads, similarity * (2 * p - 1))
    return total / degrees


def _importance(whole: Scene, parts: Sequence[Scene]) -> Float32:
    smaller = np.minimum(whole.size[whole.heads], whole.size[whole.tails]) ** 0.5
    stops = np.cumsum([len(part.e) for part in parts])
    for part, stop in zip(parts, stops, strict=True):
        mine = slice(stop - len(part.e), stop)
        smaller[mine] *= len(part.e) ** 0.5 / max(smaller[mine].sum(), 1e-9)
    return smaller.astype(np.float32)
