"""The ground of a fine-tuning: a collection of which some classes are labelled, clustered at level 0.

A labelled class is labelled whole, so an item without a label is of another class than any with one: a few
classes tell much, among all their strangers. Whether two unlabelled items are of one class stays unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from engine.evaluation.bulk import Built, hierarchy, measured_epoch, partitions, places, regrown
from engine.model.linkage import LinkageModel
from engine.training.rollout import Scene, counts_of, scenes
from engine.types import Epoch, Float32, Int64

UNKNOWN = -1  # the label of an item without one, as in `LabelledFile.classes`


@dataclass(frozen=True, slots=True)
class Grown:
    """A level that a model has grown: its features, and the node of each item (n,)."""

    scene: Scene  # without targets
    place: Int64


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

    def levels(self, model: LinkageModel, tau: float) -> list[Grown]:
        """Return the levels above 0 that a model grows."""
        built = self._grown(model, tau)
        found, at = scenes(built, self.labels, self.epoch, lowest=1), places(built)
        return [Grown(scene, at[scene.level]) for scene in found]

    def _grown(self, model: LinkageModel, tau: float) -> Built:
        return regrown(self.built, model, tau, model.max_levels, self.epoch)


def ground_of(name: str, emb: Float32, labels: Int64, start: LinkageModel) -> Ground:
    """Cluster a collection (n, d) at level 0 by the start; labels (n,), UNKNOWN for some."""
    epoch = measured_epoch(emb, start.default_epoch)
    built = hierarchy(emb, start, start.tau, start.max_levels, epoch, base_tau=start.base_tau)
    return Ground(name, emb, labels, built, epoch)


def known(level: Grown, labels: Int64) -> Known:
    """Return a level as a training graph, by what the labels (n,) of the items tell."""
    scene, told = level.scene, labels != UNKNOWN
    nodes, heads, tails = len(scene.degrees), scene.heads, scene.tails
    counts = counts_of(level.place[told], labels[told], nodes)
    items, unknown = (np.bincount(place, minlength=nodes) for place in (level.place, level.place[~told]))
    pairs = items[heads] * items[tails]
    told_of = pairs - unknown[heads] * unknown[tails]
    same = np.asarray(counts[heads].multiply(counts[tails]).sum(axis=1)).ravel()
    target = (same / np.maximum(told_of, 1)).astype(np.float32)
    return Known(replace(scene, target=target), (told_of / pairs).astype(np.float32))
