"""From settings to the parts of a collection: model, shape, index, and what the store compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine.clustering.level import Shape
from engine.clustering.state import State
from engine.collection import snapshots
from engine.collection.space import space_dim
from engine.config import Settings
from engine.errors import ConfigMismatch, InputError
from engine.index.base import ExactIndex
from engine.index.columns import Nodes
from engine.index.hnsw import HnswIndex
from engine.model.adapter import Adapter
from engine.model.trained import Trained, check_dim, load
from engine.storage.store import compare
from engine.system import determinism
from engine.types import Loaded


def load_model(settings: Settings) -> Trained:
    """Return the settings' model, or the one that ships with Shoal. Raises InputError."""
    model = load(settings.model.path)
    if settings.model.adapter is None:
        require_adapter(model, None)
    return model


def require_adapter(model: Trained, adapter: Adapter | None) -> None:
    """Raise InputError where the model is for what another adapter makes of embeddings."""
    behind = model.card.about.get("adapter")
    if behind and (adapter is None or adapter.sha256 != behind):
        raise InputError(
            f"the model was trained behind the adapter {behind[:16]}..., which shoal train --adapter wrote: "
            "name its file with [model] adapter"
        )


def load_adapter(settings: Settings) -> Adapter | None:
    """Return the settings' adapter, None: there is none.

    Raises InputError: the file is none, or it takes another dimension than the settings say.
    """
    if settings.model.adapter is None:
        return None
    adapter = Adapter.load(settings.model.adapter)
    if settings.collection.dim is not None:
        space_dim(adapter, settings.collection.dim)
    return adapter


def shape_of(settings: Settings, model: Trained, dim: int) -> Shape:
    """Return the clustering's configuration: settings, and the model card where they are silent.

    `dim`: of the vectors that are clustered.
    """
    chosen = settings.model
    return Shape(
        dim=dim,
        k=model.k,
        tau=model.tau if chosen.tau is None else chosen.tau,
        max_levels=chosen.max_levels or model.max_levels,
        base_width=model.k + settings.limits.slack,
        # Wider than at level 0: a batch replaces many peaks, and a list that falls below k costs a search.
        peak_width=max(32, 2 * model.k),
        search_width=settings.limits.search_width,
        holders_max=settings.limits.holders_max,
        base_tau=model.base_tau if chosen.base_tau is None else chosen.base_tau,
    )


def own_base_tau(shape: Shape, model: Trained) -> float | None:
    """Return level 0's tau; None if it equals the model's, as in stores older than the setting."""
    return None if shape.base_tau == model.base_tau else shape.base_tau


def index_of(settings: Settings) -> Callable[[Nodes], ExactIndex | HnswIndex]:
    """Return the constructor of the settings' index."""
    chosen = settings.index
    if chosen.kind == "exact":
        return ExactIndex
    return lambda nodes: HnswIndex(nodes, M=chosen.M, ef_construction=chosen.ef_construction, ef=chosen.ef)


def empty_state(settings: Settings, model: Trained, dim: int) -> State:
    """Return the state of a collection without items. Raises InputError: the model's dimension differs."""
    check_dim(model, dim)
    return State.empty(shape_of(settings, model, dim), model, model.default_epoch, index_of(settings))


def unclustered(settings: Settings, config: Mapping[str, Any], loaded: Loaded) -> State:
    """Return the state of a store with this `config`, its lists not yet restored.

    Raises ConfigMismatch, InputError: the settings are others.
    """
    model, adapter = load_model(settings), load_adapter(settings)
    wanted = store_config(settings, model, adapter)
    compare(settings.store.path, config, {**wanted, "format": config.get("format")})
    if config.get("arithmetic") != wanted["arithmetic"]:
        raise ConfigMismatch(
            "the store was written on a CPU with different floating-point results; open it once with "
            "`shoal serve` or `shoal ingest`, which recomputes it"
        )
    shape = shape_of(settings, model, loaded.vectors.vectors.shape[1])
    return State.of(loaded, shape, model, model.default_epoch, ExactIndex)


def clustered(settings: Settings, config: Mapping[str, Any], loaded: Loaded) -> State:
    """Return the state of a store, clustered with what its snapshots have. Raises as `unclustered`."""
    state = unclustered(settings, config, loaded)
    state.restore_lists(loaded)
    snapshots.resume_levels(settings.store.path, state, config["model"])
    return state


def store_config(settings: Settings, model: Trained, adapter: Adapter | None) -> dict[str, Any]:
    """Return what the stored clusters depend on, as the store compares it.

    Raises InputError: the model is for what another adapter makes of embeddings.
    """
    require_adapter(model, adapter)
    shape = shape_of(settings, model, 1)
    return {
        "collection": settings.collection.name,
        "dim": adapter.dim_in if adapter else settings.collection.dim,
        "model": model.sha256,
        "adapter": adapter and adapter.sha256,
        "k": shape.k,
        "tau": shape.tau,
        "base_tau": own_base_tau(shape, model),
        "max_levels": shape.max_levels,
        "arithmetic": determinism.fingerprint(),
    }
