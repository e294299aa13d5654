"""A linear map of a space that brings items of one class together, in closed form.

Linear discriminant analysis with a shrunk covariance within classes: it scales down the directions in which
items of one class differ, and moderately up those in which class means do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.model.adapter import Adapter
from engine.types import Float32, Float64, Int64
from engine.vectors import as_float, quantize

SHRINKAGE = 1.0  # of the covariance within classes, in mean variances, towards a sphere
BETWEEN = 0.3  # so too, of that of class means
LEAST_SPREAD = 1e-9  # sum of variances within classes; less is rounding
POWER = 0.25  # of the variance of class means along a direction, by which it is scaled


def discriminant(emb: Float32, labels: Int64, about: Mapping[str, Any]) -> Adapter:
    """Learn the map from labelled unit vectors (n, d), (n,); it keeps all d components.

    For n vectors x with class means m_c and their mean m, S = cov(x - m_c), B = cov((m_c - m) S'^(-1/2)):
    y = (x - m) S'^(-1/2) B'^POWER, where ' adds the shrinkage. Where no class has two items, S is none.
    """
    x = emb.astype(np.float64)
    _, of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.zeros((len(counts), x.shape[1]))
    np.add.at(means, of, x)
    means /= counts[:, None]
    centre = x.mean(axis=0)
    spread = (x - means[of]).T @ (x - means[of]) / len(x)
    within = _power(spread, SHRINKAGE, -0.5) if spread.trace() > LEAST_SPREAD else np.eye(x.shape[1])
    apart = (means - centre) @ within
    onto = within @ _power(apart.T @ apart / len(apart), BETWEEN, POWER)
    return Adapter.of({"direct": onto, "bias": -(centre @ onto)}, about)


def through(adapter: Adapter | None, emb: Float32) -> Float32:
    """Return embeddings (n, d) as they are after the adapter, if there is one."""
    return as_float(adapter.apply(quantize(emb)[0])) if adapter else emb


def refuse_mapped(path: Path, about: Mapping[str, Any]) -> None:
    """Raise InputError where the model at `path` is for what an adapter makes of embeddings."""
    if about.get("adapter"):
        raise InputError(
            f"{path} was trained behind an adapter: training cannot go on from it. Begin with the model that "
            "it began with"
        )


def _power(covariance: Float64, shrinkage: float, power: float) -> Float64:
    """Return the power of a symmetric matrix (d, d), its eigenvalues raised by a share of their mean."""
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 0.0)
    raised = np.maximum(values + shrinkage * values.mean(), 1e-12)
    power_of: Float64 = (vectors * raised**power) @ vectors.T
    return power_of
