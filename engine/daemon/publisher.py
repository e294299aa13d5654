"""The publisher process: reads the event log and publishes new events to a sink.

The sink stores the position of the last published event in the transaction that publishes it. The writer is
told, so that its log keeps events until they are published.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event as Flag
from typing import Any

from engine.backoff import Backoff
from engine.config import Settings
from engine.daemon.control import Control
from engine.errors import BrokerError, NoStore, ShoalError
from engine.events import BEGIN, EventId, format_event_id
from engine.storage.reader import View
from engine.streams import OpenSink, Sink, SinkAway
from engine.system import logs
from engine.types import Event

POLL_S = 0.01  # between two looks for a new version
TELL_S = 0.5  # between two reports to the writer
BACKOFF_S = 0.2, 5.0  # before a sink that is away is tried again: first, last
STORE_POLL_S = 0.1
TELL_TIMEOUT_S = 1.0


@dataclass(slots=True)
class Published:
    """Progress, as reported to the writer and its metrics."""

    place: EventId = BEGIN
    retain_from_version: int = 0  # the first version of which something is not published yet
    version: int = 0  # of the store
    assignments: int = 0
    clusters: int = 0
    dead_letters: int = 0


class Publisher:
    """Publishes until `stopping` is set. Not thread-safe."""

    def __init__(
        self, view: View, sink: Sink, settings: Settings, tell: Callable[[Published], None], stopping: Flag
    ) -> None:
        self._view, self._sink, self._limits = view, sink, settings.limits
        self._tell, self._stopping = tell, stopping
        self.published = Published()
        self._told_at = 0.0
        self._log = logs.get()

    def run(self) -> None:
        """Publish events until stopped. Raises BrokerError, StoreError."""
        backoff = Backoff(*BACKOFF_S)
        try:
            while not self._stopping.is_set():
                try:
                    self._begin(self._sink.resume())
                    while not self._stopping.is_set():
                        if not self.advance():
                            self._stopping.wait(POLL_S)
                        else:
                            backoff.reset()
                except SinkAway as problem:
                    delay_s = backoff.next_s()
                    self._log.warning("publishing paused", reason=str(problem), again_s=delay_s)
                    self._report(now=True)
                    self._stopping.wait(delay_s)
            self._report(now=True)
        finally:
            self._sink.close()

    def advance(self) -> bool:
        """Publish a slice of the log; return False if there was nothing new.

        Raises SinkAway, BrokerError and StoreError.
        """
        done = self.published
        version = self._view.version
        if version == done.version and done.retain_from_version > version:
            self._report()
            return False
        limits = self._limits
        out = self._view.unpublished(done.place, limits.publish_events, limits.publish_bytes)
        if out.forgot > done.place:
            raise BrokerError(
                f"Events behind version {done.place[0]} up to version {out.forgot[0]} were forgotten before "
                "they were published: delete the outgoing topics and the store, and read the source into a "
                "new one."
            )
        if out.events:
            self._sink.publish(out.events)
        self._count(out.events)
        done.place, done.version = out.place, out.version
        done.retain_from_version = out.place[0] if out.events else out.version + 1
        self._report()
        return bool(out.events)

    def _begin(self, place: EventId | None) -> None:
        """Continue behind `place`, if the store has that version and still has the events behind it."""
        head = self._view.head()
        if place and place[0] > head.version:
            raise BrokerError(
                f"Version {place[0]} was published, but the store is at {head.version}: it is an older copy."
                " Delete the outgoing topics, and it publishes from the beginning."
            )
        if place != self.published.place or self.published.retain_from_version == 0:
            self.published.place, self.published.retain_from_version = place or BEGIN, (place or BEGIN)[0]
        self.published.version = 0
        behind = format_event_id(self.published.place) if place else "the beginning"
        self._log.info("publishing", behind=behind)

    def _count(self, events: Sequence[tuple[EventId, Event]]) -> None:
        for _, event in events:
            name = _COUNTED[type(event).__name__]
            setattr(self.published, name, getattr(self.published, name) + 1)

    def _report(self, now: bool = False) -> None:
        if now or time.monotonic() - self._told_at >= TELL_S:
            self._told_at = time.monotonic()
            self._tell(self.published)


_COUNTED = {"Assignment": "assignments", "LineageEvent": "clusters", "DeadLetter": "dead_letters"}


def run(settings: Settings, open_sink: OpenSink) -> None:
    """Run the publisher process: wait for the store, then publish until SIGTERM. Raises ShoalError."""
    stopping = Flag()

    def stop(number: int, frame: object) -> None:
        if stopping.is_set():
            return
        stopping.set()
        raise _Stopped  # also out of a call to a sink that is away; nothing is half done in the store

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(_Stopped):
        view = _wait_for_store(settings, stopping)
        with view, Control(settings.store.path, TELL_TIMEOUT_S, settings.control) as control:
            sink = open_sink(settings, view.collection, view.identity)
            publisher = Publisher(
                view, sink, settings, lambda told: _tell_writer(control, view, told), stopping
            )
            publisher.run()


class _Stopped(BaseException):
    """SIGTERM came."""


def _wait_for_store(settings: Settings, stopping: Flag) -> View:
    while True:
        try:
            return View.open(settings.store.path, settings.limits.map_size_bytes)
        except NoStore:
            stopping.wait(STORE_POLL_S)


def _tell_writer(control: Control, view: View, published: Published) -> None:
    """Report progress; if the writer is away, the next report will do."""
    body: dict[str, Any] = {
        "version": published.retain_from_version,
        "lag_events": view.behind(published.place),
        "events": {
            "assignments": published.assignments,
            "clusters": published.clusters,
            "dlq": published.dead_letters,
        },
    }
    with contextlib.suppress(ShoalError):
        control.call("published", body)
