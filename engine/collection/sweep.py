"""A store clustered at several taus: what `shoal tune` compares.

Lists and linkage of level 0 do not depend on tau, nor do its trees where the model has a tau of its own for
them: the levels above it are made anew for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from engine.clustering.resume import resume
from engine.clustering.state import State
from engine.collection import snapshots
from engine.collection.build import load_model, unclustered
from engine.config import Settings
from engine.errors import InputError
from engine.storage.environment import reading_made
from engine.storage.load import load
from engine.system.stopwatch import Stopwatch
from engine.types import Int64


@dataclass(frozen=True, slots=True)
class Sweep:
    """The final clusters of n items at T taus, which rise."""

    keys: Sequence[str]
    payloads: Sequence[bytes]  # JSON, b"" for none
    taus: Sequence[float]
    clusters: Int64  # (T, n), named by a number without meaning
    current: int  # where in `taus` the store's own is


def sweep_of(settings: Settings, taus: Sequence[float]) -> Sweep:
    """Return the clusters of the settings' store at these taus and at its own; changes nothing.

    Reads one version, also while a daemon writes. Not within a process that has the store open. Raises
    NoStore, InputError (it is empty), CorruptStore, ConfigMismatch (another model).
    """
    path = settings.store.path
    with reading_made(path) as (tables, config):
        loaded = load(tables)
    items = loaded.items
    if not len(items.ids):
        raise InputError(f"{path} is empty: there is nothing to tune")
    own = _at_its_tau(settings, config)
    state = unclustered(own, config, loaded)
    state.restore_lists(loaded)
    saved = snapshots.load_levels(path, state.version, snapshots.dependencies(state, load_model(own)))
    resume(state.hierarchy, saved, state.calibration.epoch, Stopwatch())
    tau = state.hierarchy.shape.tau
    every = sorted({*taus, tau})
    nodes = state.items.nodes[state.items.all_rows()]
    clusters = np.stack([_clusters_at(state, each)[nodes] for each in every])
    keys = [key.decode(errors="replace") for key in items.keys]
    return Sweep(keys, items.payloads, every, clusters, every.index(tau))


def _at_its_tau(settings: Settings, config: Mapping[str, Any]) -> Settings:
    """Return the settings with the store's tau and number of levels: the others are what is asked for."""
    stored = {name: config.get(name) for name in ("tau", "base_tau", "max_levels")}
    return settings.model_copy(update={"model": settings.model.model_copy(update=stored)})


def _clusters_at(state: State, tau: float) -> Int64:
    """Return the final cluster of each row of level 0; the levels above it are then those of this tau."""
    hierarchy = state.hierarchy
    hierarchy.retune(tau, state.calibration.epoch)
    roots = np.asarray(hierarchy.base.root[: hierarchy.base.nodes.rows])
    for lower, upper in pairwise(hierarchy.levels):
        roots = upper.root[lower.above[roots]]
    return roots.astype(np.int64)
