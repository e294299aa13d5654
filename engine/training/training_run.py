"""Runs a training: evaluation on held-out data, early stopping, checkpoints.

With `steps` the schedule counts steps, and a resumed training ends with the same bits as one that was not
interrupted. With `minutes` it resumes where it was, but its weights differ.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from engine.errors import InputError
from engine.training import checkpoint as checkpoints
from engine.training.datasets import Collection


class Writable(Protocol):
    """A model with weights and a card."""

    card: Any

    def with_card(self, card: Any) -> Any: ...

    def save(self, path: Path) -> None: ...


M = TypeVar("M")
W = TypeVar("W", bound=Writable)


class Trainer(Protocol[M]):
    """A model in training, which `TrainingRun` drives."""

    @property
    def steps(self) -> int: ...

    def step(self, share: float) -> float:
        """Do one optimizer step at `share` (0 to 1) of the whole training; return the loss."""
        ...

    def model(self) -> M:
        """Return the model with the averaged weights, as the engine runs it."""
        ...

    def tensors(self, model: M) -> dict[str, Tensor]: ...

    def model_of(self, tensors: dict[str, Tensor]) -> M:
        """Return the model that `tensors` was given."""
        ...

    def state(self) -> dict[str, Any]:
        """Return everything that the next steps depend on, as `engine.training.checkpoint` takes it."""
        ...

    def restore(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class Schedule:
    """Duration of a training, its evaluations and its checkpoints."""

    minutes: float
    steps: int | None  # instead of minutes; the same seed then gives the same weights
    checks: int  # evaluations on held-out data
    checked_from: float  # share of the training before the first one
    patience: int  # evaluations without improvement before early stopping
    save_every: float  # seconds between checkpoints

    @classmethod
    def of_tuning(cls, minutes: float | None, steps: int | None, checks: int, save_every: float) -> Schedule:
        """Return that of a fine-tuning, by `steps` unless `minutes` are given: all checks are made."""
        return cls(minutes or 0.0, None if minutes else steps, checks, 0.25, checks, save_every)


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a training, passed to its callback about every 50 steps and at each check."""

    share: float  # of the whole training, 0 to 1
    seconds: float  # so far, those before an interruption included
    step: int
    loss: float
    held_out: Mapping[str, float]  # BCubed F; empty: not judged at this step


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The file of a training's state; `resume`: continue from it."""

    path: Path
    resume: bool = False


class TrainingRun(Generic[M]):
    """A training in progress, and the best model so far with its scores."""

    def __init__(
        self,
        trainer: Trainer[M],
        judge: Callable[[M], Mapping[str, float]] | None,
        length: Schedule,
        mark: Mapping[str, str],
    ) -> None:
        """`judge` returns the held-out BCubed F by name; `mark` identifies the training in checkpoints."""
        self.trainer, self.judge, self.length, self.mark = trainer, judge, length, mark
        self.share = self.passed = 0.0  # of the training; seconds
        self.best: M | None = None
        self.chosen_on: dict[str, float] = {}
        self.history: list[list[float]] = []  # step and mean score of each check
        self.score = -1.0

    def run(self, progress: Callable[[Progress], None], checkpoint: Checkpoint | None = None) -> M:
        """Train to the end, or until early stopping; return the model with the best held-out score.

        Raises InputError where the checkpoint is of another training.
        """
        if checkpoint and checkpoint.resume:
            self._restore(checkpoints.load(checkpoint.path))
        before, saved = time.monotonic() - self.passed, -math.inf  # what is interrupted early resumes too
        while self.share < 1.0 and not self._has_converged():
            loss = self.trainer.step(self.share)
            self.passed = time.monotonic() - before
            self.share = self._share()
            due = self._check_is_due()
            found = self._check() if due else {}
            if due or self.trainer.steps % 50 == 0:
                progress(Progress(self.share, self.passed, self.trainer.steps, loss, found))
            if checkpoint and time.monotonic() - saved >= self.length.save_every:
                checkpoints.save(checkpoint.path, self._state())
                saved = time.monotonic()
        return self.trainer.model() if self.best is None else self.best

    def facts(self) -> dict[str, Any]:
        """Return what every model's card says of its training."""
        return {
            "checkpoint_chosen_on": self.chosen_on,
            "history": self.history,
            "steps": self.trainer.steps,
            "torch": torch.__version__,
        }

    def _share(self) -> float:
        length = self.length
        passed = self.passed / max(60.0 * length.minutes, 1e-3)
        return min(1.0, self.trainer.steps / length.steps if length.steps else passed)

    def _check_is_due(self) -> bool:
        first = self.length.checked_from
        early = self.share > first + (1.0 - first) * len(self.history) / self.length.checks
        return self.share >= 1.0 or (self.judge is not None and early)

    def _has_converged(self) -> bool:
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
            "mark": dict(self.mark),
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
            raise InputError(
                f"the checkpoint is of {_differing(state['mark'], self.mark)}; repeat the original options, "
                "or delete the checkpoint to start over"
            )
        self.share, self.passed = state["share"], state["passed"]
        if state["best"]:
            self.best = self.trainer.model_of(state["best"])
        self.trainer.restore(state["trainer"])  # last: making a network draws random weights
        self.chosen_on, self.history, self.score = state["chosen_on"], state["history"], state["score"]


def held_out_scores(
    judges: Sequence[Collection], evaluate: Callable[[M, Collection], Mapping[str, float]]
) -> Callable[[M], dict[str, float]] | None:
    """Return a function that scores a model by BCubed F on each held-out collection; None without any."""
    if not judges:
        return None
    return lambda model: {judge.name: evaluate(model, judge)["Fb"] for judge in judges}


def finished(model: W, about: Mapping[str, Any], out: Path, checkpoint: Checkpoint | None) -> W:
    """Write a trained model with `about` on its card, and remove the checkpoint; return that model."""
    written: W = model.with_card(replace(model.card, about=about))
    written.save(Path(out))
    if checkpoint:
        checkpoint.path.unlink(missing_ok=True)
    return written


def fingerprint(collections: Sequence[Collection], plan: Any, **initial: object) -> dict[str, str]:
    """Return what a training depends on: a digest of its data, its plan (a record) and initial models."""
    digest = hashlib.sha256()
    for each in collections:
        digest.update(each.emb.tobytes() + each.labels.tobytes())
    settings = {f"plan {each.name}": repr(getattr(plan, each.name)) for each in fields(plan)}
    return {"files": digest.hexdigest(), **settings, **{name: repr(each) for name, each in initial.items()}}


def _differing(found: Any, own: Mapping[str, str]) -> str:
    """Name what the training of a checkpoint differs in; an earlier release's does not record it."""
    if not isinstance(found, dict):
        return "other files, another plan or another start, or it was left by an earlier release"
    if found.keys() != own.keys():
        return "another kind of training, or was left by an earlier release"
    names = [name for name in own if found.get(name) != own[name]]
    settings = [name.removeprefix("plan ") for name in names if name.startswith("plan ")]
    told = [f"{each} {found.get(f'plan {each}')}, not {own[f'plan {each}']}" for each in settings]
    others = [name for name in names if not name.startswith("plan ")]
    words = ["other files" if name == "files" else f"another {name}" for name in others]
    return " and ".join([*words, *([f"another plan ({'; '.join(told)})"] if told else [])])
