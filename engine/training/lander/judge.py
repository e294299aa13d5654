"""Classes that choose the checkpoint, both taus and the number of levels of a lander."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from engine.evaluation import scores
from engine.evaluation.bulk import (
    BulkClustering,
    partitions,
    recluster,
    recluster_base,
    recluster_upper_levels,
)
from engine.model.lander import LanderModel
from engine.system.determinism import one_thread
from engine.training.datasets import Collection
from engine.training.lander.graphs import EPOCH, true_links
from engine.types import Float64, Int64

BASE_TAUS, TAUS = (0.3, 0.4, 0.5, 0.6, 0.7), (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # tried
DEPTH = 3  # levels, at most


@dataclass(frozen=True, slots=True)
class Judge:
    """A collection with its neighbour lists, and the classes in it that count: whole ones among others."""

    labels: Int64  # (n,)
    classes: Int64
    built: BulkClustering  # by any model: only its lists are used
    first_layer: Mapping[str, Tensor] = field(default_factory=dict)  # weights by which it is seen instead

    @classmethod
    def of(cls, collection: Collection, classes: Int64, k: int) -> Judge:
        """Find the lists of the collection."""
        return cls(collection.labels, classes, true_links(collection.emb, collection.labels, k, 1))

    def scores(self, model: LanderModel) -> Float64:
        """Return BCubed F of the classes at all settings, (base taus, taus, depths)."""
        counted = self.labels[np.isin(self.labels, self.classes)]
        found = np.zeros((len(BASE_TAUS), len(TAUS), DEPTH))
        model = model.with_weights(self.first_layer)
        built = recluster(self.built, model, TAUS[0], BASE_TAUS[0], 1, EPOCH)
        for at, base_tau in enumerate(BASE_TAUS):
            built = recluster_base(built, base_tau)
            for to, tau in enumerate(TAUS):
                parts = partitions(recluster_upper_levels(built, model, tau, DEPTH, EPOCH))
                for depth in range(DEPTH):
                    part = parts[min(depth, len(parts) - 1)]
                    found[at, to, depth] = scores.bcubed_f_of(self.labels, part, counted)
        return found


@dataclass(frozen=True, slots=True)
class Setting:
    """What a card says of clustering, and the mean BCubed F of the judges with it."""

    base_tau: float
    tau: float
    depth: int
    score: float


@one_thread()
def best_setting(model: LanderModel, judges: Sequence[Judge]) -> Setting:
    """Return the taus and the number of levels that do best on the judges' classes.

    A setting is averaged with its neighbours: few classes make one peak too high.
    """
    f = np.mean([judge.scores(model) for judge in judges], axis=0)  # (base taus, taus, depths)
    padded = np.pad(f, ((1, 1), (1, 1), (0, 0)), constant_values=np.nan)
    around = [padded[at : at + f.shape[0], to : to + f.shape[1]] for at in range(3) for to in range(3)]
    smooth = np.round(np.nanmean(around, axis=0), 4)
    at, to, depth = np.unravel_index(int(np.argmax(smooth)), f.shape)
    return Setting(BASE_TAUS[at], TAUS[to], int(depth) + 1, float(f[at, to, depth]))
