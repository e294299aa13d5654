"""Compares embedding spaces on held-out classes by consistency, recall and the engine's clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.config import Settings
from engine.errors import InputError, counted
from engine.evaluation.evaluate import Labelled, in_bulk
from engine.learning.labelled import LabelledSet
from engine.learning.opis import measure
from engine.types import Int64

RECALL_LOSS = 0.002  # tolerated loss of recall at 1, and of Fb


@dataclass(frozen=True, slots=True)
class Judgement:
    """Figures of a labelled set's embedding space, and of the engine's clusters in it."""

    opis: float
    opis_worst: float
    recall_at_1: float
    Fp: float
    Fb: float
    NMI: float


def judge(labelled: LabelledSet, settings: Settings) -> Judgement:
    """Measure a set, and cluster it with the engine of `settings`, without its adapter."""
    space = measure(labelled)
    keys = [str(row) for row in range(len(labelled.emb))]
    plain = settings.with_model(adapter=None)
    clusters = in_bulk(
        plain, Labelled(keys, labelled.emb, labelled.classes, np.zeros(len(keys)), timed=False)
    )
    return Judgement(space.opis, space.opis_worst, space.recall_at_1, clusters.Fp, clusters.Fb, clusters.NMI)


def drawbacks(before: Judgement, after: Judgement) -> list[str]:
    """Return in what the space became worse, as phrases; none: it can be recommended."""
    found = []
    if after.opis > before.opis:
        found.append(f"OPIS rises from {before.opis:.2e} to {after.opis:.2e}")
    if after.recall_at_1 < before.recall_at_1 - RECALL_LOSS:
        found.append(f"recall at 1 falls from {before.recall_at_1:.4f} to {after.recall_at_1:.4f}")
    if after.Fb < before.Fb - RECALL_LOSS:
        found.append(f"Fb falls from {before.Fb:.4f} to {after.Fb:.4f}")
    return found


def best(before: Judgement, found: Sequence[Judgement]) -> int:
    """Return the index of the lowest OPIS without a drawback; of the highest Fb where all have drawbacks."""
    keys = [(True, -each.opis) if not drawbacks(before, each) else (False, each.Fb) for each in found]
    return max(range(len(found)), key=keys.__getitem__)


def split(labelled: LabelledSet, share: float, seed: int) -> tuple[LabelledSet, LabelledSet, LabelledSet]:
    """Split by class into a training, a validation and a test set; the last two hold `share` of the classes.

    Raises InputError where there are too few classes of two items or more.
    """
    several = np.flatnonzero(labelled.sizes > 1)
    held = round(share * len(several))
    if held < 4 or len(several) - held < 2:
        raise InputError(
            f"{counted(len(several), 'class', 'classes')} of two items or more: too few to hold out "
            f"{share:.0%} of them, for an adapter is chosen on two at least, and reported on two others."
        )
    drawn = np.random.default_rng(seed).permutation(several)
    choosing, reporting = drawn[: held // 2], drawn[held // 2 : held]
    training = np.setdiff1d(np.arange(len(labelled.names)), drawn[:held])
    return part(labelled, training), part(labelled, choosing), part(labelled, reporting)


def part(labelled: LabelledSet, classes: Int64) -> LabelledSet:
    """Return the items of some classes."""
    rows = np.isin(labelled.classes, classes)
    found, numbers = np.unique(labelled.classes[rows], return_inverse=True)
    return LabelledSet(labelled.emb[rows], numbers.reshape(-1), tuple(labelled.names[c] for c in found))


def joined(sets: Sequence[LabelledSet], sources: Sequence[str]) -> LabelledSet:
    """Concatenate sets; equal names in two files are two classes. Raises InputError: dimensions differ."""
    first, *others = sets
    for other, source in zip(others, sources[1:], strict=True):
        if other.emb.shape[1] != first.emb.shape[1]:
            raise InputError(
                f"{source} has embeddings of {other.emb.shape[1]} components, {sources[0]} of "
                f"{first.emb.shape[1]}: an adapter is for one space."
            )
    starts = np.cumsum([0, *(len(each.names) for each in sets)])
    return LabelledSet(
        np.concatenate([each.emb for each in sets]),
        np.concatenate([each.classes + start for each, start in zip(sets, starts, strict=False)]),
        tuple(name for each in sets for name in each.names),
    )
