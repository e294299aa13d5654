"""Fine-tunes both networks on many labelled classes of one embedding space: `shoal train --both`.

Training draws whole classes as they are, since the networks learn how large and how dense a class is. Some
classes are held out: unlabelled among the others, they choose the checkpoint and tau. With an adapter
(`engine.finetuning.discriminant`) training sees each class through a map that was learned on other classes,
as the classes of a stream will be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.evaluation import scores
from engine.evaluation.bulk import hierarchy, measure_epoch, partitions, places, recluster_upper_levels
from engine.finetuning.collection import UNKNOWN, RolloutLevel, labelled_level
from engine.finetuning.discriminant import discriminant
from engine.finetuning.tuner import NetworkTuner
from engine.model.adapter import Adapter
from engine.model.linkage import LinkageModel
from engine.system.determinism import one_thread
from engine.training.datasets import Collection, distinct, read_labelled, whole_classes
from engine.training.draws import lagging
from engine.training.optimization import OptimizerPlan
from engine.training.rollout import training_graphs
from engine.training.training_run import Checkpoint, Progress, Schedule, TrainingRun, fingerprint
from engine.types import Float32, Int64
from engine.vectors import as_float, quantize

import torch  # isort: skip
from torch import Tensor  # isort: skip

LEAST_CLASSES = 8  # of two items or more
GROWN_AT = (0.3, 0.8)  # taus of training levels
SPREAD = 0.1  # of the training levels' base tau, to either side
TAUS = (0.3, 0.36, 0.42, 0.5, 0.6, 0.7)  # tried on the held-out classes
CLEARLY = 0.005  # F by which another tau has to be better than the start's


@dataclass(frozen=True, slots=True)
class SpacePlan:
    """How to fine-tune."""

    steps: int | None = 700
    minutes: float | None = None  # instead of steps
    seed: int = 0
    optimizer: OptimizerPlan = field(
        default_factory=lambda: OptimizerPlan(rate=1e-3, decay=0.01, average=0.99, warm=50)
    )
    held_out: float = 0.2  # of the classes, for choosing, where no file is named for it
    folds: int = 3  # of the classes, for the maps of an adapter
    most_items: int = 12_000  # of a draw
    share: tuple[float, float] = (0.6, 1.0)  # of a file's items in a draw
    first: int = 8  # draws before the first step
    fresh_every: int = 10  # steps between new draws
    pool: int = 60  # levels kept, of each network
    checks: int = 5
    save_every: float = 60.0  # seconds between checkpoints, if a file is named for them

    @property
    def length(self) -> Schedule:
        """When the training ends: all checks are made, whatever they say."""
        steps = None if self.minutes else self.steps
        return Schedule(self.minutes or 0.0, steps, self.checks, 0.25, self.checks, self.save_every)


@dataclass(frozen=True, slots=True)
class View:
    """Labelled embeddings as the networks see them."""

    emb: Float32  # (n, d)
    labels: Int64  # (n,)
    visible: Int64  # (classes,) whose labels training may use


@dataclass(frozen=True, slots=True)
class Judge:
    """A collection, and the classes in it that count."""

    name: str
    emb: Float32
    labels: Int64
    classes: Int64

    def score(self, model: LinkageModel) -> float:
        """BCubed F over the items of the classes that count, in bulk."""
        return self.by_tau(model, (model.tau,))[0]

    def by_tau(self, model: LinkageModel, taus: Sequence[float]) -> list[float]:
        """The same at several taus, over one level 0."""
        epoch = measure_epoch(self.emb, model.default_epoch)
        built = hierarchy(self.emb, model, model.tau, 1, epoch, base_tau=model.base_tau)
        found = []
        for tau in taus:
            clusters = partitions(recluster_upper_levels(built, model, tau, model.max_levels, epoch))[-1]
            found.append(scores.bcubed_f_of(self.labels, clusters, self.classes))
        return found


@dataclass(frozen=True, slots=True)
class SpaceFiles:
    """Files of one embedding space."""

    labelled: Sequence[Path]  # to train on
    choose: Sequence[Path] = ()  # judge in place of held-out classes
    adapter: Path | None = None  # where a map of the space goes, if one is to be learned


def tune_to_space(
    files: SpaceFiles,
    out: Path,
    start: LinkageModel,
    plan: SpacePlan | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    checkpoint: Checkpoint | None = None,
) -> LinkageModel:
    """Go on from `start` on labelled files of one space; write weights and card to `out`.

    With an adapter, the model is for what that makes of embeddings. `about["kept_start"]` of the card says
    whether the start is no worse, and stays. Raises InputError where a file cannot be used.
    """
    plan = plan or SpacePlan()
    source, others = _read(files.labelled), [_read([file]) for file in files.choose]
    _check(source, others)
    held = np.empty(0, np.int64) if others else held_out_classes(source.labels, plan)
    learned = np.setdiff1d(np.unique(source.labels), held)
    views, mapped = views_of(source, learned, plan, files.adapter is not None)
    counted = [(source, held)] if len(held) else [(each, np.unique(each.labels)) for each in others]
    judges = [_judge(each, classes, mapped) for each, classes in counted]
    as_they_come = [_judge(each, classes, None) for each, classes in counted]
    before = float(np.mean([judge.score(start) for judge in as_they_come]))
    mark = fingerprint([source, *others], plan, start.sha256, mapped and mapped.sha256)
    trainer = SpaceTrainer(views, start, plan)

    def judged(model: LinkageModel) -> dict[str, float]:
        return {judge.name: judge.score(model) for judge in judges}

    run = TrainingRun(trainer, judged, plan.length, mark)
    best = run.run(progress, checkpoint)
    kept = run.score <= before
    model = start if kept else _with_tau(best, judges)
    adapter = None if kept else mapped
    about = {
        "started_from": start.sha256,
        "kept_start": kept,
        "said": words(before, run.score, kept) + (" No adapter is written." if kept and mapped else ""),
        "trained_on": [path.stem for path in files.labelled],
        "held_out": [path.stem for path in files.choose] or "classes",
        "checkpoint_chosen_on": run.chosen_on,
        "history": [[0.0, before], *run.history],
        "plan": asdict(plan),
        "steps": trainer.steps,
        "adapter": adapter and adapter.sha256,
        "torch": torch.__version__,
    }
    model = model.with_card(replace(model.card, about=about))
    model.save(out)
    if adapter and files.adapter:
        adapter.save(files.adapter)
    if checkpoint:
        checkpoint.path.unlink(missing_ok=True)
    return model


def words(before: float, after: float, kept: bool) -> str:
    """Say in a sentence which model was taken, and why."""
    figures = f"F of held-out classes {before:.3f} before, {after:.3f} after"
    if kept:
        return f"The start is kept unchanged: training made it no better ({figures})."
    return f"The fine-tuned model is taken ({figures})."


class SpaceTrainer:
    """Both networks in fine-tuning: see `engine.training.training_run.Trainer`."""

    def __init__(self, views: Sequence[View], start: LinkageModel, plan: SpacePlan) -> None:
        self.views, self.start, self.plan = views, start, plan
        self.rng = np.random.default_rng(plan.seed)
        torch.manual_seed(plan.seed)
        self.steps = 0
        self.base, self.upper = (
            NetworkTuner(each, plan.optimizer, plan.pool) for each in (start.base, start.upper)
        )
        for _ in range(plan.first):
            self._draw(start)

    def step(self, share: float) -> float:
        """Do one step of one network at `share` of the whole training; return the loss."""
        if self.steps and self.steps % self.plan.fresh_every == 0:
            self._draw(self.model())
        self.steps += 1
        tuner = self.base if self.rng.random() < 0.5 else self.upper
        return tuner.step(share, self.rng)

    def model(self) -> LinkageModel:
        """Return the averages of the weights so far."""
        return LinkageModel(self.base.linkage(), self.upper.linkage(), self.start.card)

    def tensors(self, model: LinkageModel) -> dict[str, Tensor]:
        """Return the weights and ranges of a model."""
        return model.tensors()

    def model_of(self, tensors: dict[str, Tensor]) -> LinkageModel:
        """Return the model of these weights and ranges."""
        return LinkageModel.of(tensors, self.start.card)

    def state(self) -> dict[str, Any]:
        """Return everything that the next steps depend on."""
        return {
            "steps": self.steps,
            "rng": self.rng.bit_generator.state,
            "torch": torch.get_rng_state(),
            "tuners": [self.base.state(), self.upper.state()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.steps = state["steps"]
        for tuner, each in zip((self.base, self.upper), state["tuners"], strict=True):
            tuner.restore(each)
        self.rng.bit_generator.state = state["rng"]
        torch.set_rng_state(state["torch"])

    @one_thread()
    def _draw(self, model: LinkageModel) -> None:
        """Put the levels that the model makes of whole classes of a view into the pools."""
        view = self.views[int(self.rng.integers(len(self.views)))]
        drawn = whole_classes(
            Collection("", view.emb, view.labels), self.rng, self.plan.share, self.plan.most_items
        )
        epoch = lagging(measure_epoch(drawn.emb), self.rng)
        base_tau = (model.base_tau or model.tau) + float(self.rng.uniform(-SPREAD, SPREAD))
        tau, ties = float(self.rng.uniform(*GROWN_AT)), int(self.rng.integers(1 << 31))
        built = hierarchy(drawn.emb, model, tau, model.max_levels, epoch, ties, base_tau)
        at, labels = places(built), np.where(np.isin(drawn.labels, view.visible), drawn.labels, UNKNOWN)
        for graph in training_graphs(built, drawn.labels, epoch):
            tuner = self.upper if graph.level else self.base
            tuner.take(labelled_level(RolloutLevel(graph, at[graph.level]), labels), self.rng)


def views_of(
    source: Collection, learned: Int64, plan: SpacePlan, is_mapped: bool
) -> tuple[list[View], Adapter | None]:
    """Return what the networks train on, and the map taught by all `learned` classes, if one is asked for.

    A map makes the classes that it was learned on denser than others; a view shows the labels of others only.
    """
    if not is_mapped:
        return [View(source.emb, source.labels, learned)], None
    shuffled = np.random.default_rng(plan.seed).permutation(learned)
    views = []
    for at in range(plan.folds):
        visible = shuffled[at :: plan.folds]
        views.append(
            View(_through(_map(source, np.setdiff1d(learned, visible)), source.emb), source.labels, visible)
        )
    return views, _map(source, learned)


def _map(source: Collection, classes: Int64) -> Adapter:
    rows = np.isin(source.labels, classes)
    about = {"kind": "discriminant", "taught_by": source.name, "classes": len(classes)}
    return discriminant(source.emb[rows], source.labels[rows], about)


def _through(adapter: Adapter | None, emb: Float32) -> Float32:
    return as_float(adapter.apply(quantize(emb)[0])) if adapter else emb


def _judge(collection: Collection, classes: Int64, adapter: Adapter | None) -> Judge:
    return Judge(collection.name, _through(adapter, collection.emb), collection.labels, classes)


def _with_tau(model: LinkageModel, judges: Sequence[Judge]) -> LinkageModel:
    """The model with the tau that does best on what is held out, if it is clearly better."""
    taus = (model.tau, *TAUS)
    found = np.mean([judge.by_tau(model, taus) for judge in judges], axis=0)
    best = int(found.argmax())
    tau = taus[best] if found[best] > found[0] + CLEARLY else model.tau
    return model.with_card(replace(model.card, tau=tau))


def _read(files: Sequence[Path]) -> Collection:
    """Files of one space side by side, each with classes of its own: distinct unit vectors."""
    found = [read_labelled(Path(file)) for file in files]
    dims = sorted({each.emb.shape[1] for each in found})
    if len(dims) > 1:
        raise InputError(f"--both learns one embedding space: the files have {dims} components")
    shifted, classes = [], 0
    for each in found:
        shifted.append(each.labels + classes)
        classes += int(each.labels.max(initial=-1)) + 1
    emb = np.concatenate([each.emb for each in found])
    norms = np.linalg.norm(emb, axis=1, keepdims=True)
    usable = norms[:, 0] > 1e-6
    name = "+".join(each.name for each in found)
    return distinct(Collection(name, emb[usable] / norms[usable], np.concatenate(shifted)[usable]))


def _check(source: Collection, others: Sequence[Collection]) -> None:
    """Raise InputError where the collections cannot be used."""
    _, sizes = np.unique(source.labels, return_counts=True)
    if (count := int((sizes > 1).sum())) < LEAST_CLASSES:
        raise InputError(
            f"{source.name} has {count} classes of two distinct items or more: --both learns what classes of "
            f"a space look like, and needs {LEAST_CLASSES}; a few classes are for --start without it"
        )
    for other in others:
        if other.emb.shape[1] != source.emb.shape[1]:
            raise InputError(
                f"{other.name} is not of the space of {source.name}: they have {other.emb.shape[1]} and "
                f"{source.emb.shape[1]} components"
            )


def held_out_classes(labels: Int64, plan: SpacePlan) -> Int64:
    """Choose the classes that judge, (m,)."""
    classes, sizes = np.unique(labels, return_counts=True)
    able = classes[sizes > 1]
    count = max(2, int(len(able) * plan.held_out))
    return np.sort(np.random.default_rng(plan.seed).permutation(able)[:count])
