"""Fine-tunes on many labelled classes of one embedding space: `shoal train --space`.

Training draws whole classes as they are, since the networks learn how large and how dense a class is. Some
classes are held out: unlabelled among the others, they choose the checkpoint and tau. With an adapter
(`engine.training.discriminant`) training sees each class through a map that was learned on other classes,
as the classes of a stream will be seen. The map that is written is learned on all of them, the held-out ones,
too: more classes say more about what matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InputError, counted
from engine.evaluation.bulk import hierarchy, measure_epoch, partitions, places, recluster_upper_levels
from engine.evaluation.scores import class_scores, f_of_classes
from engine.finetuning.collection import RolloutLevel, labelled_level
from engine.finetuning.finetune import words
from engine.finetuning.folds import verdict
from engine.finetuning.tuner import NetworkTuner, drawn_base_tau
from engine.model.adapter import Adapter
from engine.model.linkage import LinkageModel
from engine.system.determinism import one_thread
from engine.training.datasets import UNKNOWN, Collection, SpaceFiles, distinct, read_space, whole_classes
from engine.training.discriminant import discriminant, through
from engine.training.draws import lagging
from engine.training.optimization import OptimizerPlan
from engine.training.rollout import training_graphs
from engine.training.training_run import Checkpoint, Progress, Schedule, TrainingRun, fingerprint, finished
from engine.types import Float32, Float64, Int64

import torch  # isort: skip
from torch import Tensor  # isort: skip

LEAST_CLASSES = 8  # of two items or more
GROWN_AT = (0.3, 0.8)  # taus of training levels
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
        """When the training ends: after all checks, whatever their results."""
        return Schedule.of_tuning(self.minutes, self.steps, self.checks, self.save_every)


@dataclass(frozen=True, slots=True)
class View:
    """Labelled embeddings as the networks see them."""

    emb: Float32  # (n, d)
    labels: Int64  # (n,)
    visible: Int64  # (classes,) whose labels training may use


@dataclass(frozen=True, slots=True)
class Judge:
    """A collection, and the classes in it that count."""

    emb: Float32
    labels: Int64
    classes: Int64

    def scores(self, model: LinkageModel, taus: Sequence[float]) -> Float64:
        """Return items, precision and recall of each class at several taus, (taus, classes, 3), in bulk."""
        epoch = measure_epoch(self.emb, model.default_epoch)
        built = hierarchy(self.emb, model, model.tau, 1, epoch, base_tau=model.base_tau)
        found = []
        for tau in taus:
            clusters = partitions(recluster_upper_levels(built, model, tau, model.max_levels, epoch))[-1]
            found.append(class_scores(self.labels, clusters, self.classes))
        return np.array(found)


def tune_to_space(
    files: SpaceFiles,
    out: Path,
    start: LinkageModel,
    plan: SpacePlan | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    checkpoint: Checkpoint | None = None,
) -> LinkageModel:
    """Go on from `start` on labelled files of one space; write weights and card to `out`.

    With an adapter, the model is for what that makes of embeddings. The start is written, and no adapter,
    unless the tuned model is surely better: see `about["kept_start"]` and `about["said"]` of the card. Raises
    InputError where a file cannot be used.
    """
    plan = plan or SpacePlan()
    source, others = _read(files.labelled), [_read([file]) for file in files.choose]
    _check(source, others)
    held = np.empty(0, np.int64) if others else held_out_classes(source.labels, plan)
    learned = np.setdiff1d(np.unique(source.labels), held)
    views, mapped = views_of(source, learned, plan, files.adapter is not None)
    chosen = [(source, held)] if len(held) else [(each, np.unique(each.labels)) for each in others]
    judges = [_judge(each, classes, mapped) for each, classes in chosen]
    as_they_come = [_judge(each, classes, None) for each, classes in chosen]
    before = _scored(start, as_they_come, (start.tau,))[0]
    mark = fingerprint([source, *others], plan, start=start.sha256, adapter=mapped and mapped.sha256)
    trainer = SpaceTrainer(views, start, plan)

    def judged(model: LinkageModel) -> dict[str, float]:
        found = _scored(model, judges, (start.tau,))[0]
        return {f"held-out classes at tau {start.tau:g}": float(f_of_classes(found)[0])}

    run = TrainingRun(trainer, judged, plan.length, mark)
    best, after = _with_tau(run.run(progress, checkpoint), judges)
    found = verdict(before, after, plan.seed)
    model, adapter = start, None
    if found.better:
        model, adapter = best, mapped and _map(source, np.unique(source.labels))
    about: dict[str, Any] = {
        "started_from": start.sha256,
        "kept_start": not found.better,
        "verdict": asdict(found),
        "tuned_tau": best.tau,
        "trained_on": [path.stem for path in files.labelled],
        "held_out": [path.stem for path in files.choose] or "classes",
        "plan": asdict(plan),
        "adapter": adapter and adapter.sha256,
        **run.facts(),
        "history": [[0.0, found.before], *run.history],
    }
    about["said"] = words(about)
    if mapped and not adapter:
        about["said"] += " No adapter is written: leave out [model] adapter with this model."
        if files.adapter and files.adapter.exists():
            about["said"] += f" {files.adapter} is of an earlier training."
    if model.tau != start.tau:
        about["said"] += f" Its tau is {model.tau:g}, not {start.tau:g}."
    if adapter and files.adapter:
        adapter.save(files.adapter)
    return finished(model, about, out, checkpoint)


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
        base_tau = drawn_base_tau(model, self.rng)
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
            View(through(_map(source, np.setdiff1d(learned, visible)), source.emb), source.labels, visible)
        )
    return views, _map(source, learned)


def _map(source: Collection, classes: Int64) -> Adapter:
    rows = np.isin(source.labels, classes)
    about = {"kind": "discriminant", "taught_by": source.name, "classes": len(classes)}
    return discriminant(source.emb[rows], source.labels[rows], about)


def _judge(collection: Collection, classes: Int64, adapter: Adapter | None) -> Judge:
    return Judge(through(adapter, collection.emb), collection.labels, classes)


def _scored(model: LinkageModel, judges: Sequence[Judge], taus: Sequence[float]) -> Float64:
    """Return the scores of all judges' classes, (taus, classes, 3)."""
    return np.concatenate([judge.scores(model, taus) for judge in judges], axis=1)


def _with_tau(model: LinkageModel, judges: Sequence[Judge]) -> tuple[LinkageModel, Float64]:
    """Return the model with the tau best on the held-out classes, if clearly better, and its scores."""
    taus = (model.tau, *TAUS)
    rows = _scored(model, judges, taus)
    f = [float(f_of_classes(each)[0]) for each in rows]
    best = int(np.argmax(f)) if max(f) > f[0] + CLEARLY else 0
    return model.with_card(replace(model.card, tau=taus[best])), rows[best]


def _read(paths: Sequence[Path]) -> Collection:
    """Read files of one space as one collection of distinct unit vectors."""
    files = read_space(paths)
    dims = sorted({file.emb.shape[1] for file in files})
    if len(dims) > 1:
        raise InputError(f"--space learns one embedding space: the files have {dims} components")
    emb, labels = (np.concatenate([getattr(file, name) for file in files]) for name in ("emb", "labels"))
    return distinct(Collection("+".join(file.name for file in files), emb, labels))


def _check(source: Collection, others: Sequence[Collection]) -> None:
    """Raise InputError where the collections cannot be used."""
    _, sizes = np.unique(source.labels, return_counts=True)
    if (count := int((sizes > 1).sum())) < LEAST_CLASSES:
        raise InputError(
            f"{source.name} has {counted(count, 'class', 'classes')} of two distinct items or more: --space "
            f"learns what classes look like, and needs {LEAST_CLASSES}; a few classes are for --start "
            "without it"
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
