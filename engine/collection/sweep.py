"""A store clustered at several taus: what `shoal tune` compares.

Lists and linkage of level 0 do not depend on tau, nor do its trees if level 0 has its own tau: the levels
above it are built again for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.clustering.hierarchy import places
from engine.collection.build import clustered, load_model, own_base_tau
from engine.config import Settings
from engine.errors import InputError
from engine.storage.environment import reading_made
from engine.storage.load import load
from engine.types import Int64


@dataclass(frozen=True, slots=True)
class Sweep:
    """The final clusters of n items at T taus, which rise."""

    keys: Sequence[str]
    payloads: Sequence[bytes]  # JSON, b"" for none
    taus: Sequence[float]
    clusters: Int64  # (T, n), named by a number without meaning
    current: int  # where in `taus` the store's own is
    base_tau: float | None = None  # level 0's, None: the model's


class Sweeper:
    """Clusters the items of a store at one tau after another; changes nothing.

    Reads one version, also while a daemon writes. Not within a process that has the store open. Raises
    NoStore, InputError (it is empty), CorruptStore, ConfigMismatch (another model).
    """

    def __init__(self, settings: Settings) -> None:
        path = settings.store.path
        with reading_made(path) as (tables, config):
            loaded = load(tables)
        self.items = loaded.items
        if not len(self.items.ids):
            raise InputError(f"{path} is empty: there is nothing to tune")
        own = _at_its_taus(settings, config)
        self.state = clustered(own, config, loaded)
        self.shape = self.state.hierarchy.shape
        self.base_tau = own_base_tau(self.shape, load_model(own))

    def sweep(self, taus: Sequence[float], base_tau: float | None = None) -> Sweep:
        """Return the clusters at these taus and the store's own. `base_tau`: level 0's; None: the store's."""
        every = sorted({*taus, self.shape.tau})
        base = self.shape.base_tau if base_tau is None else base_tau
        clusters = np.stack([self._clusters_at(each, base) for each in every])
        keys = [key.decode(errors="replace") for key in self.items.keys]
        told = self.base_tau if base_tau is None else base_tau
        return Sweep(keys, self.items.payloads, every, clusters, every.index(self.shape.tau), told)

    def _clusters_at(self, tau: float, base_tau: float | None) -> Int64:
        """Return the final cluster of each item (n,); the state's levels are then those of these taus."""
        self.state.hierarchy.retune(tau, base_tau, self.state.calibration.epoch)
        levels, nodes = self.state.hierarchy.levels, self.state.items.nodes[self.state.items.all_rows()]
        return levels[-1].root[places(levels, nodes.astype(np.int64))[-1]].astype(np.int64)


def _at_its_taus(settings: Settings, config: Mapping[str, Any]) -> Settings:
    """Return the settings with the store's taus and number of levels: the others are what is asked for."""
    stored = {name: config.get(name) for name in ("tau", "base_tau", "max_levels")}
    return settings.with_model(**stored)
