"""What is computed again is exactly what the model's receptive field reaches, no more, no less."""

from __future__ import annotations

from typing import Any

import pytest

from engine.clustering.hierarchy import Hierarchy
from engine.clustering.level import Level
from engine.clustering.state import State
from engine.index.base import ExactIndex
from engine.types import Cache, Epoch, EvidenceArrays, Float32, Int32, KnnGraph
from tests.support.random_models import random_model
from tests.support.sequences import Pinned, World, take

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ("mixed", "copies", "twins", "nudges", "lattice", "chain", "tides", "one by one")
Names = dict[int, int]  # row -> hash
Seen = dict[int, Any]  # hash -> what the model reads of the node and of its list, or what it made of it


class Recorder:
    """A network that writes down what it is asked for."""

    def __init__(self, model: Any) -> None:
        self.model, self.hidden, self.cache_widths = model, model.hidden, model.cache_widths
        self.embedded: list[Int32] = []
        self.linked: list[tuple[Int32, Int32]] = []

    def embed(self, graph: KnnGraph, epoch: Epoch, rows: Int32, cache: Cache) -> Float32:
        self.embedded.append(rows.copy())
        return self.model.embed(graph, epoch, rows, cache)

    def link(
        self, graph: KnnGraph, epoch: Epoch, hidden: Float32, sources: Int32, ranks: Int32, cache: Cache
    ) -> Float32:
        self.linked.append((sources.copy(), ranks.copy()))
        return self.model.link(graph, epoch, hidden, sources, ranks, cache)


class RecordingModel:
    """A model of two such networks."""

    def __init__(self, model: Any) -> None:
        self.k, self.base, self.upper = model.k, Recorder(model.base), Recorder(model.upper)

    def begin(self) -> None:
        for part in (self.base, self.upper):
            part.embedded, part.linked = [], []

    @property
    def embedded(self) -> list[Int32]:
        return self.base.embedded + self.upper.embedded

    @property
    def linked(self) -> list[tuple[Int32, Int32]]:
        return self.base.linked + self.upper.linked


class Sight:
    """A level as the model sees it, computed whole: features, neighbours, hidden rows, by hash."""

    def __init__(self, level: Level, model: Any, epoch: Epoch) -> None:
        graph, nodes = level.graph(), level.nodes
        rows = nodes.all_rows()
        names = nodes.hashes.tolist()
        hidden = (model.base if graph.is_base else model.upper).embed(graph, epoch, rows)
        self.epoch = epoch
        self.features: Seen = {}
        self.neighbors: dict[int, list[int]] = {}
        self.hidden: Seen = {}
        for row, bits in zip(rows.tolist(), hidden, strict=True):
            own = graph.neighbors[row, : graph.degree[row]].tolist()
            # a neighbour that moved is another one, even at the same similarity
            near = [(names[other], graph.identity[other].tobytes()) for other in own]
            point = graph.identity[row].tobytes()
            told = told_of(graph.evidence, row, names) if graph.evidence else ()
            self.features[names[row]] = (point, int(graph.size[row]), graph.mean[row].tobytes(), near, told)
            self.neighbors[names[row]] = [names[other] for other in own]
            self.hidden[names[row]] = bits.tobytes()


def told_of(evidence: EvidenceArrays, row: int, names: list[int]) -> Any:
    """A supernode's totals and entries, by its partners' hashes."""
    entries = range(evidence.starts[row], evidence.starts[row] + evidence.counts[row])
    partners = evidence.partners.tolist()
    return evidence.totals[row].tobytes(), {
        names[partners[at]]: evidence.sums[at].tobytes() for at in entries
    }


def must_compute(before: Sight | None, after: Sight) -> tuple[set[int], set[tuple[int, int]]]:
    """Nodes to embed and edges to link, by brute force."""
    changed = set(after.features)
    if before is not None and before.epoch == after.epoch:
        changed = {i for i in after.features if after.features[i] != before.features.get(i)}
    embedded = {i for i, near in after.neighbors.items() if i in changed or changed & set(near)}
    dirty = changed | {i for i in after.hidden if before is None or after.hidden[i] != before.hidden.get(i)}
    linked = {(i, j) for i, near in after.neighbors.items() for j in near if i in dirty or j in dirty}
    return embedded, linked


@pytest.mark.parametrize("seed", range(16))
def test_computes_exactly_the_receptive_field(seed: int) -> None:
    receptive_field(seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(16, 116))
def test_computes_exactly_the_receptive_field_in_many_sequences(seed: int) -> None:
    receptive_field(seed)


def receptive_field(seed: int) -> None:
    model = random_model(seed, k=[3, 5, 10][seed % 3])
    world = World(seed, KINDS[seed % len(KINDS)], 120, model)
    print(world)
    recorder = RecordingModel(model)
    state = State(Hierarchy(world.shape, recorder, ExactIndex), Pinned(world.shape.dim, Epoch(0.1, 0.3, 0)))
    seen: list[Sight] = []
    for at, (batch, _) in enumerate(world.batches()):
        recorder.begin()
        _, applied = take(state, batch)
        levels = state.hierarchy.levels
        assert len(recorder.embedded) == len(recorder.linked) == len(levels)
        now = [Sight(level, model, state.calibration.epoch) for level in levels]
        for depth, level in enumerate(levels):
            where = f"level {depth}, batch {at} of {world}"
            names = level.nodes.hashes.tolist()
            nodes = [names[row] for row in recorder.embedded[depth].tolist()]
            sources, ranks = recorder.linked[depth]
            ends = level.lists.neighbors[sources, ranks].tolist()
            edges = [(names[i], names[j]) for i, j in zip(sources.tolist(), ends, strict=True)]
            embedded, linked = must_compute(seen[depth] if depth < len(seen) else None, now[depth])
            assert len(set(nodes)) == len(nodes), where
            assert len(set(edges)) == len(edges), where
            assert set(nodes) == embedded, where
            assert set(edges) == linked, where
            work, wanted = applied.stats["work"][depth], (level.nodes.live, len(nodes), len(edges))
            assert (work.nodes, work.embedded, work.linked) == wanted, where
        seen = now
