"""Begins `lander` with a metric: distances after a map that labels have taught, read by a small network.

A lander that starts from random weights remembers the classes that it is trained on and says little of
others. Here its first layers are fixed instead. With P the directions that separate classes (the first
principal ones after `engine.training.discriminant`), x the features of a node and m_x their mean over its
list, they compute

    distances  |P (u_j - v_i)|_1   of two neighbours, u and v from x, m_x and halfway between
    spreads    |P (x - m_x)|_1     of either end, and those of its peak and mean

in the units of the paper's network: relu(z) and relu(-z) give z, a slope of -1 gives |z|. Only the last
layers learn. They read a handful of sums, so they cannot remember a class.

With an adapter the map is applied to the embeddings themselves: neighbour lists are of mapped vectors, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.errors import InputError
from engine.evaluation.bulk import BulkClustering
from engine.model.adapter import Adapter
from engine.model.lander import LanderCard, LanderModel
from engine.system.determinism import one_thread
from engine.training.checkpoint import packed, unpacked
from engine.training.datasets import UNKNOWN, Collection, distinct, unit, whole_classes
from engine.training.discriminant import discriminant, through
from engine.training.graph_loss import importance
from engine.training.lander.graphs import LevelGraph, graphs_of, levels, true_links
from engine.training.lander.judge import Judge
from engine.training.lander.plan import LanderPlan
from engine.training.optimization import Optimization, OptimizerPlan
from engine.training.pool import keep
from engine.types import Float32, Float64, Int64

FOLDS, LEAST_OF_A_FOLD = 3, 2  # of the classes, for the maps that training sees; classes
MOST_DIRECTIONS, LAST_WIDTH = 64, 64  # of P; units of the layer that learns
SHARE = (0.6, 1.0)  # of a file's items in a draw
BASE_TAUS, TAUS = (0.3, 0.7), (0.3, 0.85)  # of training levels
ONLY_BASE = 0.25  # of the training, before the levels of the network itself
FRESH_EVERY = 200  # steps
TABLES, ROWS = 6, 4_000  # of a step; edges of one table
RATE = 3e-3


@dataclass(frozen=True, slots=True)
class Mixes:
    """Mixes of a node's features, and what is summed up of them. s: slots of the convolution's input."""

    of: Sequence[Sequence[float]]  # (m, s)
    distances: Sequence[tuple[int, int]]  # the mix of the neighbour, and of the node itself
    spreads: Sequence[Sequence[float]]  # (., s)


MIXES = {  # slots: peak, mean, both averaged over the list; attention reads lists alone
    "mean": Mixes(
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0.5, 0, 0.5], [0, 0, 0, 1]],
        [(0, 0), (1, 1), (2, 2), (3, 3)],
        [[0, 1, 0, -1], [1, -1, 0, 0]],
    ),
    "gat": Mixes([[1, 0], [0, 1]], [(0, 0), (1, 1)], [[1, -1]]),
}


class Geometry:
    """The layers of a lander that are fixed, for features of r directions instead of d components."""

    def __init__(self, card: LanderCard) -> None:
        """Raises InputError where the card is too narrow, or of another variant."""
        if card.variant not in MIXES:
            raise InputError(f"the variant of a lander is one of {', '.join(MIXES)}, not {card.variant!r}")
        mixes, half = MIXES[card.variant], card.half
        samples = max(1, card.hidden // 32)  # of a spread's directions
        count, spreads = len(mixes.distances), len(mixes.spreads)
        rows = min(
            (half - 2 * spreads) // count, (card.hidden - 2 * spreads * samples) // (2 * len(mixes.of))
        )
        if rows < 1:
            raise InputError(
                f"a lander of {card.hidden} hidden units has no room for a distance: name --hidden 16 or more"
            )
        self.card, self.directions = card, min(rows, MOST_DIRECTIONS, card.dim)
        eye = np.eye(self.directions, dtype=np.float32)
        mixed = np.random.default_rng(0).normal(size=(samples, self.directions)) / self.directions**0.5
        layers = [*((mix, eye) for mix in mixes.of), *((mix, mixed) for mix in mixes.spreads)]
        self.convolution = np.zeros((card.hidden, len(mixes.of[0]), self.directions), np.float32)
        self.source = np.zeros((half, card.hidden), np.float32)  # S, T of `engine.model.lander`
        self.target = np.zeros((half, card.hidden), np.float32)
        self.sums = np.zeros((half, count + 2 * spreads), np.float32)  # which units make which sum
        starts, at = [], 0
        for mix, matrix in layers:
            both = np.einsum("s,rb->rsb", np.array(mix, np.float32), matrix)
            self.convolution[at : at + 2 * len(both)] = np.concatenate([both, -both])
            starts.append(at)
            at += 2 * len(both)
        self._read_distances(mixes.distances, starts, eye)
        self._read_spreads(starts[len(mixes.of) :], 2 * samples, count)

    def _read_distances(self, pairs: Sequence[tuple[int, int]], starts: Sequence[int], eye: Float32) -> None:
        """Set one unit per direction: the neighbour's mix less the node's."""
        size = len(eye)
        signed = np.concatenate([eye, -eye], axis=1)  # relu(z), relu(-z)
        for number, (theirs, own) in enumerate(pairs):
            units = slice(number * size, (number + 1) * size)
            self.source[units, starts[theirs] : starts[theirs] + 2 * size] += signed
            self.target[units, starts[own] : starts[own] + 2 * size] -= signed
            self.sums[units, number] = 1.0

    def _read_spreads(self, starts: Sequence[int], size: int, count: int) -> None:
        """Set one unit per spread and end, behind those of `count` distances."""
        unit = count * self.directions
        for first in starts:
            for ends in (self.source, self.target):
                ends[unit, first : first + size] = 1.0
                self.sums[unit, count + unit - count * self.directions] = 1.0
                unit += 1

    def read(self, graph: LevelGraph, projection: Float32) -> Float32:
        """Return the sums (e, sums) of a graph's edges. `projection` (r, d)."""
        x = graph.features(average=True).reshape(len(graph.degrees), 2, -1) @ torch.from_numpy(projection.T)
        shares = graph.affinity() if self.card.variant == "mean" else graph.even_shares()
        heads, tails = torch.from_numpy(graph.heads), torch.from_numpy(graph.tails)
        near = torch.zeros_like(x).index_add_(0, heads, shares[:, None, None] * x[tails])
        seen = torch.cat([x, near], dim=1) if self.card.variant == "mean" else near
        weights = torch.from_numpy(self.convolution).flatten(1)
        h = torch.relu(seen.flatten(1) @ weights.t())
        source, target = (h @ torch.from_numpy(ends).t() for ends in (self.source, self.target))
        found = np.empty((len(graph.heads), self.sums.shape[1]), np.float32)
        for first in range(0, len(found), ROWS):
            rows = slice(first, first + ROWS)
            q = source[tails[rows]] + target[heads[rows]]
            found[rows] = (q.abs() @ torch.from_numpy(self.sums)).numpy()
        return found

    def first_layer(self, projection: Float32) -> dict[str, Tensor]:
        """Return the weights of the convolution, for embeddings of d components. `projection` (r, d)."""
        layer, hidden, heads = "conv.0.gcn_layer", self.card.hidden, self.card.heads
        convolution = torch.from_numpy(self.convolution @ projection).flatten(1)
        if self.card.variant == "mean":
            return {f"{layer}.mlp.weight": convolution, f"{layer}.mlp.bias": torch.zeros(hidden)}
        return {
            f"{layer}.fc.weight": convolution.repeat(heads, 1),
            f"{layer}.attn_l": torch.zeros(1, heads, hidden),  # all neighbours weigh the same
            f"{layer}.attn_r": torch.zeros(1, heads, hidden),
            f"{layer}.bias": torch.zeros(heads * hidden),
            "conv.0.bias": torch.zeros(heads, hidden),
        }


class Reader(nn.Module):
    """The layers that learn: sums (e, sums) to logits (e,)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, sums: Float32, width: int) -> None:
        """`sums`: edges to standardise by."""
        super().__init__()
        deviation = sums.std(axis=0)
        varies = deviation > 1e-6  # at level 0 a node's peak is its mean
        deviation[~varies] = deviation[varies].min(initial=1.0)
        self.register_buffer("mean", torch.from_numpy(sums.mean(axis=0)))
        self.register_buffer("deviation", torch.from_numpy(deviation))
        self.inner, self.slopes = nn.Linear(sums.shape[1], width), nn.PReLU(width)
        self.out = nn.Linear(width, 1)

    def forward(self, sums: Tensor) -> Tensor:
        logits: Tensor = self.out(self.slopes(self.inner((sums - self.mean) / self.deviation)))[:, 0]
        return logits

    @torch.no_grad()
    def model(self, geometry: Geometry, projection: Float32) -> LanderModel:
        """Return the whole network as the engine runs it, for embeddings of d components."""
        card, half, width = geometry.card, geometry.card.half, self.inner.out_features
        scaled = self.inner.weight / self.deviation
        inner, bias = torch.zeros(half, half), torch.zeros(half)
        inner[:width] = scaled @ torch.from_numpy(geometry.sums).t()
        bias[:width] = self.inner.bias - scaled @ self.mean
        slopes, out = torch.zeros(half), torch.zeros(2, half)
        slopes[:width], out[1, :width] = self.slopes.weight, self.out.weight[0]
        weights = geometry.first_layer(projection) | {
            "src_mlp.weight": torch.from_numpy(geometry.source),
            "src_mlp.bias": torch.zeros(half),
            "dst_mlp.weight": torch.from_numpy(geometry.target),
            "dst_mlp.bias": torch.zeros(half),
            "classifier_conn.0.weight": torch.full((half,), -1.0),
            "classifier_conn.1.weight": inner,
            "classifier_conn.1.bias": bias,
            "classifier_conn.2.weight": slopes,
            "classifier_conn.3.weight": out,
            "classifier_conn.3.bias": torch.cat([torch.zeros(1), self.out.bias]),
        }
        return LanderModel({name: value.clone() for name, value in weights.items()}, card)


@dataclass(frozen=True, slots=True)
class EdgeTable:
    """What the last layers read of a level's edges."""

    sums: Float32  # (e, sums)
    target: Float32  # (e,) probability of one class
    weight: Float32  # (e,) in the loss


@dataclass(frozen=True, slots=True)
class Fold:
    """Classes, and the map that others have taught: through its own map a class looks closer."""

    classes: Int64
    projection: Float32  # (r, d)
    sources: Sequence[Collection]  # behind the adapter that others have taught, if there is to be one

    def seen(self, labels: Int64) -> Int64:
        """Labels, UNKNOWN for classes that taught the map."""
        return np.where(np.isin(labels, self.classes), labels, UNKNOWN)


class MetricTrainer:
    """The last layers in training: see `engine.training.training_run.Trainer`."""

    adapter: Adapter | None  # behind which the model is

    def __init__(self, sources: Sequence[Collection], plan: LanderPlan) -> None:
        self.sources = [distinct(replace(each, emb=unit(each.emb))) for each in sources]
        self.plan = plan
        self.rng = np.random.default_rng(plan.seed)
        torch.manual_seed(plan.seed)
        card = LanderCard(
            sources[0].emb.shape[1], plan.variant, plan.hidden, plan.heads, tau=0.5, max_levels=3
        )
        self.geometry = Geometry(card)
        classes = np.unique(np.concatenate([each.labels for each in self.sources]))
        self._lists: dict[int, BulkClustering] = {}  # by source: folds without an adapter share theirs
        self.adapter, _, self.projection = self._map(classes)
        self.folds = self._folds(self.rng.permutation(classes))
        self.base = self._base_tables()
        self.pool: list[EdgeTable] = []
        reader = Reader(np.concatenate([each.sums for each in self.base]), min(LAST_WIDTH, card.half))
        self.optimization = Optimization(reader, OptimizerPlan(RATE, 0.0, plan.average, 50))

    @property
    def steps(self) -> int:
        """Steps so far."""
        return self.optimization.steps

    @one_thread()
    def step(self, share: float) -> float:
        """Do one step of the optimizer at `share` of the whole training; return the loss."""
        if share >= ONLY_BASE and (not self.pool or self.steps % FRESH_EVERY == 0):
            self._draw()
        return self.optimization.step(self._loss, share)

    def model(self) -> LanderModel:
        """Return the average of the weights so far, as the engine runs it."""
        return self.optimization.ema_net.model(self.geometry, self.projection)

    def tensors(self, model: LanderModel) -> dict[str, Tensor]:
        """Return the weights of a model."""
        return dict(model.weights)

    def model_of(self, tensors: dict[str, Tensor]) -> LanderModel:
        """Return the model of these weights."""
        return LanderModel(tensors, self.geometry.card)

    def state(self) -> dict[str, Any]:
        """Return everything that the next steps depend on."""
        return {
            **self.optimization.state(),
            "rng": self.rng.bit_generator.state,
            "pool": [packed(each) for each in self.pool],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.optimization.restore(state)
        self.rng.bit_generator.state = state["rng"]
        self.pool = [unpacked(EdgeTable, each) for each in state["pool"]]

    def judges(self) -> list[Judge]:
        """Return all classes, each fold through the map that others have taught."""
        found = []
        for fold in self.folds:
            first_layer = self.geometry.first_layer(fold.projection)
            for source in fold.sources:
                classes = np.intersect1d(source.labels, fold.classes)
                if len(classes):
                    found.append(Judge(source.labels, classes, self._lists_of(source), first_layer))
        return found

    def _lists_of(self, source: Collection) -> BulkClustering:
        """The first level of one of the folds' sources, found once: its lists depend on no model."""
        if id(source) not in self._lists:
            built = true_links(source.emb, source.labels, self.geometry.card.k, 1)
            self._lists[id(source)] = built
        return self._lists[id(source)]

    def _map(self, classes: Int64) -> tuple[Adapter | None, Sequence[Collection], Float32]:
        """What these classes teach: an adapter, if there is to be one, the sources behind it, directions."""
        emb, labels = (
            np.concatenate([getattr(each, name)[np.isin(each.labels, classes)] for each in self.sources])
            for name in ("emb", "labels")
        )
        about = {"kind": "discriminant", "taught_by": "+".join(each.name for each in self.sources)}
        adapter = discriminant(emb, labels, about | {"classes": len(classes)})
        count = self.geometry.directions
        if not self.plan.adapter:
            return None, self.sources, directions(emb, adapter.weights["direct"], count)
        mapped = [replace(each, emb=through(adapter, each.emb)) for each in self.sources]
        return adapter, mapped, directions(through(adapter, emb), np.eye(emb.shape[1]), count)

    def _folds(self, classes: Int64) -> list[Fold]:
        folds = FOLDS if len(classes) >= FOLDS * LEAST_OF_A_FOLD else 1
        found = []
        for at in range(folds):
            own = classes[at::folds]
            _, sources, projection = self._map(np.setdiff1d(classes, own) if folds > 1 else classes)
            found.append(Fold(own, projection, sources))
        return found

    def _base_tables(self) -> list[EdgeTable]:
        """The first level of the largest file, whose lists no model changes, in the eyes of each fold."""
        found = []
        for fold in self.folds:
            source = max(fold.sources, key=lambda each: len(each.labels))
            graphs = graphs_of(self._lists_of(source), fold.seen(source.labels))
            found += [self._table(graph, fold) for graph in graphs]
        return found

    def _draw(self) -> None:
        """Put the levels that the network makes of whole classes into the pool."""
        fold = self.folds[int(self.rng.integers(len(self.folds)))]
        source = fold.sources[int(self.rng.integers(len(fold.sources)))]
        drawn = whole_classes(source, self.rng, SHARE, self.plan.most_items)
        model = self.optimization.ema_net.model(self.geometry, fold.projection)
        taus = float(self.rng.uniform(*BASE_TAUS)), float(self.rng.uniform(*TAUS))
        for graph in levels(drawn.emb, fold.seen(drawn.labels), model, taus, model.max_levels):
            keep(self.pool, self._table(graph, fold), self.plan.pool, self.rng)

    def _table(self, graph: LevelGraph, fold: Fold) -> EdgeTable:
        smaller = np.minimum(graph.size[graph.heads], graph.size[graph.tails])
        weight = graph.known * importance(smaller, [len(graph.heads)], 0.5)
        return EdgeTable(self.geometry.read(graph, fold.projection), graph.target, weight)

    def _loss(self, reader: Reader) -> Tensor:
        """Cross-entropy of a sample of edges of several levels."""
        tables, parts = [*self.base, *self.pool], []
        for at in self.rng.integers(len(tables), size=TABLES):
            table = tables[int(at)]
            rows = self.rng.integers(len(table.target), size=min(len(table.target), ROWS))
            parts.append((table.sums[rows], table.target[rows], table.weight[rows]))
        sums, target, weight = (torch.from_numpy(np.concatenate(each)) for each in zip(*parts, strict=True))
        loss = nn.functional.binary_cross_entropy_with_logits(reader(sums), target, reduction="none")
        return (weight * loss).sum() / weight.sum().clamp(min=1e-9)


def directions(emb: Float32, weights: Float64, count: int) -> Float32:
    """Return the projection (count, d) onto the first principal directions of `emb @ weights`."""
    mapped = emb @ weights
    mapped -= mapped.mean(axis=0)
    deviation = float(np.sqrt((mapped**2).sum(axis=1).mean()))
    _, vectors = np.linalg.eigh(mapped.T @ mapped)
    onto = weights @ vectors[:, ::-1][:, :count] / max(deviation, 1e-12)
    return np.ascontiguousarray(onto.T, np.float32)
