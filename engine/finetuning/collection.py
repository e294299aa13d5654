"""A partly labelled collection for fine-tuning, with its neighbour lists.

Every item of a labelled class has its label, so an unlabelled item belongs to none of these classes: of a
labelled item's list everything is known, of an unlabelled item's next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from engine.evaluation.bulk import (
    BulkClustering,
    hierarchy,
    measure_epoch,
    partitions,
    places,
    recluster,
)
from engine.model.linkage import LinkageModel
from engine.training.datasets import UNKNOWN
from engine.training.rollout import TrainingGraph, chances, training_graphs
from engine.types import Epoch, Float32, Int64


@dataclass(frozen=True, slots=True)
class RolloutLevel:
    """A level of a roll-out."""

    graph: TrainingGraph  # its targets are not to be used
    place: Int64  # (n,) the node of each item


@dataclass(frozen=True, slots=True)
class LabelledLevel:
    """A level with targets from the item pairs whose first item has a label."""

    graph: TrainingGraph  # its targets are means over those pairs
    coverage: Float32  # (e,) share of those pairs among the pairs across each edge; its weight in the loss


@dataclass(frozen=True, slots=True)
class FinetuneCollection:
    """A partly labelled collection with its neighbour lists, which no model changes."""

    name: str
    emb: Float32  # (n, d)
    labels: Int64  # (n,), UNKNOWN for some
    built: BulkClustering
    epoch: Epoch

    @classmethod
    def of(cls, name: str, emb: Float32, labels: Int64, start: LinkageModel) -> FinetuneCollection:
        """Cluster embeddings (n, d) by the start. `labels` (n,), UNKNOWN for some."""
        epoch = measure_epoch(emb, start.default_epoch)
        built = hierarchy(emb, start, start.tau, start.max_levels, epoch, base_tau=start.base_tau)
        return cls(name, emb, labels, built, epoch)

    def hiding(self, labels: Int64) -> FinetuneCollection:
        """Return the collection without the labels of some classes."""
        return replace(self, labels=np.where(np.isin(self.labels, labels), UNKNOWN, self.labels))

    def clusters(self, model: LinkageModel) -> Int64:
        """Return the final clusters (n,) by this model."""
        return partitions(self._rolled_out(model, model.tau, model.base_tau))[-1]

    def levels(self, model: LinkageModel, tau: float, base_tau: float) -> list[RolloutLevel]:
        """Return the levels above level 0 by this model, with features."""
        return self._levels(self._rolled_out(model, tau, base_tau), 1)

    def base_level(self) -> RolloutLevel:
        """Return level 0 with features; they do not depend on the model."""
        return self._levels(self.built, 0)[0]

    def _rolled_out(self, model: LinkageModel, tau: float, base_tau: float | None) -> BulkClustering:
        return recluster(self.built, model, tau, base_tau, model.max_levels, self.epoch)

    def _levels(self, built: BulkClustering, lowest: int) -> list[RolloutLevel]:
        found, at = training_graphs(built, self.labels, self.epoch, lowest), places(built)
        return [RolloutLevel(graph, at[graph.level]) for graph in found]


def labelled_level(level: RolloutLevel, labels: Int64) -> LabelledLevel:
    """Return a level with targets; `labels` (n,) of the items, UNKNOWN for some."""
    graph = level.graph
    _, target, known = chances(level.place, labels, len(graph.degrees), graph.heads, graph.tails)
    return LabelledLevel(replace(graph, target=target), known)
