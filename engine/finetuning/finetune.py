"""Fine-tuning of the universal model on labelled classes of a collection: `shoal train --start`.

Ten classes, labelled whole among all others, move the network above level 0 a little. The model of all is
taken where models trained without some of them do better than the start on these
(`engine.finetuning.folds`); else the start stays as it is, and the card says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from connectors.files.labelled import read_labelled
from engine.errors import InputError
from engine.finetuning.folds import Fold, Folds, Models, class_scores, f_of, folds_of, verdict
from engine.finetuning.ground import UNKNOWN, Ground, ground_of
from engine.finetuning.tuner import Pitch
from engine.model.linkage import LinkageModel
from engine.training.course import Checkpoint, Course, Length, fingerprint
from engine.training.datasets import Collection
from engine.training.progress import Progress
from engine.types import Float32, Float64, Int64
from engine.vectors import quantize

import torch  # isort: skip

LEAST_CLASSES = 4  # of two items or more, to learn from some and judge on others


@dataclass(frozen=True, slots=True)
class FinePlan:
    """How to fine-tune."""

    steps: int = 30
    minutes: float | None = None  # instead of steps
    seed: int = 0
    folds: int = 3  # of the classes
    checks: int = 2  # after which the best of the models so far is kept
    save_every: float = 60.0  # seconds between checkpoints, if a file is named for them
    pitch: Pitch = field(default_factory=Pitch)

    @property
    def length(self) -> Length:
        """When the training ends: all checks are made, whatever they say."""
        steps = None if self.minutes else self.steps
        return Length(self.minutes or 0.0, steps, self.checks, 0.25, self.checks, self.save_every)


@dataclass(frozen=True, slots=True)
class Material:
    """What to fine-tune on."""

    labelled: Sequence[Path]  # whole classes; records without a label are of other ones
    among: Path | None = None  # the collection in which these classes are; its labels are not read
    choose: Sequence[Path] = ()  # judge in place of held-out classes


def finetune(
    material: Material,
    out: Path,
    start: LinkageModel,
    plan: FinePlan | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    checkpoint: Checkpoint | None = None,
) -> LinkageModel:
    """Go on from `start` on labelled classes; write the better model of the two, and its card, to `out`.

    `about["kept_start"]` of the card says whether the start stays, `about["said"]` why. Raises InputError
    where a file cannot be used.
    """
    plan = plan or FinePlan()
    if not material.labelled:
        raise InputError("name at least one labelled file to fine-tune on")
    grounds = read_grounds(material.labelled, material.among, start)
    judges = read_grounds(material.choose, None, start)
    model, about = tuned(grounds, judges, start, plan, progress, checkpoint)
    about["trained_on"] = [path.stem for path in material.labelled]
    about["among"] = material.among and material.among.stem
    about["held_out"] = [path.stem for path in material.choose] or "classes"
    about["said"] = words(about)
    model = model.with_card(replace(model.card, about=about))
    model.save(out)
    if checkpoint:
        checkpoint.path.unlink(missing_ok=True)
    return model


def tuned(
    grounds: Sequence[Ground],
    judges: Sequence[Ground],
    start: LinkageModel,
    plan: FinePlan,
    progress: Callable[[Progress], None] = lambda _: None,
    checkpoint: Checkpoint | None = None,
) -> tuple[LinkageModel, dict[str, Any]]:
    """Return the better model of the two, with what the card says of it; see `finetune`."""
    for ground in grounds:
        _require_classes(ground)
    if judges:
        held, folds = [Fold(judge, np.unique(judge.labels[judge.labels != UNKNOWN])) for judge in judges], []
    else:
        held = folds = [fold for ground in grounds for fold in folds_of(ground, plan.folds, plan.seed)]
    trainer = Folds(grounds, folds, start, plan.pitch, plan.seed)

    clusters: dict[tuple[str, int], Int64] = {}  # of models seen before: the start, the best

    def clusters_of(model: LinkageModel, ground: Ground) -> Int64:
        at = model.sha256, id(ground)
        if at not in clusters:
            clusters[at] = ground.clusters(model)
        return clusters[at]

    def scored(models: Models) -> Float64:
        """Of each held-out class: by the model that does not know it."""
        able = models[:-1] if folds else [models[-1]] * len(held)
        found = zip(able, held, strict=True)
        return np.concatenate([class_scores(clusters_of(each, fold.ground), fold) for each, fold in found])

    def judged(models: Models) -> dict[str, float]:
        return {"held-out classes": float(f_of(scored(models))[0])}

    before = scored((start,) * (len(folds) + 1))
    used = [Collection(ground.name, ground.emb, ground.labels) for ground in (*grounds, *judges)]
    mark = fingerprint(used, plan, start.sha256)
    course: Course[Models] = Course(trainer, judged, plan.length, mark)
    best = course.run(progress, checkpoint)
    found = verdict(before, scored(best), plan.seed)
    about = {
        "started_from": start.sha256,
        "kept_start": not found.better,
        "verdict": asdict(found),
        "checkpoint_chosen_on": course.chosen_on,
        "history": [[0.0, found.before], *course.history],
        "plan": asdict(plan),
        "steps": trainer.steps,
        "torch": torch.__version__,
    }
    return (best[-1] if found.better else start), about


def words(about: dict[str, Any]) -> str:
    """Say in a sentence which model was taken, and why."""
    said = about["verdict"]
    figures = (
        f"F of held-out classes {said['before']:.3f} before, {said['after']:.3f} after; better with a "
        f"probability of {said['sure']:.2f}"
    )
    if about["kept_start"]:
        return f"The start is kept unchanged: fine-tuning is not surely better ({figures})."
    return f"The fine-tuned model is taken ({figures})."


def read_grounds(labelled: Sequence[Path], among: Path | None, start: LinkageModel) -> list[Ground]:
    """Return a ground of each labelled file, or one of all of them and the collection in which they are."""
    found = [_read(path) for path in labelled]
    if among is None:
        return [
            ground_of(path.stem, *_distinct(*each), start) for path, each in zip(labelled, found, strict=True)
        ]
    emb, labels = _read(among)
    found.append((emb, np.full(len(labels), UNKNOWN)))
    dims = {each.shape[1] for each, _ in found}
    if len(dims) > 1:
        raise InputError(
            f"{among} and the labelled files are not of one space: they have {sorted(dims)} components"
        )
    shifted, classes = [], 0
    for _, own in found:
        shifted.append(np.where(own == UNKNOWN, UNKNOWN, own + classes))
        classes += int(own.max(initial=-1)) + 1
    both = _distinct(np.concatenate([each for each, _ in found]), np.concatenate(shifted))
    return [ground_of(among.stem, *both, start)]


def _read(path: Path) -> tuple[Float32, Int64]:
    """Unit vectors (n, d), and labels (n,) from 0, UNKNOWN where there is none."""
    file = read_labelled(path, partly=True)
    emb = file.emb / np.linalg.norm(file.emb, axis=1, keepdims=True)
    return emb.astype(np.float32), file.classes()[1]


def _distinct(emb: Float32, labels: Int64) -> tuple[Float32, Int64]:
    """One item of each vector: the first one with a label, or else the first one."""
    order = np.argsort(labels == UNKNOWN, kind="stable")
    _, first = np.unique(quantize(emb[order])[0], axis=0, return_index=True)
    rows = np.sort(order[first])
    return emb[rows], labels[rows]


def _require_classes(ground: Ground) -> None:
    """Raise InputError where there are too few classes to learn from some and judge on others."""
    _, sizes = np.unique(ground.labels[ground.labels != UNKNOWN], return_counts=True)
    if (count := int((sizes > 1).sum())) < LEAST_CLASSES:
        raise InputError(
            f"{ground.name} has {count} labelled classes of two distinct items or more: fine-tuning needs "
            f"{LEAST_CLASSES}, to learn from some and judge on others"
        )
