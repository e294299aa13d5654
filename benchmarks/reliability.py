"""Reliability of the predicted linkage p, and its expected calibration error.

Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning" (AAAI 2015): p in bins of
equal width, mean p against the observed share of true links in each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.types import Float32, Float64

BINS = 10


@dataclass(frozen=True, slots=True)
class Reliability:
    """Of the edges of one collection, by bins of p; (BINS,) each. Empty bins have zeros."""

    edges: Float64
    predicted: Float64  # mean p
    observed: Float64  # mean chance that the ends are of one class

    @property
    def error(self) -> float:
        """The expected calibration error: |predicted - observed|, weighted by edges; 0 for no edges."""
        gap = np.abs(self.predicted - self.observed)
        return float((self.edges * gap).sum() / max(self.edges.sum(), 1.0))


def reliability(p: Float32, target: Float32) -> Reliability:
    """Return the reliability of p (e,) against the true chances `target` (e,)."""
    place = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    edges = np.bincount(place, minlength=BINS).astype(np.float64)
    most = np.maximum(edges, 1.0)
    predicted, observed = (np.bincount(place, values, BINS) / most for values in (p, target))
    return Reliability(edges, predicted, observed)
