"""`HiLander`: the engine as a scikit-learn estimator, in memory.

It keeps the same state as a collection and takes the same steps, without a store; `save` writes one.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from typing_extensions import Self

from engine.clustering import pipeline
from engine.clustering.state import State
from engine.collection.arguments import refuse_masked
from engine.collection.build import empty_state, load_adapter, load_model, require_adapter
from engine.collection.collection import Engine
from engine.collection.memory import assign, strengths
from engine.collection.space import space_dim
from engine.config import Settings, with_options
from engine.errors import InputError, counted
from engine.model.lander import LanderModel
from engine.model.linkage import LinkageModel
from engine.model.trained import Trained
from engine.numbering import by_occurrence
from engine.types import Batch, Bool, Float64, Int16, Int64
from engine.vectors import quantize

FIXED = ("tau", "base_tau", "max_levels", "model", "adapter", "index", "metric")  # of all items together
METRICS = ("cosine", "euclidean")
FAR = 3.0  # such distances, of later rows: beyond, directions no longer represent distances
LIFT = 0.5  # the constant component of metric="euclidean", in root mean square distances from the mean
NEW = -1  # label of a vector that belongs to no cluster, or to one that is too small


class HiLander(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Cluster embeddings: Hi-LANDER, incremental.

    Parameters: `tau`, least probability that links; `base_tau`, that of level 0, which makes the groups
    that `tau` joins; `max_levels`, most levels; all default to the model's. `model`: a file, a model, or
    None for the one that ships. `adapter`: the file of an adapter that embeddings go through; a model
    that was trained behind one needs it. `index`: "exact" or "hnsw" (above some 30,000 items). `metric`:
    "cosine" for embeddings; "euclidean" for other data, which the first `fit` or `partial_fit` centres
    and divides by the root mean square distance from the mean; a constant component of 0.5 is added, so
    that angles grow with distances and points on one ray from the mean differ. `min_cluster_size`: items
    of smaller clusters get the label -1, as HDBSCAN's noise. `random_state`: of the order in which items
    enter an HNSW index; with the exact index nothing is random, nor does the order of rows matter.

    `partial_fit` in parts gives what `fit` on all rows gives where both end with the same calibration: the
    similarity of random pairs, measured again when it has drifted. Otherwise some clusters differ, those that
    lie close to `tau`; `fit` calibrates from scratch.

    After `fit`: `labels_` (n,) from 0 by first occurrence, of all items since `fit`, in order;
    `levels_` (n, levels), the clusters after each level, finest first;
    `probabilities_` (n,), the greatest linkage probability to a neighbour in the same cluster, 1 among copies
    and 0 alone; `cluster_ids_` (n,), ids that last through `partial_fit`; `n_features_in_`.

    A zero vector has no direction: it is a cluster of one.
    """

    def __init__(
        self,
        tau: float | None = None,
        max_levels: int | None = None,
        model: Any = None,
        *,
        base_tau: float | None = None,
        adapter: str | os.PathLike[str] | None = None,
        index: str = "exact",
        metric: str = "cosine",
        min_cluster_size: int = 1,
        random_state: Any = None,
    ) -> None:
        self.tau = tau
        self.max_levels = max_levels
        self.model = model
        self.base_tau = base_tau
        self.adapter = adapter
        self.index = index
        self.metric = metric
        self.min_cluster_size = min_cluster_size
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Cluster the rows of X (n, d), and forget what was there before. `y` is ignored."""
        refuse_masked("X", X)
        rows = validate_data(self, X, dtype=np.float64, ensure_min_samples=1)
        self._begin(rows)
        return self._take(rows)

    def partial_fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Insert the rows of X (n, d) in addition to the present ones; `labels_` cover all of them.

        Warns where metric="euclidean" and they lie far outside the first rows, which gave the scale.
        """
        first = not hasattr(self, "labels_")
        refuse_masked("X", X)
        rows = validate_data(self, X, dtype=np.float64, reset=first)
        if first:
            self._begin(rows)
        self._need_unchanged()
        self._warn_of_distance(rows)
        return self._take(rows)

    def predict(self, X: ArrayLike) -> Int64:
        """Return the label of each row of X (m, d), were it inserted alone; -1: in no cluster that has one.

        Changes nothing. The cluster is that of the most probable linkage above tau.
        """
        check_is_fitted(self)
        refuse_masked("X", X)
        rows = validate_data(self, X, dtype=np.float64, reset=False)
        grid, usable = self._on_grid(rows)
        out = np.full(len(rows), NEW, np.int64)
        found = assign(self._state, self._adapted(grid[usable]))
        label = dict(zip(self.cluster_ids_.tolist(), self.labels_.tolist(), strict=True))
        out[usable] = [label.get(cluster, NEW) for cluster in found.tolist()]
        return out

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the items to a new store, with keys "0", "1", ... in their order, for `Engine.open`.

        Zero vectors are left out; with metric="euclidean" vectors are stored as they were clustered. Raises
        StoreError, and InputError where the folder holds a store with items.
        """
        check_is_fitted(self)
        state = self._state
        keys = [b"%d" % row for row in np.flatnonzero(self._usable).tolist()]
        rows = state.items.find(keys)
        if self._adapter is None:
            grid = state.hierarchy.base.nodes.vectors[state.items.nodes[rows]]
        else:
            grid = np.concatenate(self._incoming)
        settings = self._settings.in_folder(Path(folder))
        with Engine.open(settings, self._model) as engine:
            if len(engine):
                raise InputError(
                    f"{folder} holds a store with {counted(len(engine), 'item')}: name a new folder"
                )
            engine.apply(Batch(keys, grid, state.items.times[rows], [b""] * len(keys)))

    def _begin(self, rows: Float64) -> None:
        """Check the parameters, and start from nothing with the scale of these rows."""
        if self.metric not in METRICS:
            raise InputError(f"metric is one of {', '.join(METRICS)}, not {self.metric!r}")
        least: Any = self.min_cluster_size
        if not isinstance(least, Integral) or least < 1:
            raise InputError(f"min_cluster_size is an integer from 1 on, not {least!r}")
        if self.adapter is not None and self.metric != "cosine":
            raise InputError('an adapter is for embeddings: leave metric at "cosine"')
        settings = self._checked_settings()
        if not (self._is_named() or isinstance(self.model, LinkageModel | LanderModel)):
            raise InputError(f"model is a file, a model or None, not {self.model!r}")
        model: Trained = load_model(settings) if self._is_named() else self.model
        adapter = load_adapter(settings)
        require_adapter(model, adapter)
        dim = space_dim(adapter, rows.shape[1] + (self.metric == "euclidean"))
        state: State = empty_state(settings, model, dim)
        rng = check_random_state(self.random_state)
        self._begun = {name: getattr(self, name) for name in FIXED}
        self._center, self._scale = np.zeros(rows.shape[1]), 1.0
        if self.metric == "euclidean":
            self._center, self._scale = _center_and_spread(rows)
        self._settings, self._model, self._usable = settings, model, np.zeros(0, np.bool_)
        self._state, self._adapter, self._rng = state, adapter, rng
        self._incoming: list[Int16] = []  # of usable rows, where an adapter changes them

    def _is_named(self) -> bool:
        """Return whether `model` is a file or the one that ships, not a model."""
        return self.model is None or isinstance(self.model, str | os.PathLike)

    def _need_unchanged(self) -> None:
        """Raise InputError where a parameter that the items there were clustered with is another one now."""
        for name, then in self._begun.items():
            now = getattr(self, name)
            if now is not then and now != then:
                raise InputError(
                    f"{name} was {then!r} at the first fit and is {now!r} now: `fit` starts over with it"
                )

    def _warn_of_distance(self, rows: Float64) -> None:
        """Warn where the scale of the first rows makes these all look alike; n > 0."""
        if self._begun["metric"] != "euclidean":
            return
        far = float(np.sqrt((self._scaled(rows) ** 2).sum(axis=1).mean()))
        if far > FAR:
            warnings.warn(
                f"these rows lie {far:,.1f} times as far from the first data's mean as those did, and "
                'metric="euclidean" is scaled by those: `fit` on all rows scales again',
                stacklevel=3,
            )

    def _checked_settings(self) -> Settings:
        given = {name: getattr(self, name) for name in ("index", "tau", "base_tau", "max_levels", "adapter")}
        if self._is_named():
            given["model"] = self.model
        return with_options({name: value for name, value in given.items() if value is not None})

    def _scaled(self, rows: Float64) -> Float64:
        """Return rows (n, d) centred and scaled by the first data; unchanged where metric="cosine"."""
        return (rows - self._center) / self._scale

    def _on_grid(self, rows: Float64) -> tuple[Int16, Bool]:
        """Return the vectors of rows (n, d), and which of them have a direction, (n,)."""
        moved = self._scaled(rows)
        usable: Bool = np.asarray(moved.any(axis=1))
        if self._begun["metric"] == "euclidean":
            moved = np.concatenate([moved, np.full((len(rows), 1), LIFT)], axis=1)
            usable = np.ones(len(rows), np.bool_)
        return quantize(moved)[0], usable

    def _adapted(self, grid: Int16) -> Int16:
        return grid if self._adapter is None else self._adapter.apply(grid)

    def _take(self, rows: Float64) -> Self:
        grid, usable = self._on_grid(rows)
        first = len(self._usable)
        entering = np.flatnonzero(usable)
        if self._begun["index"] == "hnsw":
            entering = self._rng.permutation(entering)
        keys = [b"%d" % (first + row) for row in entering.tolist()]
        if keys:
            now = int(1000 * time.time())
            times = np.full(len(keys), now)
            batch = Batch(keys, self._adapted(grid[entering]), times, [b""] * len(keys))
            pipeline.step(self._state, batch, now)
        self._usable = np.concatenate([self._usable, usable])
        if self._adapter is not None:
            self._incoming.append(grid[usable])
        self._read()
        return self

    def _read(self) -> None:
        """Write the attributes that users read, from the state."""
        state, count = self._state, len(self._usable)
        known = np.flatnonzero(self._usable)
        nodes = state.items.nodes[state.items.find([b"%d" % row for row in known.tolist()])]
        paths = np.zeros((count, state.names.trees.paths.shape[1]), np.int64)
        handles = state.handles[state.hierarchy.base.root[nodes]]
        paths[known] = state.names.trees.paths[np.searchsorted(state.names.trees.handles, handles)]
        alone = np.flatnonzero(~self._usable)
        paths[alone] = -1 - alone[:, None]  # ids that no cluster has
        self.cluster_ids_ = paths[:, -1].copy()
        self.levels_ = np.stack([by_occurrence(column)[1] for column in paths.T], axis=1)
        final = self.levels_[:, -1]
        small = np.bincount(final)[final] < self.min_cluster_size
        self.labels_ = np.full(count, NEW)
        self.labels_[~small] = by_occurrence(final[~small])[1]
        self.probabilities_ = np.zeros(count)
        self.probabilities_[known] = strengths(state)[nodes]

    def __getstate__(self) -> dict[str, Any]:
        if hasattr(self, "_state") and self._begun["index"] == "hnsw":
            raise InputError('a fitted HiLander with index="hnsw" cannot be pickled: `save` it as a store')
        kept: dict[str, Any] = super().__getstate__()
        return kept

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "labels_")


def _center_and_spread(rows: Float64) -> tuple[Float64, float]:
    """Return the mean (d,) of rows (n, d), and the root mean square distance from it; 1 where that is 0.

    In units near the largest component, so that no sum or square overflows or vanishes.
    """
    unit = _power_of_two(rows)
    center = (rows / unit).mean(axis=0)
    moved = rows / unit - center
    largest = _power_of_two(moved)
    spread = unit * largest * float(np.sqrt(((moved / largest) ** 2).sum(axis=1).mean()))
    return unit * center, spread if 0.0 < spread < np.inf else 1.0


def _power_of_two(values: Float64) -> float:
    """Return the power of two at or below the greatest magnitude, by which division is exact; 1 for zeros."""
    largest = float(np.abs(values).max())
    return math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest else 1.0
