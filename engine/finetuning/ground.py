"""The ground of a fine-tuning: a collection of which some classes are labelled, clustered at level 0.

A labelled class is labelled whole, so an item without a label is of another class than any with one: a few
classes tell much, among all their strangers. Whether two unlabelled items are of one class stays unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from engine.evaluation.bulk import Built, hierarchy, measured_epoch, partitions, regrown
from engine.model.linkage import LinkageModel
from engine.training.rollout import Scene, scenes
from engine.types import Epoch, Float32, Int64

UNKNOWN = -1  # the label of an item without one
LEAST_KNOWN = 1e-3  # share of the pairs across an edge below which its target says nothing


@dataclass(frozen=True, slots=True)
class Known:
    """A level as a training graph, with the share of the pairs across each edge that labels tell of, (e,)."""

    scene: Scene  # its targets are of those pairs
    known: Float32


@dataclass(frozen=True, slots=True)
class Ground:
    """A collection with its level 0, which fine-tuning leaves as it is; levels above are grown again."""

    name: str
    emb: Float32  # (n, d)
    labels: Int64  # (n,), UNKNOWN for some
    built: Built
    epoch: Epoch

    def hiding(self, labels: Int64) -> Ground:
        """Return the ground without the labels of some classes."""
        return replace(self, labels=np.where(np.isin(self.labels, labels), UNKNOWN, self.labels))

    def clusters(self, model: LinkageModel, tau: float | None = None) -> Int64:
        """Return the final clusters (n,) with the levels that a model grows."""
        return partitions(self._grown(model, model.tau if tau is None else tau))[-1]

    def levels(self, model: LinkageModel, tau: float) -> list[Known]:
        """Return the levels above 0 that a model grows, but those of which no label tells."""
        built = self._grown(model, tau)
        told = self.labels != UNKNOWN
        # Unlabelled items as strangers of each other, and as one class: what differs is unknown.
        alone = np.where(told, self.labels, self.labels.max(initial=0) + 1 + np.arange(len(told)))
        least, most = (scenes(built, labels, self.epoch, lowest=1) for labels in (alone, self.labels))
        return [found for pair in zip(least, most, strict=True) if (found := _known(*pair)).known.any()]

    def _grown(self, model: LinkageModel, tau: float) -> Built:
        return regrown(self.built, model, tau, model.max_levels, self.epoch)


def ground_of(name: str, emb: Float32, labels: Int64, start: LinkageModel) -> Ground:
    """Cluster a collection (n, d) at level 0 by the start; labels (n,), UNKNOWN for some."""
    epoch = measured_epoch(emb, start.default_epoch)
    built = hierarchy(emb, start, start.tau, start.max_levels, epoch, base_tau=start.base_tau)
    return Ground(name, emb, labels, built, epoch)


def _known(least: Scene, most: Scene) -> Known:
    known = np.clip(1.0 - (most.target - least.target), 0.0, 1.0).astype(np.float32)
    known = np.where(known > LEAST_KNOWN, known, np.float32(0.0))
    target = np.where(known > 0.0, least.target / np.maximum(known, LEAST_KNOWN), 0.0)
    return Known(replace(least, target=np.clip(target, 0.0, 1.0).astype(np.float32)), known)
