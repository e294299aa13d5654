"""Protocols between the daemon and its connectors: a source of records, a sink for events; lines of bytes.

`connectors` implements them, `engine.cli.parts` hands them to the writer and the publisher.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from engine.config import Settings
from engine.events import EventId
from engine.types import Applied, Batch, Event, Float32

Body = dict[str, Any]
Handler = Callable[[Body, "Float32 | None"], Mapping[str, Any]]  # an operation of the control socket


@dataclass(frozen=True, slots=True)
class Line:
    """`text` None: the line was longer than the bound. `end`: the byte behind it."""

    text: bytes | None
    end: int


class Lines:
    """Cuts bytes into lines as they come; at most `most` bytes of an unfinished one are held.

    `at`: the byte at which reading begins.
    """

    def __init__(self, most: int, at: int = 0) -> None:
        self._most, self._at, self._rest = most, at, b""
        self._dropped = 0  # bytes of a long line that are not held

    def feed(self, piece: bytes) -> Iterator[Line]:
        """Yield the lines that are complete, without their breaks."""
        *whole, self._rest = (self._rest + piece).split(b"\n")
        for text in whole:
            self._at += len(text) + self._dropped + 1
            yield Line(None if self._dropped or len(text) > self._most else text, self._at)
            self._dropped = 0
        if len(self._rest) > self._most:
            self._dropped, self._rest = self._dropped + len(self._rest), b""

    def end(self) -> Iterator[Line]:
        """Yield the last line, where it lacks its break."""
        if self._rest or self._dropped:
            end = self._at + self._dropped + len(self._rest)
            yield Line(None if self._dropped else self._rest, end)


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a source is behind. Omit partitions whose lag is unknown; do not report 0."""

    records: Mapping[str, int] = field(default_factory=dict)  # partition -> records not read yet
    oldest_unread_s: float = 0.0  # age of the oldest of them, 0 where there is none

    @property
    def total(self) -> int:
        return sum(self.records.values())


class Source(Protocol):
    """Supplies batches. One thread calls `poll`; any thread may call `lag` and the handlers."""

    name: str  # for people and logs: "http", "kafka:topic"

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """Return the source's own operations on the control socket, such as HTTP's `submit`. May be empty."""
        ...

    def poll(self, size: int, timeout_s: float) -> Batch | None:
        """Return the net effect of at most `size` records, with the next positions; None if there is none.

        Wait at most `timeout_s` for the first record, and for no further one. A batch is returned once; if it
        cannot be committed, the process ends and restarts at the committed position. Raises a ShoalError
        where the source cannot continue: the daemon then ends with its message.
        """
        ...

    def committed(self, applied: Applied) -> None:
        """Take note that the last batch is durable. Called by the thread that polls, once for each batch."""
        ...

    def lag(self) -> Lag:
        """Return how far the source is behind. Any thread may call it; it does not block."""
        ...

    def close(self) -> None:
        """Release connections and threads; fail the callers that still wait."""
        ...


@dataclass(frozen=True, slots=True)
class SourceContext:
    """What a source may ask about the store when it is opened."""

    settings: Settings
    identity: str  # of the store
    position: Callable[[str], bytes | None]  # the next position under a name; None: start at the beginning
    version: Callable[[], int]  # the last committed one
    dim: Callable[[], int | None]  # dimension of the vectors; None until the first
    holds: Callable[[bytes], bool] = lambda key: False  # whether an item has this key; between batches only


OpenSource = Callable[[SourceContext], Source]


class NoSource:
    """A source without records: the store is only read."""

    name = "none"
    handlers: Mapping[str, Handler] = {}

    def poll(self, size: int, timeout_s: float) -> Batch | None:
        time.sleep(timeout_s)
        return None

    def committed(self, applied: Applied) -> None:
        raise AssertionError("no batch was returned")

    def lag(self) -> Lag:
        return Lag()

    def close(self) -> None:
        """Do nothing."""


class SinkAway(Exception):
    """The sink is unreachable, or the outcome of the last publish is unknown: call `resume`."""


class Sink(Protocol):
    """Takes events, each exactly once."""

    def resume(self) -> EventId | None:
        """Connect, abort an unfinished transaction, and return the place of the last published event.

        None if nothing was published. Raises SinkAway; a ShoalError where only an operator can help.
        """
        ...

    def publish(self, events: Sequence[tuple[EventId, Event]]) -> None:
        """Publish all of these events or none, and record the last one's place with them."""
        ...

    def close(self) -> None:
        """Release the connection. `resume` of the next sink aborts an open transaction."""
        ...


OpenSink = Callable[[Settings, str, str], Sink]  # settings, collection, the store's identity
