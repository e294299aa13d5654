"""The themes of a store, computed from one version of it: where no writer runs to be asked for them."""

from __future__ import annotations

from engine.clustering import themes
from engine.collection.build import clustered
from engine.config import Settings
from engine.errors import CorruptStore, InputError
from engine.storage.environment import reading_made
from engine.storage.load import load
from engine.types import Themes


def themes_of(settings: Settings) -> Themes:
    """Return the themes at each tau of `[model] coarser`; changes nothing.

    Not within a process that has the store open. Raises NoStore, CorruptStore, ConfigMismatch (the settings
    are not those of the store) and InputError (too many clusters).
    """
    path, taus = settings.store.path, settings.model.coarser
    with reading_made(path) as (tables, config):
        loaded = load(tables)
    if not len(loaded.items.ids):
        return themes.none(loaded.version, len(taus))
    state = clustered(settings, config, loaded)
    if not state.settle(loaded.places):
        raise CorruptStore(
            f"{path}: its clusters are not those of its lists; run `shoal rebuild` to repair it"
        )
    ground = themes.prepare(state, settings.limits.theme_clusters)
    assert ground is not None
    return themes.grow(ground, taus)


def check_step(step: int, most: int) -> None:
    """Raise InputError where there is no such level above the final clusters."""
    if not 1 <= step <= most:
        is_ = "are" if most > 1 else "is"
        there = f"levels +1 to +{most}" if most > 1 else "level +1" if most else "no level"
        raise InputError(f"level +{step}: above the final clusters there {is_} {there} ([model] coarser)")
