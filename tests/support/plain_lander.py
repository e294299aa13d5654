"""`lander` in the plainest code there is: float64 NumPy, a node at a time, from the paper's formulas."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.model.lander import LanderModel
from engine.types import Float64, KnnGraph


def leaky(x: Float64, slope: Any) -> Float64:
    return np.where(x > 0, x, slope * x)


def answers(model: LanderModel, graph: KnnGraph) -> tuple[list[Float64], Float64]:
    """p of each node's edges, by rank, and the densities (n,)."""
    w = {name: value.double().numpy() for name, value in model.weights.items()}
    x = graph.identity / 2.0**14
    if model.card.average:
        average = graph.identity if graph.is_base else graph.mean
        x = np.concatenate([x, average / 2.0**14], axis=1)
    near = [graph.neighbors[i, : graph.degree[i]] for i in range(len(x))]
    similar = [graph.dots[i, : graph.degree[i]] / 2.0**28 for i in range(len(x))]
    h = np.array([_convolved(w, model, x, i, near[i], similar[i]) for i in range(len(x))])
    ends = h @ w["src_mlp.weight"].T + w["src_mlp.bias"], h @ w["dst_mlp.weight"].T + w["dst_mlp.bias"]
    p, density = [], np.zeros(len(x))
    for i in range(len(x)):
        q = leaky(ends[0][near[i]] + ends[1][i], w["classifier_conn.0.weight"])
        q = q @ w["classifier_conn.1.weight"].T + w["classifier_conn.1.bias"]
        q = leaky(q, w["classifier_conn.2.weight"])
        z = np.exp(q @ w["classifier_conn.3.weight"].T + w["classifier_conn.3.bias"])
        p.append(z[:, 1] / z.sum(axis=1))
        if len(near[i]):
            density[i] = (similar[i] * (2 * p[i] - 1)).mean()
    return p, density


def _convolved(
    w: dict[str, Float64], model: LanderModel, x: Float64, i: int, near: Any, similar: Float64
) -> Float64:
    layer = "conv.0.gcn_layer"
    if model.card.variant == "mean":
        affinity = np.maximum(similar, 0.0)
        affinity = affinity / affinity.sum() if affinity.sum() > 0 else affinity
        both = np.concatenate([x[i], affinity @ x[near]])
        return np.maximum(w[f"{layer}.mlp.weight"] @ both + w[f"{layer}.mlp.bias"], 0.0)
    heads, hidden = model.card.heads, model.card.hidden
    z = (x @ w[f"{layer}.fc.weight"].T).reshape(len(x), heads, hidden)
    out = np.zeros((heads, hidden))
    for head in range(heads):
        score = z[near, head] @ w[f"{layer}.attn_l"][0, head] + z[i, head] @ w[f"{layer}.attn_r"][0, head]
        share = np.exp(leaky(score, 0.2))
        out[head] = (share / share.sum()) @ z[near, head] if len(near) else 0.0
    out += w[f"{layer}.bias"].reshape(heads, hidden) + w["conv.0.bias"]
    return np.maximum(out.mean(axis=0), 0.0)
