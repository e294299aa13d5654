"""Hyperparameters of a training of `lander`."""

from __future__ import annotations

from dataclasses import dataclass

from engine.training.training_run import Schedule

BEGINNINGS = ("metric", "random")
METRIC_STEPS, MINUTES = 4_000, 20.0  # where the plan has neither; minutes of `random`


@dataclass(frozen=True, slots=True)
class LanderPlan:
    """How to train."""

    minutes: float | None = None
    steps: int | None = None  # instead of minutes: the same seed gives the same weights
    begin: str = "metric"  # or `random`
    adapter: bool = False  # the embeddings are mapped, which `metric` can do
    seed: int = 0
    variant: str = "mean"
    hidden: int = 512
    heads: int = 1
    rate: float = 2e-3  # Adam's, cosine to 1/30 of it
    decay: float = 0.3  # of the weights
    dropout: float = 0.4
    focal: float = 0.0  # exponent of the focal loss (Lin et al., arXiv 1708.02002); 0: cross-entropy
    balance: bool = False  # both classes of edges weigh the same
    others: float = 0.25  # weight of edges that do not lead to higher density; the paper's is 0
    edges: int = 10_000  # a step's, or one graph's where that has more
    oracle_share: float = 0.1  # of the training, on levels from true labels
    pool: int = 80  # hierarchies kept for replay
    fresh_every: int = 15  # steps between new hierarchies
    most_items: int = 12_000  # of training graphs, in whole classes
    average: float = 0.995  # EMA's decay
    held_out: float = 0.2  # of the classes, for choosing, where no file is named for it
    checks: int | None = None  # evaluations on what is held out; None: 4 of a metric, 8 of `random`
    patience: int = 5  # checks without a better score after which the training ends
    save_every: float = 60.0  # seconds between checkpoints, if a file is named for them

    @property
    def length(self) -> Schedule:
        """When the training ends."""
        steps, minutes = self.steps, MINUTES if self.minutes is None else self.minutes
        checks, first = 8, 0.2
        if self.begin == "metric":
            checks, first = 4, 0.3
            steps = METRIC_STEPS if steps is None and self.minutes is None else steps
        return Schedule(minutes, steps, self.checks or checks, first, self.patience, self.save_every)
