"""Fine-tunes the universal model on some labelled classes of a collection: `shoal train --start`.

Both networks are trained. Cross-validation over the classes (`engine.finetuning.folds`) decides
whether the fine-tuned model replaces the start; otherwise the start is written unchanged; its card says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from connectors.files.labelled import read_labelled
from engine.errors import InputError, counted
from engine.evaluation.scores import f_of_classes
from engine.finetuning.collection import FinetuneCollection
from engine.finetuning.folds import FEW_CLASSES, Fold, Folds, Models, folds_of, verdict
from engine.finetuning.tuner import TunerPlan
from engine.model.linkage import LinkageModel
from engine.numbering import by_occurrence
from engine.training.datasets import UNKNOWN, Collection, shared_classes, unit
from engine.training.training_run import Checkpoint, Progress, Schedule, TrainingRun, fingerprint, finished
from engine.types import Float32, Float64, Int64
from engine.vectors import quantize

LEAST_CLASSES = 4  # of two items or more: some are held out


@dataclass(frozen=True, slots=True)
class FinetunePlan:
    """Hyperparameters of a fine-tuning."""

    steps: int = 30
    minutes: float | None = None  # instead of steps
    seed: int = 0
    folds: int = 3  # of the cross-validation over classes
    checks: int = 2  # evaluations; the best model of them is kept
    save_every: float = 60.0  # seconds between checkpoints
    tuner: TunerPlan = field(default_factory=TunerPlan)

    @property
    def length(self) -> Schedule:
        """Duration and evaluations; there is no early stopping."""
        return Schedule.of_tuning(self.minutes, self.steps, self.checks, self.save_every)


@dataclass(frozen=True, slots=True)
class FinetuneData:
    """Files to fine-tune on."""

    labelled: Sequence[Path]  # whole classes; records without a label are of other classes
    among: Path | None = None  # the collection that holds these classes; its labels are not read
    choose: Sequence[Path] = ()  # evaluated in place of held-out classes


def finetune(
    data: FinetuneData,
    out: Path,
    start: LinkageModel,
    plan: FinetunePlan | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    checkpoint: Checkpoint | None = None,
) -> LinkageModel:
    """Fine-tune `start` on labelled classes; write the better model of the two, and its card, to `out`.

    `about["kept_start"]` of the card says whether it is the start, `about["said"]` why. Raises InputError
    where a file cannot be used.
    """
    plan = plan or FinetunePlan()
    if not data.labelled:
        raise InputError("name at least one labelled file to fine-tune on")
    collections = read_collections(data.labelled, data.among, start)
    judges = read_collections(data.choose, None, start)
    model, about = tuned(collections, judges, start, plan, progress, checkpoint)
    about["trained_on"] = [path.stem for path in data.labelled]
    about["among"] = data.among and data.among.stem
    about["held_out"] = [path.stem for path in data.choose] or "classes"
    about["said"] = words(about)
    return finished(model, about, out, checkpoint)


def tuned(
    collections: Sequence[FinetuneCollection],
    judges: Sequence[FinetuneCollection],
    start: LinkageModel,
    plan: FinetunePlan,
    progress: Callable[[Progress], None] = lambda _: None,
    checkpoint: Checkpoint | None = None,
) -> tuple[LinkageModel, dict[str, Any]]:
    """Return the better model of the two, and `about` of its card; see `finetune`.

    `judges`: evaluated in place of held-out classes. Raises InputError where there are too few classes.
    """
    for collection in collections:
        _require_classes(collection)
    if judges:
        held, folds = [Fold(judge, np.unique(judge.labels[judge.labels != UNKNOWN])) for judge in judges], []
    else:
        held = folds = [
            fold for collection in collections for fold in folds_of(collection, plan.folds, plan.seed)
        ]
    trainer = Folds(collections, folds, start, plan.tuner, plan.seed)

    clusters: dict[tuple[str, int], Int64] = {}  # by model and collection: the start is scored repeatedly

    def clusters_of(model: LinkageModel, collection: FinetuneCollection) -> Int64:
        at = model.sha256, id(collection)
        if at not in clusters:
            clusters[at] = collection.clusters(model)
        return clusters[at]

    def scored(models: Models) -> Float64:
        """Return the scores of each held-out class by the model that was not trained on it."""
        able = models[:-1] if folds else [models[-1]] * len(held)
        found = zip(able, held, strict=True)
        return np.concatenate([fold.scores(clusters_of(each, fold.collection)) for each, fold in found])

    def judged(models: Models) -> dict[str, float]:
        return {"held-out classes": float(f_of_classes(scored(models))[0])}

    before = scored((start,) * (len(folds) + 1))
    used = [
        Collection(collection.name, collection.emb, collection.labels)
        for collection in (*collections, *judges)
    ]
    mark = fingerprint(used, plan, start=start.sha256)
    run: TrainingRun[Models] = TrainingRun(trainer, judged, plan.length, mark)
    best = run.run(progress, checkpoint)
    found = verdict(before, scored(best), plan.seed, FEW_CLASSES)
    about = {
        "started_from": start.sha256,
        "kept_start": not found.better,
        "verdict": asdict(found),
        "plan": asdict(plan),
        **run.facts(),
        "history": [[0.0, found.before], *run.history],
    }
    return (best[-1] if found.better else start), about


def words(about: dict[str, Any]) -> str:
    """Return a sentence that says which model was kept, and why."""
    said = about["verdict"]
    tau = f" at tau {about['tuned_tau']:g}" if "tuned_tau" in about else ""
    figures = (
        f"F of held-out classes {said['before']:.3f} before, {said['after']:.3f} after{tau}; expected gain "
        f"{said['gain']:+.3f}, better with a probability of {said['sure']:.2f}"
    )
    if about["kept_start"]:
        return f"The start is kept unchanged: fine-tuning is not surely better ({figures})."
    return f"The fine-tuned model is taken ({figures})."


def read_collections(
    labelled: Sequence[Path], among: Path | None, start: LinkageModel
) -> list[FinetuneCollection]:
    """Return a collection for each labelled file, or one of all of them within the collection `among`."""
    files = [read_labelled(path, partly=True) for path in labelled]
    if among is None:
        return [
            FinetuneCollection.of(path.stem, *_distinct(unit(file.emb), file.classes()[1]), start)
            for path, file in zip(labelled, files, strict=True)
        ]
    others = read_labelled(among, partly=True)
    emb = [*(unit(file.emb) for file in files), unit(others.emb)]
    labels = [*shared_classes(files), np.full(len(others.labels), UNKNOWN)]
    dims = {each.shape[1] for each in emb}
    if len(dims) > 1:
        raise InputError(
            f"{among} and the labelled files are not of one space: they have {sorted(dims)} components"
        )
    return [FinetuneCollection.of(among.stem, *_distinct(np.concatenate(emb), np.concatenate(labels)), start)]


def _distinct(emb: Float32, labels: Int64) -> tuple[Float32, Int64]:
    """Return one item of each distinct vector: the first labelled one, else the first."""
    order = np.argsort(labels == UNKNOWN, kind="stable")
    rows = np.sort(order[by_occurrence(quantize(emb[order])[0])[0]])
    return emb[rows], labels[rows]


def _require_classes(collection: FinetuneCollection) -> None:
    """Raise InputError where there are too few classes to learn from some and judge on others."""
    _, sizes = np.unique(collection.labels[collection.labels != UNKNOWN], return_counts=True)
    if (count := int((sizes > 1).sum())) < LEAST_CLASSES:
        raise InputError(
            f"{collection.name} has {counted(count, 'labelled class', 'labelled classes')} of two distinct "
            f"items or more: fine-tuning needs {LEAST_CLASSES}, to learn from some and judge on others"
        )
