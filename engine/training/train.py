"""Meta-training of the universal model: `shoal train`.

It trains on the levels of many collections: first on those that a nearly perfect oracle builds, then on
roll-outs of the model itself (`engine.training.rollout`). A student also learns its teacher's probabilities.
The kept weights are an exponential moving average (EMA), taken at the check with the best held-out score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from engine.errors import InputError
from engine.evaluation import scores
from engine.evaluation.bulk import hierarchy, partitions
from engine.model.linkage import LinkageModel
from engine.model.trained import SHIPPED, Trained
from engine.training.datasets import Collection, need_pairs, read_labelled
from engine.training.discriminant import refuse_mapped
from engine.training.draws import embeddings_of
from engine.training.plan import InitialModels, Plan
from engine.training.terms import Terms, with_terms
from engine.training.trainer import Trainer
from engine.training.training_run import (
    Checkpoint,
    Progress,
    TrainingRun,
    fingerprint,
    finished,
    held_out_scores,
)


def train(
    files: Sequence[Path],
    out: Path,
    plan: Plan | None = None,
    held_out: Sequence[Path] = (),
    progress: Callable[[Progress], None] = lambda _: None,
    initial: InitialModels | None = None,
    checkpoint: Checkpoint | None = None,
) -> LinkageModel:
    """Train on labelled `files` and generated mixtures; write weights and card to `out`.

    `engine.training.terms` are added to the upper network.

    `held_out`: files that select the weights and are not trained on; without them the last average is
    kept. `checkpoint`: where the state is saved meanwhile, and whether to resume from it. The teacher of
    `initial` is distilled (Hinton et al., arXiv 1503.02531). Raises InputError where a file cannot be used.
    """
    initial = initial or InitialModels()
    plan = (plan or Plan()).after(initial)
    if not files:
        raise InputError("name at least one labelled file to train on")
    sources = [embeddings_of(Path(path), plan.seed) for path in files]
    if all(len(np.unique(each[0].labels)) < 2 for each in sources):
        names = ", ".join(each[0].name for each in sources)
        raise InputError(f"{names}: one class only, there is nothing to tell apart")
    need_pairs([each[0] for each in sources])
    judges = [read_labelled(Path(path)) for path in held_out]
    trainer = Trainer(sources, plan, initial)
    mark = fingerprint([each[0] for each in sources] + judges, plan, start=initial.sha256)
    judge = held_out_scores(judges, _evaluate_with_terms)
    run = TrainingRun(trainer, judge, plan.length, mark)
    best = with_terms(run.run(progress, checkpoint), Terms())
    about = {
        "trained_on": [Path(path).stem for path in files] + ["generated mixtures"],
        "plan": asdict(plan),
        "given": initial.sha256,
        **run.facts(),
    }
    return finished(best, about, out, checkpoint)


def _evaluate_with_terms(model: LinkageModel, collection: Collection) -> dict[str, float]:
    return evaluate(with_terms(model, Terms()), collection)


def read_model(path: Path | None) -> LinkageModel | None:
    """Return the model at `path`, or the one that ships under the name `universal`; None for None.

    Raises InputError where it cannot be read.
    """
    if path is None:
        return None
    model = LinkageModel.load() if path == SHIPPED and not path.exists() else LinkageModel.load(path)
    refuse_mapped(path, model.card.about)
    return model


def evaluate(
    model: Trained, collection: Collection, tau: float | None = None, max_levels: int | None = None
) -> dict[str, float]:
    """Cluster a collection in bulk; return Fb, Fp, NMI, ARI, the cluster count, and Fb after each level."""
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
