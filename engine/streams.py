"""What the daemon asks of a source of records, and how one is plugged in.

`connectors` has the sources, `engine.cli.main` hands them to the writer; see `engine.daemon.writer`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from engine.config import Settings
from engine.daemon.control import Handler
from engine.types import Applied, Batch


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a source is behind. An unknown lag is not 0: leave the partition out."""

    records: Mapping[str, int] = field(default_factory=dict)  # partition -> records not taken yet
    oldest_unread_s: float = 0.0  # since the oldest of them came to be, 0 where there is none

    @property
    def total(self) -> int:
        return sum(self.records.values())


class Source(Protocol):
    """Where batches come from. One thread polls; `lag` and the handlers may be called from any."""

    name: str  # for people and logs: "http", "kafka:topic"

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """Operations of the control socket that are this source's: `submit` of HTTP. May be empty."""
        ...

    def poll(self, size: int, timeout_s: float) -> Batch | None:
        """The net effect of at most `size` records, with the positions behind them.

        Waits at most `timeout_s` for the first record and for no further one, None: there was none. A batch
        is handed over once; if it cannot be committed, the process ends and starts at the committed position.
        Raises a ShoalError where the source cannot go on: the daemon ends with its sentence.
        """
        ...

    def committed(self, applied: Applied) -> None:
        """The last batch is durable."""
        ...

    def lag(self) -> Lag: ...

    def close(self) -> None:
        """Let go of connections and threads; callers that still wait are told."""
        ...


@dataclass(frozen=True, slots=True)
class Ground:
    """What a source finds in the store when it is opened."""

    settings: Settings
    identity: str  # of the store
    position: Callable[[str], bytes | None]  # the next position under a name, None: begin
    version: Callable[[], int]  # the last committed one
    dim: Callable[[], int | None]  # of the vectors; None until the first


OpenSource = Callable[[Ground], Source]


class NoSource:
    """Nothing comes in; a store is there to be asked."""

    name = "none"
    handlers: Mapping[str, Handler] = {}

    def poll(self, size: int, timeout_s: float) -> Batch | None:
        time.sleep(timeout_s)
        return None

    def committed(self, applied: Applied) -> None:
        raise AssertionError("nothing was handed over")

    def lag(self) -> Lag:
        return Lag()

    def close(self) -> None:
        """Nothing to let go of."""
