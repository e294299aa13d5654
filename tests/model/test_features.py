"""Features against their definitions, and the receptive field they are bound to."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.model.evidence_features import BEND, FLOOR
from engine.model.features import (
    edge_feature_names,
    list_edges,
    node_feature_names,
    raw_features,
)
from engine.model.network import mean_messages
from engine.model.ranges import Ranges
from engine.types import Epoch, EvidenceArrays, KnnGraph
from tests.model.test_linkage import mixture

EPOCH = Epoch(0.05, 0.2, 500)


def all_edges(graph: KnnGraph) -> tuple[np.ndarray, np.ndarray]:
    return list_edges(graph, np.arange(len(graph.degree), dtype=np.int32))


def z(s: float) -> float:
    value = (s - EPOCH.mean) / EPOCH.deviation
    return value / (1 + abs(value) / BEND)


def log_distance(s: float) -> float:
    return math.log(max(1 - s, FLOOR)) - math.log(1 - EPOCH.mean)


def dot(a: np.ndarray, b: np.ndarray) -> float:
    return int(a.astype(np.int64) @ b.astype(np.int64)) / 2**28


def members(graph: KnnGraph, i: int) -> int:
    """How many vectors a node's mean is of."""
    return int(graph.degree[i] + 1 if graph.is_base else graph.size[i])


def node_by_definition(graph: KnnGraph, i: int) -> dict[str, float]:
    s = [int(v) / 2**28 for v in graph.dots[i, : graph.degree[i]]]
    padded = s + s[-1:] * (10 - len(s))
    size, tightness = members(graph, i), math.sqrt(dot(graph.mean[i], graph.mean[i]))
    inner = (size * tightness**2 - 1) / (size - 1) if size > 1 else padded[0]
    logs = [log_distance(v) for v in s]
    return {
        **{f"similarity_{r}": z(v) for r, v in enumerate(padded)},
        **{f"log_distance_{r}": log_distance(v) for r, v in enumerate(padded)},
        **{f"jump_{r}": logs[r + 1] - logs[r] if r + 1 < len(s) else 0.0 for r in range(9)},
        "similarity_mean": np.mean([z(v) for v in s]),
        "similarity_spread": np.std([z(v) for v in s]),
        "log_mean": np.mean(logs),
        "log_spread": np.std(logs),
        "degree": len(s) / 10,
        "size": math.log(int(graph.size[i])),
        "tightness": tightness,
        "inner": z(inner),
        "base": float(graph.is_base),
        "cone": math.log(1 - EPOCH.mean),
        "dispersion": math.log(EPOCH.deviation / (1 - EPOCH.mean)),
        "isotropy": math.log(EPOCH.deviation / (1 - EPOCH.mean) * math.sqrt(graph.mean.shape[1])),
        **({} if graph.is_base else node_evidence_by_definition(graph, i, z(padded[0]))),
    }


class Told:
    """A supernode's evidence, in plain numbers."""

    def __init__(self, graph: KnnGraph, i: int) -> None:
        evidence = graph.evidence
        assert evidence is not None
        at = range(evidence.starts[i], evidence.starts[i] + evidence.counts[i])
        self.entries = {int(evidence.partners[t]): [int(v) for v in evidence.sums[t]] for t in at}
        inner, p, s, squares, self.outer, outer_p, most = (int(v) for v in evidence.totals[i])
        self.inner, self.edges = inner, inner + self.outer
        self.inner_p = share(p, inner * 2**16)
        self.inside = share(s, inner * 2**16)
        self.spread = max(math.sqrt(max(share(squares, inner * 2**32) - self.inside**2, 0)), 2**-9)
        self.outer_p, self.most = outer_p / 2**16, most / 2**16


def share(a: float, b: float) -> float:
    return a / b if b else 0.0


def node_evidence_by_definition(graph: KnnGraph, i: int, first: float) -> dict[str, float]:
    own = Told(graph, i)
    return {
        "log_edges": math.log(1 + own.edges),
        "inner_share": share(own.inner, own.edges),
        "inner_p": own.inner_p,
        "inner_similarity": z(own.inside) if own.inner else first,
        "log_inner_spread": math.log(own.spread / EPOCH.deviation) if own.inner else 0.0,
        "log_partners": math.log(1 + len(own.entries)),
        "outer_p": share(own.outer_p, own.outer),
        "most_p": share(own.most, own.edges),
    }


def edge_evidence_by_definition(graph: KnnGraph, i: int, j: int, similarity: float) -> dict[str, float]:
    ends = {"source": Told(graph, i), "target": Told(graph, j)}
    sums = {
        "source": ends["source"].entries.get(j, [0] * 4),
        "target": ends["target"].entries.get(i, [0] * 4),
    }
    cross = sum(e[0] for e in sums.values())
    p = {end: e[1] / 2**16 for end, e in sums.items()}
    s = sum(e[2] for e in sums.values()) / 2**16 / cross if cross else similarity
    out = {
        "log_cross_edges": math.log(1 + cross),
        "joined": float(cross > 0),
        "cross_p": share(sum(p.values()), cross),
        "joint": share(sum(p.values()), math.sqrt(ends["source"].edges * ends["target"].edges)),
        "log_cross_distance": log_distance(s),
        "log_source_size": math.log(int(graph.size[i])),
        "log_target_size": math.log(int(graph.size[j])),
    }
    for end, own in ends.items():
        out |= {
            f"share_of_{end}": share(sums[end][0], own.edges),
            f"outer_share_of_{end}": share(sums[end][0], own.outer),
            f"p_of_{end}": share(p[end], own.edges),
            f"cross_p_of_{end}": share(p[end], sums[end][0]),
            f"{end}_inner_share": share(own.inner, own.edges),
            f"{end}_inner_p": own.inner_p,
            f"against_most_of_{end}": share(p[end], own.most),
            f"against_outer_of_{end}": share(p[end], own.outer_p),
            f"cross_to_{end}_inner": max(-8, min(8, (s - own.inside) / own.spread)) if own.inner else 0.0,
            f"cross_to_{end}_inner_z": z(s) - z(own.inside) if own.inner else 0.0,
        }
    return out


def edge_by_definition(graph: KnnGraph, i: int, rank: int) -> dict[str, float]:
    lists = [
        [int(v) for v in graph.neighbors[t, : graph.degree[t]]] for t in (i, int(graph.neighbors[i, rank]))
    ]
    j, s = lists[0][rank], int(graph.dots[i, rank]) / 2**28
    back = lists[1].index(i) if i in lists[1] else 10
    out = {
        "similarity": z(s),
        "log_distance": log_distance(s),
        "rank": rank / 10,
        "rank_back": back / 10,
        "mutual": float(back < 10),
        "common": len(set(lists[0]) & set(lists[1])) / 10,
        "common_near": len(set(lists[0][:5]) & set(lists[1][:5])) / 5,
    }
    for end, row in (("source", i), ("target", j)):
        own = [int(v) / 2**28 for v in graph.dots[row, : graph.degree[row]]] or [s]
        for name, value in (("first", own[0]), ("mean", sum(own) / len(own)), ("last", own[-1])):
            out[f"similarity_to_{end}_{name}"] = z(s) - z(value)
            out[f"log_to_{end}_{name}"] = log_distance(s) - log_distance(value)
    tight = [math.sqrt(dot(graph.mean[t], graph.mean[t])) for t in (i, j)]
    across = (
        dot(graph.identity[i], graph.mean[j]),
        dot(graph.mean[i], graph.identity[j]),
        dot(graph.mean[i], graph.mean[j]),
    )
    lengths = tight[1], tight[0], tight[0] * tight[1]
    for name, value, length in zip(
        ("identity_average", "average_identity", "average_average"), across, lengths, strict=True
    ):
        out[name] = z(value)
        out[f"log_{name}"] = log_distance(value / length)
    for end, row, t in (("source", i, tight[0]), ("target", j, tight[1])):
        size = members(graph, row)
        inner = z((size * t * t - 1) / (size - 1)) if size > 1 else z(across[2])
        out[f"average_to_{end}_inner"] = z(across[2]) - inner
    if graph.is_base:
        halfway = [graph.identity[t].astype(np.int64) + graph.mean[t] for t in (i, j)]
        length = math.prod(
            math.sqrt(1 + 2 * dot(graph.identity[t], graph.mean[t]) + tight[at] ** 2)
            for at, t in enumerate((i, j))
        )
        return out | {"log_halfway": log_distance(dot(*halfway) / length)}
    return out | edge_evidence_by_definition(graph, i, j, s)


@pytest.mark.parametrize("is_base", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_features_are_their_definitions(seed: int, is_base: bool) -> None:
    graph = mixture(seed, 150)
    if is_base:
        graph = replace(graph, is_base=True, size=np.ones(150, np.int64), evidence=None)
    sources, ranks = all_edges(graph)
    x, e = raw_features(graph, EPOCH, sources, ranks)
    told = f"{seed=} {is_base=}"
    names = node_feature_names(10, is_base), edge_feature_names(is_base)
    for i in np.flatnonzero(graph.degree > 0):
        wanted = node_by_definition(graph, int(i))
        np.testing.assert_allclose(
            x[i], [wanted[name] for name in names[0]], atol=2e-5, err_msg=f"{told} {i=}"
        )
    for t in range(0, len(sources), 7):
        wanted = edge_by_definition(graph, int(sources[t]), int(ranks[t]))
        np.testing.assert_allclose(
            e[t], [wanted[name] for name in names[1]], atol=2e-5, err_msg=f"{told} {t=}"
        )


def replace_evidence(graph: KnnGraph, node: int, rng: np.random.Generator) -> EvidenceArrays:
    """Other sums for one node."""
    evidence = graph.evidence
    assert evidence is not None
    sums, totals = evidence.sums.copy(), evidence.totals.copy()
    at = slice(evidence.starts[node], evidence.starts[node] + evidence.counts[node])
    sums[at] = sums[at] * rng.integers(2, 5)
    totals[node] = totals[node] * 3 + 1
    return evidence._replace(sums=sums, totals=totals)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_read_beyond_the_receptive_field(seed: int) -> None:
    """One node's list, size, mean and evidence change: only its features and those of the edges at it may."""
    rng = np.random.default_rng(seed)
    graph = mixture(seed, 300)
    node = int(rng.choice(np.flatnonzero(graph.degree == 10)))
    dots, neighbors, size, mean = (a.copy() for a in (graph.dots, graph.neighbors, graph.size, graph.mean))
    dots[node] -= 2**22
    neighbors[node] = rng.choice(np.delete(np.arange(300), node), 10, replace=False)
    size[node] += 5
    mean[node] = mean[node] // 2
    evidence = replace_evidence(graph, node, rng)
    other = replace(graph, dots=dots, neighbors=neighbors, size=size, mean=mean, evidence=evidence)
    sources, ranks = all_edges(graph)
    before, after = raw_features(graph, EPOCH, sources, ranks), raw_features(other, EPOCH, sources, ranks)
    assert set(np.flatnonzero((before[0] != after[0]).any(axis=1))) == {node}, f"{seed=}"
    touched = np.flatnonzero((before[1] != after[1]).any(axis=1))
    at_node = (sources == node) | (graph.neighbors[sources, ranks] == node)
    assert at_node[touched].all(), f"{seed=}"
    assert len(touched) > 0


def test_extreme_calibrations_stay_bounded() -> None:
    graph = mixture(1, 200)
    sources, ranks = all_edges(graph)
    for epoch in (Epoch(1.0, 0.0, 9), Epoch(-1.0, 0.0, 9), Epoch(0.999, 1e-9, 9)):
        for features in raw_features(graph, epoch, sources, ranks):
            assert np.isfinite(features).all()
            assert np.abs(features).max() <= 2 * BEND


def test_ranges_clip_what_was_never_seen() -> None:
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(5000, 3)).astype(np.float32) * [1, 10, 0] + [0, 5, 2]
    ranges = Ranges.measured(seen.astype(np.float32), tail=0.01)
    far = ranges.apply(np.array([[1e6, -1e6, 7.0]], np.float32))[0]
    assert 2.0 < far[0] < 3.0
    assert -3.0 < far[1] < -2.0
    assert far[2] == 0.0


def test_ranges_are_widened_and_unbounded_ones_replaced() -> None:
    rng = np.random.default_rng(1)
    own, other = (Ranges.measured(rng.normal(at, 1, (999, 3)).astype(np.float32)) for at in (0, 4))
    own.low[2] = -np.inf
    both = own.widened(other)
    assert (both.low[:2] == own.low[:2]).all()
    assert (both.high == other.high).all()
    assert (both.center == [*own.center[:2], other.center[2]]).all()
    assert (both.scale == [*own.scale[:2], other.scale[2]]).all()
    assert both.low[2] == other.low[2]


def test_the_mean_of_messages_is_that_of_each_node() -> None:
    mean = mean_messages(torch.tensor([2, 0, 1]), torch.tensor([[1.0], [2.0], [5.0]]))
    assert mean[:, 0].tolist() == [1.5, 0.0, 5.0]
