"""Cross-validation over labelled classes: a model of each fold, trained without its labels, and one of all.

All take the same steps. The folds say after how many the model of all classes is best, and whether it is
better than the start at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.evaluation import scores
from engine.finetuning.ground import UNKNOWN, Ground
from engine.finetuning.tuner import TAUS, Pitch, Tuner
from engine.model.linkage import LinkageModel
from engine.types import Float64, Int64

import torch  # isort: skip
from torch import Tensor  # isort: skip

Models = tuple[LinkageModel, ...]  # of each fold; the last one is of all classes
DRAWS = 1_000  # of classes, with other weights
SURE = 0.8  # probability of a gain that a model needs


@dataclass(frozen=True, slots=True)
class Fold:
    """A ground, and the labels of the classes that the fold's model does not know."""

    ground: Ground
    unseen: Int64


@dataclass(frozen=True, slots=True)
class Verdict:
    """What held-out classes say of a tuned model: BCubed F of the start and its own, the chance of a gain."""

    before: float
    after: float
    sure: float

    @property
    def better(self) -> bool:
        """Whether the tuned model is to be taken."""
        return self.sure >= SURE and self.after > self.before


def folds_of(ground: Ground, count: int, seed: int) -> list[Fold]:
    """Share out the labelled classes of two items or more at random."""
    classes, sizes = np.unique(ground.labels[ground.labels != UNKNOWN], return_counts=True)
    shuffled = np.random.default_rng(seed).permutation(classes[sizes > 1])
    count = min(count, len(shuffled))
    return [Fold(ground, shuffled[at::count]) for at in range(count)]


class Folds:
    """A tuner of each fold, and one of all classes: see `engine.training.course.Trainer`."""

    def __init__(
        self, grounds: Sequence[Ground], folds: Sequence[Fold], start: LinkageModel, pitch: Pitch, seed: int
    ) -> None:
        self.rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        self.start = start
        each = [_hiding(grounds, fold) for fold in folds] + [list(grounds)]
        self.tuners = [Tuner(own, start, pitch, self.rng) for own in each]
        for _ in range(pitch.first):
            for at, ground in enumerate(grounds):
                levels = ground.levels(start, float(self.rng.uniform(*TAUS)))
                for tuner in self.tuners:
                    tuner.take(at, levels)

    @property
    def steps(self) -> int:
        """Steps so far, of each model."""
        return self.tuners[-1].descent.steps

    def step(self, share: float) -> float:
        """Do one step of each model; return the loss of the one of all classes."""
        return [tuner.step(share) for tuner in self.tuners][-1]

    def model(self) -> Models:
        """Return the models so far."""
        return tuple(tuner.model() for tuner in self.tuners)

    def tensors(self, model: Models) -> dict[str, Tensor]:
        """Return weights and ranges of all models."""
        return {f"{at} {name}": each for at, one in enumerate(model) for name, each in one.tensors().items()}

    def model_of(self, tensors: dict[str, Tensor]) -> Models:
        """Return the models of these weights and ranges."""
        own: list[dict[str, Tensor]] = [{} for _ in self.tuners]
        for name, value in tensors.items():
            at, rest = name.split(" ")
            own[int(at)][rest] = value
        return tuple(LinkageModel.of(each, self.start.card) for each in own)

    def state(self) -> dict[str, Any]:
        """Return everything that the next steps depend on."""
        return {
            "rng": self.rng.bit_generator.state,
            "torch": torch.get_rng_state(),
            "tuners": [tuner.state() for tuner in self.tuners],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        for tuner, each in zip(self.tuners, state["tuners"], strict=True):
            tuner.restore(each)
        self.rng.bit_generator.state = state["rng"]
        torch.set_rng_state(state["torch"])


def _hiding(grounds: Sequence[Ground], fold: Fold) -> list[Ground]:
    return [each.hiding(fold.unseen) if each is fold.ground else each for each in grounds]


def class_scores(clusters: Int64, fold: Fold) -> Float64:
    """Items, precision and recall of the unseen classes among all items of the ground, (classes, 3)."""
    found = scores.by_class(fold.ground.labels, clusters)
    rows = {each.label: (each.items, each.precision, each.recall) for each in found}
    return np.array([rows[label] for label in sorted(fold.unseen.tolist())], np.float64)


def f_of(classes: Float64, weights: Float64 | None = None) -> Float64:
    """BCubed F of classes (m, 3), which count as often as `weights` (draws, m) say; (draws,)."""
    counts = classes[:, 0] * (np.ones((1, len(classes))) if weights is None else weights)
    p, r = (counts @ classes[:, 1:] / counts.sum(axis=1, keepdims=True)).T
    return np.asarray(2.0 * p * r / (p + r))


def verdict(before: Float64, after: Float64, seed: int) -> Verdict:
    """Compare the scores of the same classes (m, 3): classes are drawn again with other weights."""
    weights = np.random.default_rng(seed).exponential(size=(DRAWS, len(before)))
    gains = f_of(after, weights) - f_of(before, weights)
    return Verdict(float(f_of(before)[0]), float(f_of(after)[0]), float((gains > 0.0).mean()))
