"""What the daemon asks of a source of records, and how one is plugged in.

`connectors` has the sources, `engine.cli.main` hands them to the writer; see `engine.daemon.writer`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from engine.config import Settings
from engine.events import Place
from engine.types import Applied, Batch, Event, Float32

Body = dict[str, Any]
Handler = Callable[[Body, "Float32 | None"], Mapping[str, Any]]  # an operation of the control socket


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


class SinkAway(Exception):
    """The sink cannot be reached now, or what became of the last slice is not known: resume."""


class Sink(Protocol):
    """Where events go."""

    def resume(self) -> Place | None:
        """Connect, end what was left half done, and return the place of the last event published.

        None: nothing was. Raises SinkAway; a ShoalError where only an operator helps.
        """
        ...

    def publish(self, events: Sequence[tuple[Place, Event]]) -> None:
        """All of these events or none, and that the last of them is the last one published."""
        ...

    def close(self) -> None: ...


OpenSink = Callable[[Settings, str, str], Sink]  # settings, collection, the store's identity
