"""Cross-validation over labelled classes: a model for each fold, trained without its labels, and one on all.

All models take the same steps. The folds decide after how many steps the model of all classes is best, and
whether it is better than the start at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from engine.evaluation.scores import class_scores, f_of_classes
from engine.finetuning.collection import FinetuneCollection
from engine.finetuning.tuner import Tuner, TunerPlan, drawn_taus
from engine.model.linkage import LinkageModel
from engine.training.datasets import UNKNOWN
from engine.types import Float64, Int64

import torch  # isort: skip
from torch import Tensor  # isort: skip

Models = tuple[LinkageModel, ...]  # one for each fold, then that of all classes
DRAWS = 1_000  # of the Bayesian bootstrap over classes
SURE = 0.8  # least probability of a gain, where no prior counts
SURE_WITH_PRIOR = 0.7  # where a prior counts; FEW_CLASSES alone gives .73
LEAST_GAIN = 0.005  # of BCubed F: a smaller one is not worth another model
LEAST_WITH_PRIOR = 0.0025  # of a cautious estimate; labels without meaning give 0.0015 and less


@dataclass(frozen=True, slots=True)
class Fold:
    """A collection, and the labels of the classes that the fold's model is not trained on."""

    collection: FinetuneCollection
    unseen: Int64

    def scores(self, clusters: Int64) -> Float64:
        """Return the scores of these classes as clustered (n,): see `class_scores`."""
        return class_scores(self.collection.labels, clusters, self.unseen)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A fine-tuned model against its start, on held-out classes."""

    before: float  # BCubed F of the start
    after: float  # BCubed F of the fine-tuned model
    gain: float  # to be expected
    sure: float  # probability of a gain
    wanted: float  # least such probability
    least: float  # least gain

    @property
    def better(self) -> bool:
        """Whether the fine-tuned model replaces the start."""
        return self.sure >= self.wanted and self.gain >= self.least


@dataclass(frozen=True, slots=True)
class Prior:
    """The prior of a gain in BCubed F, before held-out classes are evaluated."""

    mean: float
    deviation: float


# Ten labelled classes of dialects, scaffolds, covidq, shape_outlines and cora_er, 2 to 5 draws each.
FEW_CLASSES = Prior(0.01, 0.016)


def folds_of(collection: FinetuneCollection, count: int, seed: int) -> list[Fold]:
    """Divide the labelled classes of two items or more into folds at random."""
    classes, sizes = np.unique(collection.labels[collection.labels != UNKNOWN], return_counts=True)
    shuffled = np.random.default_rng(seed).permutation(classes[sizes > 1])
    count = min(count, len(shuffled))
    return [Fold(collection, shuffled[at::count]) for at in range(count)]


class Folds:
    """A tuner for each fold, and one for all classes; see `engine.training.training_run.Trainer`."""

    def __init__(
        self,
        collections: Sequence[FinetuneCollection],
        folds: Sequence[Fold],
        start: LinkageModel,
        plan: TunerPlan,
        seed: int,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        self.start = start
        each = [_hiding(collections, fold) for fold in folds] + [list(collections)]
        self.tuners = [Tuner(own, start, plan, self.rng) for own in each]
        for at, collection in enumerate(collections):
            levels = [collection.base_level()]
            for _ in range(plan.first):
                levels += collection.levels(start, *drawn_taus(start, self.rng))
            for tuner in self.tuners:
                tuner.take(at, levels)

    @property
    def steps(self) -> int:
        """Steps of each model so far."""
        return self.tuners[-1].steps

    def step(self, share: float) -> float:
        """Do one step of each model; return the loss of that of all classes."""
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
        """Return the state of the training, for a checkpoint."""
        return {
            "rng": self.rng.bit_generator.state,
            "torch": torch.get_rng_state(),
            "tuners": [tuner.state() for tuner in self.tuners],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        for tuner, each in zip(self.tuners, state["tuners"], strict=True):
            tuner.restore(each)
        self.rng.bit_generator.state = state["rng"]
        torch.set_rng_state(state["torch"])


def _hiding(collections: Sequence[FinetuneCollection], fold: Fold) -> list[FinetuneCollection]:
    return [each.hiding(fold.unseen) if each is fold.collection else each for each in collections]


def verdict(before: Float64, after: Float64, seed: int, prior: Prior | None = None) -> Verdict:
    """Compare scores of the same classes (m, 3) by a Bayesian bootstrap over classes (Rubin, 1981).

    Few classes estimate the gain poorly: with a `prior` it is the normal posterior of both.
    """
    weights = np.random.default_rng(seed).exponential(size=(DRAWS, len(before)))
    gains = f_of_classes(after, weights) - f_of_classes(before, weights)
    f_before, f_after = float(f_of_classes(before)[0]), float(f_of_classes(after)[0])
    if prior is None:
        return Verdict(f_before, f_after, f_after - f_before, float((gains > 0.0).mean()), SURE, LEAST_GAIN)
    variance, known = float(gains.var()), prior.deviation**2
    weight = known / (known + variance)
    gain = prior.mean + weight * (float(gains.mean()) - prior.mean)
    deviation = (weight * variance) ** 0.5
    sure = float(norm.cdf(gain / deviation)) if deviation else float(gain > 0.0)
    return Verdict(f_before, f_after, gain, sure, SURE_WITH_PRIOR, LEAST_WITH_PRIOR)
