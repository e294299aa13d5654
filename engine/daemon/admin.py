"""Operations of a running writer for operators: rebuild, erase, compact; and retention while it is idle."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

from engine.collection.collection import Engine
from engine.config import RENEWED, Settings
from engine.config_problems import sentence_of
from engine.errors import InputError, WriterBusy
from engine.streams import Body, Handler
from engine.types import Applied, Float32


class Admin:
    """The operations. `between` runs work between two batches, in the thread that applies batches."""

    def __init__(self, engine: Engine, between: Callable[[Callable[[], Any]], Any]) -> None:
        self._engine, self._between = engine, between
        self._renewing = threading.Lock()

    @property
    def handlers(self) -> Mapping[str, Handler]:
        return {"rebuild": self._rebuild, "erase": self._erase, "compact": self._compact}

    def expire(self) -> Applied | None:
        """Delete what the clock alone makes due; a batch deletes what is due with it. None: nothing is."""
        return None if self._engine.store.log_is_full() else self._engine.expire()

    def _rebuild(self, body: Body, vectors: Float32 | None) -> Body:
        """`model` and `index`: settings of these sections that change."""
        with self._alone():
            return asdict(self._engine.rebuild(changed(self._engine.settings, body)))

    def _erase(self, body: Body, vectors: Float32 | None) -> Body:
        with self._alone():
            return asdict(self._engine.erase(str(body["key"]), between=self._between))

    def _compact(self, body: Body, vectors: Float32 | None) -> Body:
        return asdict(self._between(self._engine.compact))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Allow one at a time: an index built from a copy would bring back an item erased meanwhile."""
        if not self._renewing.acquire(blocking=False):
            raise WriterBusy("another rebuild or erasure is in progress; run it again when it has ended")
        try:
            yield
        finally:
            self._renewing.release()


def changed(settings: Settings, body: Body) -> Settings:
    """Return the settings with the sections of a rebuild request put over them. Raises InputError."""
    document = settings.model_dump()
    try:
        for section in RENEWED:
            document[section] |= body.get(section) or {}
        return Settings.model_validate(document)
    except ValidationError as problem:
        told = sentence_of(problem, {"the request": body}, Settings)
        raise InputError(f"the daemon cannot rebuild with these settings. {told}") from None
    except (ValueError, TypeError) as problem:
        raise InputError(f"the daemon cannot rebuild with these settings: {problem}") from None
