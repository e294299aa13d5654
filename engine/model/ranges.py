"""Input ranges of a network: features are clipped to their training range, then standardised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.types import Float32, Float64

LEAST_SCALE = 0.02  # least standard deviation, so that a constant feature stays finite


@dataclass(frozen=True, slots=True)
class Ranges:
    """Clipping and standardisation of features: clip to [low, high], then (x - center) / scale.

    Each (features,) float64.
    """

    low: Float64
    high: Float64
    center: Float64
    scale: Float64

    @classmethod
    def measured(cls, raw: Float32, tail: float = 0.001) -> Ranges:
        """Return the ranges of raw features (rows, features): `tail` quantiles, mean and deviation."""
        wide = raw.astype(np.float64)
        low, high = np.quantile(wide, (tail, 1.0 - tail), axis=0)
        inside = np.clip(wide, low, high)
        return cls(low, high, inside.mean(axis=0), np.maximum(inside.std(axis=0), LEAST_SCALE))

    @classmethod
    def none(cls, features: int) -> Ranges:
        """Return ranges that do not change features."""
        ones = np.ones(features)
        return cls(-np.inf * ones, np.inf * ones, 0.0 * ones, ones)

    def widened(self, other: Ranges) -> Ranges:
        """Return ranges that include both, standardised as these.

        Features that are unbounded or constant here take the other's range and standardisation.
        """
        own = np.isfinite(self.low) & (self.scale > LEAST_SCALE)
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return Ranges(
            np.where(own, low, other.low),
            np.where(own, high, other.high),
            np.where(own, self.center, other.center),
            np.where(own, self.scale, other.scale),
        )

    def first(self, features: int) -> Ranges:
        """Return the ranges of the first features."""
        return Ranges(*(getattr(self, name)[:features] for name in ("low", "high", "center", "scale")))

    def beside(self, other: Ranges) -> Ranges:
        """Return the ranges of these features followed by the other's."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("low", "high", "center", "scale"))
        return Ranges(*(np.concatenate(pair) for pair in pairs))

    def apply(self, raw: Float32) -> Float32:
        """Clip and standardise raw features (rows, features), with the bits of the kernels."""
        inside: Float32 = ((np.clip(raw, self.low, self.high) - self.center) / self.scale).astype(np.float32)
        return inside
