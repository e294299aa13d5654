"""The part of `check` that computes: the partition anew from the lists, and the snapshots against it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine import vectors
from engine.clustering import pipeline
from engine.clustering.resume import Saved, capture
from engine.clustering.state import State
from engine.collection import derived, snapshot
from engine.collection.collection import load_model, shape_of, store_config
from engine.collection.saver import depends
from engine.config import Settings
from engine.errors import ConfigMismatch
from engine.index.base import ExactIndex
from engine.model.linkage import LinkageModel
from engine.storage.invariants import Contents
from engine.storage.store import compare
from engine.system.stopwatch import Stopwatch

_REBUILD = "`shoal rebuild` mends it"


def recompute(settings: Settings, contents: Contents) -> State:
    """The state that follows from the lists. Raises ConfigMismatch, InputError: the settings are others."""
    model = load_model(settings)
    wanted = store_config(settings, model)
    compare(settings.store.path, contents.config, {**wanted, "format": contents.config.get("format")})
    if contents.config.get("arithmetic") != wanted["arithmetic"]:
        raise ConfigMismatch("this processor computes other last bits than the one that wrote the store")
    dim = contents.loaded.items.vectors.shape[1]
    shape = shape_of(settings, model, dim)
    state = State.of(contents.loaded, shape, model, model.default_epoch, ExactIndex)
    if len(contents.loaded.items.ids):
        state.restore_lists(contents.loaded)
        state.hierarchy.restore(state.calibration.epoch, Stopwatch())
    return state


def partition(state: State, contents: Contents) -> list[str]:
    """Where the stored trees, clusters and places are not those of the recomputed partition.

    Naming it after the stored one must give the same names, and nothing to tell.
    """
    loaded = contents.loaded
    if not len(loaded.items.ids):
        return []
    problems = []
    if len(state.hierarchy.levels) != int(loaded.counters.get("levels", 1)):
        problems.append(f"there are {len(state.hierarchy.levels)} levels; {_REBUILD}")
    change = pipeline.regenerate(state, loaded.places, loaded.time_ms)
    ids, _, trees = change.moved
    moved = ids[trees != loaded.places]
    problems += [f"item {item} is in another tree; {_REBUILD}" for item in moved.tolist()]
    stored = contents.paths
    for tree in sorted(change.trees.keys() | stored.keys()):
        if change.trees.get(tree) != stored.get(tree):
            problems.append(f"tree {tree} is in other clusters; {_REBUILD}")
    problems += [f"cluster {record.id} has another record; {_REBUILD}" for record in change.clusters]
    return problems


def snapshots(settings: Settings, contents: Contents, state: State | None) -> list[str]:
    """What is wrong with the caches beside LMDB, which a start would pass over; or worse, would not."""
    folder = settings.store.path
    return [*_index(settings, folder, contents), *_derived(folder, contents, state)]


def _index(settings: Settings, folder: Path, contents: Contents) -> list[str]:
    """The graph's vectors are those of the items, and its items those there are or were."""
    problems = []
    loaded = contents.loaded
    for version in snapshot.saved(folder):
        if version > loaded.version:  # written since
            continue
        found = snapshot.content(folder, version)
        if found is None:
            if version in snapshot.saved(folder):
                problems.append(f"index-{version} is damaged; delete it, the next start builds the index")
            continue
        items, floats = found
        at = np.minimum(np.searchsorted(loaded.items.ids, items), max(len(loaded.items.ids) - 1, 0))
        if not len(loaded.items.ids):
            continue
        held = (loaded.items.ids[at] == items) & (loaded.items.versions[at] <= version)
        if not np.array_equal(floats[held], vectors.as_float(loaded.items.vectors[at[held]])):
            problems.append(f"index-{version} has other vectors than the store; delete it")
        if (
            version == loaded.version
            and settings.index.kind == "hnsw"
            and len(items) != len(loaded.items.ids)
        ):
            problems.append(f"index-{version} has {len(items)} items, not {len(loaded.items.ids)}; delete it")
    return problems


def _derived(folder: Path, contents: Contents, state: State | None) -> list[str]:
    problems = []
    for version in derived.versions(folder):
        if version > contents.loaded.version:
            continue
        if not derived.is_whole(folder, version):
            if version in derived.versions(folder):
                problems.append(f"derived-{version} is damaged; delete it, the next start computes it")
            continue
        if (
            state is None
            or version != contents.loaded.version
            or not isinstance(state.hierarchy.model, LinkageModel)
        ):
            continue
        saved = derived.read(folder, version, depends(state, state.hierarchy.model))
        if saved is not None and not _same(saved, capture(state.hierarchy, state.contents())):
            problems.append(f"derived-{version} is not what follows from the lists; delete it")
    return problems


def _same(saved: list[Saved], computed: list[Saved]) -> bool:
    """Whether the nodes of each level have the same content, embeddings, linkage and density."""
    if len(saved) != len(computed):
        return False
    for mine, theirs in zip(saved, computed, strict=True):
        one, other = np.argsort(mine.content), np.argsort(theirs.content)
        for name in ("content", "basis", "hidden", "linkage", "density"):
            if not np.array_equal(getattr(mine, name)[one], getattr(theirs, name)[other]):
                return False
        if not np.array_equal(mine.content[mine.root[one]], theirs.content[theirs.root[other]]):
            return False
    return True
