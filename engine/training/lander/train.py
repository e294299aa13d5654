"""Training of `lander` on labelled embeddings of one space: `shoal train --kind lander`.

It begins with a metric (`engine.training.lander.metric`), or with random weights as in the paper
(`engine.training.lander.trainer`). Classes choose the checkpoint, both taus and the number of levels: with
random weights, some that are held out; with a metric all, each through a map that others have taught. They
lie among the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from engine.errors import InputError
from engine.model.lander import LanderModel
from engine.model.trained import SHIPPED
from engine.training.datasets import Collection, SpaceFiles, distinct, need_pairs, read_space
from engine.training.discriminant import refuse_mapped, through
from engine.training.lander.judge import Judge, Setting, best_setting
from engine.training.lander.metric import MetricTrainer
from engine.training.lander.plan import BEGINNINGS, LanderPlan
from engine.training.lander.trainer import Trainer
from engine.training.training_run import Checkpoint, Progress, TrainingRun, fingerprint, finished
from engine.types import Int64


def train(
    files: SpaceFiles,
    out: Path,
    plan: LanderPlan | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    start: LanderModel | None = None,
    checkpoint: Checkpoint | None = None,
) -> LanderModel:
    """Train on labelled files of one space; write weights and card to `out`, and an adapter if asked for.

    The files named for it choose the checkpoint, both taus and levels; without them, classes do. `start`: a
    model to continue from. `checkpoint`: where the state is saved meanwhile, and whether to resume from it.
    Raises InputError where a file cannot be used, or files are of several dimensions.
    """
    plan = _completed(plan or LanderPlan(), start, files.adapter is not None)
    files_read, others = (list(map(distinct, read_space(each))) for each in (files.labelled, files.choose))
    _check(files_read, others, start)
    trainer, judges = begun(files_read, plan, start, others)
    settings: dict[str, Setting] = {}  # by model

    def setting(model: LanderModel) -> Setting:
        if model.sha256 not in settings:
            settings[model.sha256] = best_setting(model, judges)
        return settings[model.sha256]

    def judged(model: LanderModel) -> dict[str, float]:
        return {"held-out classes": setting(model).score}

    mark = fingerprint([*files_read, *others], plan, start=start and start.sha256)
    run: TrainingRun[LanderModel] = TrainingRun(trainer, judged if judges else None, plan.length, mark)
    best = run.run(progress, checkpoint)
    if judges:
        found = setting(best)
        card = replace(best.card, base_tau=found.base_tau, tau=found.tau, max_levels=found.depth)
        best = best.with_card(card)
    about = {
        "trained_on": [Path(path).stem for path in files.labelled],
        "held_out": [Path(path).stem for path in files.choose] or "classes",
        "adapter": trainer.adapter and trainer.adapter.sha256,
        "plan": asdict(plan),
        "started_from": start and start.sha256,
        **run.facts(),
    }
    if trainer.adapter and files.adapter:
        trainer.adapter.save(files.adapter)
    return finished(best, about, out, checkpoint)


def _completed(plan: LanderPlan, start: LanderModel | None, is_mapped: bool) -> LanderPlan:
    """Return the plan with what the other arguments imply. Raises InputError: it cannot be followed."""
    plan = replace(plan, adapter=is_mapped)
    if start:
        card = start.card
        plan = replace(plan, variant=card.variant, hidden=card.hidden, heads=card.heads, begin="random")
    if plan.begin not in BEGINNINGS:
        raise InputError(f"a lander begins with one of {', '.join(BEGINNINGS)}, not {plan.begin!r}")
    if is_mapped and plan.begin != "metric":
        raise InputError("only a lander that begins with a metric learns an adapter")
    return plan


def begun(
    sources: Sequence[Collection],
    plan: LanderPlan,
    start: LanderModel | None,
    others: Sequence[Collection],
) -> tuple[MetricTrainer | Trainer, list[Judge]]:
    """Return the trainer and its judges: the `others`, or classes of the sources. Raises InputError."""
    trainer: MetricTrainer | Trainer
    counted = [(other, np.unique(other.labels)) for other in others]
    if plan.begin == "metric":
        trainer = MetricTrainer(sources, plan)
        if not others:
            return trainer, trainer.judges()
    else:
        if not others:
            held = _held_out(sources, plan)
            parts = [_without(source, held) for source in sources]
            able = [part for part in parts if len(np.unique(part.labels)) > 1]
            counted = [(source, np.intersect1d(source.labels, held)) for source in sources if able]
            sources = able or sources
        trainer = Trainer(sources, plan, start)
    k = trainer.model().k  # it refuses a plan that makes no model, before the work
    return trainer, [
        Judge.of(replace(each, emb=through(trainer.adapter, each.emb)), classes, k)
        for each, classes in counted
        if len(classes)
    ]


def read_model(path: Path | None) -> LanderModel | None:
    """Return the lander at `path`, if one is named. Raises InputError if training cannot continue from it."""
    if path is None:
        return None
    if path == SHIPPED and not path.exists():
        raise InputError(f"a lander continues from a lander: {SHIPPED} is not one, leave out --kind lander")
    model = LanderModel.load(path)
    refuse_mapped(path, model.card.about)
    return model


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
    need_pairs(sources)


def _held_out(sources: Sequence[Collection], plan: LanderPlan) -> Int64:
    """Choose the classes that are held out; none where there are fewer than eight."""
    classes = np.unique(np.concatenate([source.labels for source in sources]))
    count = int(len(classes) * plan.held_out) if len(classes) >= 8 else 0
    return np.random.default_rng(plan.seed).permutation(classes)[:count]


def _without(collection: Collection, classes: Int64) -> Collection:
    rows = np.isin(collection.labels, classes, invert=True)
    return Collection(collection.name, collection.emb[rows], collection.labels[rows])
