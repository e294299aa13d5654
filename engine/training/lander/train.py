"""Training of `lander` on labelled embeddings of one space: `shoal train --kind lander`.

It begins with a metric (`engine.training.lander.metric`), or with random weights as in the paper
(`engine.training.lander.trainer`). Classes choose the checkpoint, both taus and the number of levels: with
random weights, some that are held out; with a metric all, each through a map that others have taught. They
lie among the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.evaluation import scores
from engine.evaluation.bulk import hierarchy, partitions, recluster, recluster_upper_levels
from engine.model.lander import LanderCard, LanderModel
from engine.system.determinism import one_thread
from engine.training.datasets import Collection, distinct, read_labelled
from engine.training.lander.metric import Judge, MetricTrainer
from engine.training.lander.plan import BEGINNINGS, LanderPlan
from engine.training.lander.trainer import Trainer
from engine.training.training_run import Checkpoint, Progress, TrainingRun, fingerprint
from engine.types import Epoch, Float64, Int64

BASE_TAUS, TAUS = (0.3, 0.4, 0.5, 0.6, 0.7), (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # tried
DEPTH = 3  # levels, at most
EPOCH = Epoch(0.0, 1.0, 0)  # a lander reads none


@dataclass(frozen=True, slots=True)
class Setting:
    """What a card says of clustering, and the mean BCubed F of the judges with it."""

    base_tau: float
    tau: float
    depth: int
    score: float


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
        plan = replace(plan, begin="random")  # not at a metric: where the start is
    if plan.begin not in BEGINNINGS:
        raise InputError(f"a lander begins with one of {', '.join(BEGINNINGS)}, not {plan.begin!r}")
    files_read = [distinct(read_labelled(Path(path))) for path in files]
    others = [distinct(read_labelled(Path(path))) for path in held_out]
    _check(files_read, others, start)
    judges = [Judge(other, np.unique(other.labels)) for other in others]
    trainer: Any
    if plan.begin == "metric":
        trainer = MetricTrainer(files_read, plan)
        judges = judges or trainer.judges()
    else:
        sources = files_read
        if not judges:
            judges = [Judge(source, _held_out(source, plan)) for source in files_read]
            sources = [_without(each.collection, each.classes) for each in judges]
            judges = [each for each in judges if len(each.classes)]
        trainer = Trainer(sources, plan, start)
    trainer.model()  # refuses a plan that makes no model, before the work

    def judged(model: LanderModel) -> dict[str, float]:
        return {"held-out classes": best_setting(model, judges).score}

    mark = fingerprint([*files_read, *others], plan, start and start.sha256)
    run: TrainingRun[LanderModel] = TrainingRun(trainer, judged if judges else None, plan.length, mark)
    best = run.run(progress, checkpoint)
    card = _tuned(best, judges)
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


def evaluate(model: LanderModel, judge: Collection) -> dict[str, float]:
    """Cluster a collection in bulk; BCubed F after the last level and each."""
    built = hierarchy(judge.emb, model, model.tau, model.max_levels, base_tau=model.base_tau)
    by_level = [scores.bcubed_f(judge.labels, part) for part in partitions(built)]
    return {"Fb": by_level[-1]} | {f"Fb_{at}": value for at, value in enumerate(by_level)}


@one_thread()
def best_setting(model: LanderModel, judges: Sequence[Judge]) -> Setting:
    """Return the taus and the number of levels that do best on the judges' classes.

    A setting counts with those beside it: few classes make one peak too high.
    """
    f = np.mean([_scores(model, judge) for judge in judges], axis=0)  # (base taus, taus, depths)
    padded = np.pad(f, ((1, 1), (1, 1), (0, 0)), constant_values=np.nan)
    around = [padded[at : at + f.shape[0], to : to + f.shape[1]] for at in range(3) for to in range(3)]
    smooth = np.round(np.nanmean(around, axis=0), 4)
    at, to, depth = np.unravel_index(int(np.argmax(smooth)), f.shape)
    return Setting(BASE_TAUS[at], TAUS[to], int(depth) + 1, float(f[at, to, depth]))


def _scores(model: LanderModel, judge: Judge) -> Float64:
    """BCubed F of the judge's classes at all settings, (base taus, taus, depths)."""
    labels = judge.collection.labels
    counted = labels[np.isin(labels, judge.classes)]
    found = np.zeros((len(BASE_TAUS), len(TAUS), DEPTH))
    model = model.with_weights(judge.first_layer)
    built = hierarchy(judge.collection.emb, model, TAUS[0], 1, EPOCH, base_tau=BASE_TAUS[0])
    for at, base_tau in enumerate(BASE_TAUS):
        built = recluster(built, model, TAUS[0], base_tau, 1, EPOCH)
        for to, tau in enumerate(TAUS):
            parts = partitions(recluster_upper_levels(built, model, tau, DEPTH, EPOCH))
            for depth in range(DEPTH):
                part = parts[min(depth, len(parts) - 1)]
                found[at, to, depth] = scores.bcubed_f_of(labels, part, counted)
    return found


def _tuned(model: LanderModel, judges: Sequence[Judge]) -> LanderCard:
    """Return the card with what does best on what is held out."""
    if not judges:
        return model.card
    best = best_setting(model, judges)
    return replace(model.card, base_tau=best.base_tau, tau=best.tau, max_levels=best.depth)


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


def _without(collection: Collection, classes: Int64) -> Collection:
    rows = np.isin(collection.labels, classes, invert=True)
    return Collection(collection.name, collection.emb[rows], collection.labels[rows])
