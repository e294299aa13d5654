"""One training from its first step to its end: checks on what is held out, early stopping, checkpoints.

With `steps` the schedule counts steps, and a training that was interrupted and resumed ends with the same
bits; with `minutes` it goes on where it was, and ends with weights as good.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor

from engine.errors import InputError
from engine.training import checkpoint as checkpoints
from engine.training.datasets import Collection
from engine.training.progress import Progress

M = TypeVar("M")


class Trainer(Protocol[M]):
    """A model in training."""

    @property
    def steps(self) -> int: ...

    def step(self, share: float) -> float:
        """Do one step at `share` of the whole training; return the loss."""
        ...

    def model(self) -> M:
        """Return the average of the weights so far, as the engine runs it."""
        ...

    def tensors(self, model: M) -> dict[str, Tensor]: ...

    def model_of(self, tensors: dict[str, Tensor]) -> M:
        """Return the model that `tensors` was given."""
        ...

    def state(self) -> dict[str, Any]:
        """Return everything that the next steps depend on."""
        ...

    def restore(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class Length:
    """When a training ends, and what it does on the way."""

    minutes: float
    steps: int | None  # instead of minutes: the same seed gives the same weights
    checks: int  # evaluations on what is held out
    checked_from: float  # share of the training at the first one
    patience: int  # checks without a better score after which the training ends
    save_every: float  # seconds between checkpoints, if a file is named for them


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where the state of a training is kept; `resume`: go on from it."""

    path: Path
    resume: bool = False


class Course(Generic[M]):
    """A training: where it is, and the best model so far with its scores."""

    def __init__(
        self,
        trainer: Trainer[M],
        judge: Callable[[M], Mapping[str, float]] | None,
        length: Length,
        mark: str,
    ) -> None:
        """`judge`: BCubed F of what is held out, by name. `mark`: tells the checkpoints of this training."""
        self.trainer, self.judge, self.length, self.mark = trainer, judge, length, mark
        self.share = self.passed = 0.0  # of the training; seconds
        self.best: M | None = None
        self.chosen_on: dict[str, float] = {}
        self.history: list[list[float]] = []  # step and mean score of each check
        self.score = -1.0

    def run(self, progress: Callable[[Progress], None], checkpoint: Checkpoint | None = None) -> M:
        """Train to the end, or until the held-out score has stopped rising; return the best model."""
        if checkpoint and checkpoint.resume:
            self._restore(checkpoints.load(checkpoint.path))
        before, saved = time.monotonic() - self.passed, time.monotonic()
        while self.share < 1.0 and not self._tired():
            loss = self.trainer.step(self.share)
            self.passed = time.monotonic() - before
            self.share = self._share()
            due = self._due()
            found = self._check() if due else {}
            if due or self.trainer.steps % 50 == 0:
                progress(Progress(self.share, self.trainer.steps, loss, found))
            if checkpoint and time.monotonic() - saved >= self.length.save_every:
                checkpoints.save(checkpoint.path, self._state())
                saved = time.monotonic()
        return self.trainer.model() if self.best is None else self.best

    def _share(self) -> float:
        length = self.length
        passed = self.passed / max(60.0 * length.minutes, 1e-3)
        return min(1.0, self.trainer.steps / length.steps if length.steps else passed)

    def _due(self) -> bool:
        first = self.length.checked_from
        early = self.share > first + (1.0 - first) * len(self.history) / self.length.checks
        return self.share >= 1.0 or (self.judge is not None and early)

    def _tired(self) -> bool:
        scored = [score for _, score in self.history]
        return len(scored) > self.length.patience and max(scored[-self.length.patience :]) < self.score

    def _check(self) -> Mapping[str, float]:
        model = self.trainer.model()
        found = self.judge(model) if self.judge else {}
        mean = float(np.mean([*found.values()] or [0.0]))
        self.history.append([float(self.trainer.steps), mean])
        if mean >= self.score:
            self.best, self.chosen_on, self.score = model, dict(found), mean
        return found

    def _state(self) -> dict[str, Any]:
        return {
            "mark": self.mark,
            "trainer": self.trainer.state(),
            "share": self.share,
            "passed": self.passed,
            "best": {} if self.best is None else self.trainer.tensors(self.best),
            "chosen_on": self.chosen_on,
            "history": self.history,
            "score": self.score,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        if state["mark"] != self.mark:
            raise InputError("the checkpoint is of other files, another plan or another start")
        self.share, self.passed = state["share"], state["passed"]
        if state["best"]:
            self.best = self.trainer.model_of(state["best"])
        self.trainer.restore(state["trainer"])  # last: making a network draws random weights
        self.chosen_on, self.history, self.score = state["chosen_on"], state["history"], state["score"]


def judge_of(
    judges: Sequence[Collection], evaluate: Callable[[M, Collection], Mapping[str, float]]
) -> Callable[[M], dict[str, float]] | None:
    """Return what tells the BCubed F of each held-out collection; None without any."""
    if not judges:
        return None
    return lambda model: {judge.name: evaluate(model, judge)["Fb"] for judge in judges}


def fingerprint(collections: Sequence[Collection], *settings: object) -> str:
    """Name what a training depends on. `settings`: of a plan; their representations tell them apart."""
    digest = hashlib.sha256(repr(settings).encode())
    for each in collections:
        digest.update(each.emb.tobytes() + each.labels.tobytes())
    return digest.hexdigest()
