"""What an operator asks of a running writer: rebuild, erase, compact; and retention while it is idle."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from engine.collection import erase
from engine.collection import rebuild as generation
from engine.config import RENEWED, Settings
from engine.daemon.writer import Extension, Writer
from engine.errors import InputError, WriterBusy
from engine.streams import Body
from engine.types import Float32


def operations(writer: Writer) -> Extension:
    """The operations and chores of a writer."""
    engine, patience_s = writer.engine, writer.settings.bounds.stop_timeout_s
    renewing = threading.Lock()

    def rebuild(body: Body, vectors: Float32 | None) -> Body:
        """`model` and `index`: what is to be otherwise in these sections of the settings."""
        with _alone(renewing):
            return asdict(generation.rebuild(engine, _changed(engine.settings, body)))

    def erase_item(body: Body, vectors: Float32 | None) -> Body:
        with _alone(renewing):
            return asdict(erase.erase(engine, str(body["key"]), between=between))

    def compact(body: Body, vectors: Float32 | None) -> Body:
        return asdict(between(engine.compact))

    def between(work: Any) -> Any:
        return writer.between(work, patience_s)

    def expire() -> None:
        """What the clock alone makes due; a batch takes what is due with it."""
        begun = time.monotonic()
        if not engine.store.log_is_full() and (applied := engine.expire()):
            writer.metrics.committed(applied, time.monotonic() - begun)

    return Extension({"rebuild": rebuild, "erase": erase_item, "compact": compact}, [expire])


@contextmanager
def _alone(renewing: threading.Lock) -> Iterator[None]:
    """An index that is made of a copy would bring back what an erasure beside it has removed."""
    if not renewing.acquire(blocking=False):
        raise WriterBusy("another rebuild or erasure is at work; run it again when it has ended")
    try:
        yield
    finally:
        renewing.release()


def _changed(settings: Settings, body: Body) -> Settings:
    """The settings with what the operator wants otherwise. Raises InputError."""
    document = settings.model_dump()
    try:
        for section in RENEWED:
            document[section] |= body.get(section) or {}
        return Settings.model_validate(document)
    except (ValueError, TypeError) as problem:
        raise InputError(f"the daemon cannot rebuild with these settings: {problem}") from None
