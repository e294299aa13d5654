"""Snapshots of a live state, for a quick start: copied between two batches, written out beside the next."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.clustering.resume import capture
from engine.clustering.state import State
from engine.collection import derived, snapshot
from engine.index.hnsw import HnswIndex
from engine.model.linkage import LinkageModel
from engine.system import determinism

_CACHES = ("index-*", "index.saving", "derived-*", "derived.saving")


class Saver:
    """The snapshots beside a store. One is written at a time, by `executor`, or at once without one."""

    def __init__(self, folder: Path, executor: Executor | None = None, free_bytes: int = 0) -> None:
        """`free_bytes`: of the disk, that others need while one is written beside them."""
        self.folder = folder
        self._executor, self.free_bytes = executor, free_bytes
        self._writing: Future[None] | None = None

    def begin(self, state: State, model: LinkageModel) -> bool:
        """Copy the state and have it written; False: the one before is not written yet.

        One that cannot be written is given up: the next start takes longer then, nothing is lost.
        """
        if self._writing is not None and not self._writing.done():
            return False
        self.wait()
        if self._executor is None:
            _tolerant(prepared(self.folder, state, model))
        elif self._has_room():
            self._writing = self._executor.submit(_tolerant, prepared(self.folder, state, model))
        return True

    def _has_room(self) -> bool:
        """Whether another one as large as those that are there, two at most, leaves enough to the batches."""
        try:
            there = sum(file.stat().st_size for pattern in _CACHES for file in self.folder.glob(pattern))
            return shutil.disk_usage(self.folder).free >= there + self.free_bytes
        except OSError:
            return False

    def wait(self) -> None:
        """Until nothing is being written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def clear(self) -> None:
        """All snapshots go. Raises OSError."""
        self.wait()
        for pattern in _CACHES:
            for file in self.folder.glob(pattern):
                file.unlink(missing_ok=True)


def prepared(folder: Path, state: State, model: LinkageModel) -> Callable[[], None]:
    """A copy of the state, as what writes it out, any time; that raises OSError."""
    version, index = state.version, state.hierarchy.base.lists.index
    graph = snapshot.copied(folder, version, index, state.ids) if isinstance(index, HnswIndex) else None
    levels, what = capture(state.hierarchy, state.contents()), depends(state, model)

    def write() -> None:
        if graph is not None:
            snapshot.save(folder, graph)
        derived.save(folder, version, what, levels)

    return write


def depends(state: State, model: LinkageModel) -> dict[str, Any]:
    """What all that is derived depends on, beside the lists of level 0."""
    return {
        "model": model.sha256,
        "arithmetic": determinism.fingerprint(),
        "shape": asdict(state.hierarchy.shape),
        "epoch": asdict(state.calibration.epoch),
    }


def _tolerant(write: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):
        write()
