"""The writer process: applies batches from a source to the engine and serves the control socket.

    source.poll -> engine.apply -> source.committed      in a loop, on the thread of `Writer.run`

Handlers run on threads of their own. Work that must not run during a batch runs on the loop's thread, between
two batches: `Writer.between`. A source may add operations: `Source.handlers`.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime  # Python 3.10 has one of its own
from typing import Any, TypeVar

from engine.collection.collection import Engine
from engine.collection.warm_up import warm_up
from engine.config import BatchSettings, Settings
from engine.daemon.admin import Admin
from engine.daemon.assign_queue import AssignQueue
from engine.daemon.control import Listener
from engine.daemon.metrics import Metrics
from engine.daemon.theme_keeper import ThemeKeeper
from engine.errors import InputError, WriterAway, WriterBusy
from engine.streams import Body, Handler, OpenSource, Source, SourceContext
from engine.system import logs, scheduling
from engine.types import Applied, Batch, Float32

POLL_S = 0.05  # longest wait for a record, and so for work between batches
EXPIRE_S = 1.0  # between two checks for expired items
LOG_S = 1.0  # between two log lines about batches
READERS_S = 60.0  # between two checks for dead readers
ANSWERING = ("control", "caller", "assign")  # threads that are scheduled before a batch
LOG_FULL = "event log full of unpublished events; check the publisher, or raise [retention] events_max_bytes"

T = TypeVar("T")


class Pace:
    """Adaptive batch size: small when idle, large under backlog, and a batch takes about `target_s`.

    Or a fixed size, `[batch] size`.
    """

    def __init__(self, settings: BatchSettings) -> None:
        self._settings = settings
        self.size = settings.size or min(max(256, settings.min), settings.max)

    def took(self, records: int, seconds: float) -> None:
        """Adapt to the time that a batch took; a batch that was not full is ignored."""
        chosen = self._settings
        if chosen.size is None and records >= self.size // 2:
            factor = min(2.0, max(0.5, chosen.target_s / max(seconds, 1e-6)))
            self.size = int(min(chosen.max, max(chosen.min, self.size * factor)))


class Writer:
    """The loop over batches, and the operations of the control socket."""

    def __init__(self, settings: Settings, engine: Engine, source: Source, log: Any = None) -> None:
        self.settings, self.engine, self.source = settings, engine, source
        self.metrics = Metrics(engine.store, source.lag)
        self._assigning = AssignQueue(
            engine.assign_grid, settings.limits.assign_together, settings.limits.assign_waiting
        )
        self.log = log or logs.get()
        self.pace = Pace(settings.batch)
        self.stopping = threading.Event()
        self._theme_keeper = ThemeKeeper(engine, self.between)
        self._admin = Admin(engine, lambda work: self.between(work, settings.limits.stop_timeout_s))
        self._handlers: dict[str, Handler] = {
            **source.handlers,
            **self._admin.handlers,
            "status": self._status,
            "metrics": lambda body, vectors: {"text": self.metrics.text()},
            "assign": self._assign,
            "explain": self._explain,
            "themes": self._themes,
            "published": self._published,
        }
        self._visits: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._paused = ""
        self._started_ms, self._progress = int(time.time() * 1000), time.monotonic()
        self._expired_at = self._readers_at = 0.0
        self._told, self._told_at = (0, 0), 0.0
        self._batch_s = 0.0
        self._last_reject = ""  # why a record became a dead letter

    def listen(self) -> Listener:
        """Answer at the control socket from now on."""
        return Listener(self.settings.store.path, self._handlers, self.settings.control, self._bug)

    def run(self) -> None:
        """Run until `stopping` is set; finish the current batch. Raises what engine and source raise."""
        while not self.stopping.is_set():
            self.rest()
            if batch := self._next():
                self.source.committed(self.take(batch))
        self._tell(now=True)
        self._receive_visits()

    def close(self) -> None:
        """Refuse the calls that wait. Close the writer before its engine."""
        self.stopping.set()
        self._assigning.close()
        self.source.close()

    def rest(self) -> None:
        """Do what is due between two batches."""
        self._progress = time.monotonic()
        self._receive_visits()
        self._do_chores()
        self._tell()  # here, so that the last batches before a pause are logged, too

    def take(self, batch: Batch) -> Applied:
        """Apply a batch; it is durable when this returns."""
        start = time.perf_counter()
        applied = self.engine.apply(batch)
        self._batch_s = seconds = time.perf_counter() - start
        if batch.rejected:
            self._last_reject = batch.rejected[-1].reason
        self.metrics.committed(applied, seconds)
        self.pace.took(len(batch.keys) + len(batch.deletes), seconds)
        return applied

    def between(self, work: Callable[[], T], timeout_s: float) -> T:
        """Run `work` on the loop's thread between two batches; return its result. For handlers.

        Raises WriterBusy: it was not begun in time; and what `work` raises.
        """
        visit: Future[T] = Future()
        self._visits.put((visit, work))
        try:
            return visit.result(timeout_s)
        except NotInTime:
            if visit.cancel():
                raise WriterBusy("the writer is busy with a large batch; try again") from None
            return visit.result()  # it has begun
        except CancelledError:
            raise WriterAway("the writer is stopping; try again when it is back") from None

    def _next(self) -> Batch | None:
        full = self.engine.store.log_is_full()
        if full != bool(self._paused):
            self._paused = LOG_FULL if full else ""
            if full:
                self.log.warning("paused", reason=self._paused)
            else:
                self.log.warning("resumed")
        if full:
            time.sleep(POLL_S)
            return None
        return self.source.poll(self.pace.size, POLL_S)

    def _receive_visits(self) -> None:
        """Run the work that waits for a gap between batches; once the loop ends, refuse it."""
        for _ in range(self._visits.qsize()):
            visit, work = self._visits.get()
            if self.stopping.is_set():
                visit.cancel()
                visit.set_running_or_notify_cancel()
            elif visit.set_running_or_notify_cancel():
                try:
                    visit.set_result(work())
                except BaseException as problem:
                    visit.set_exception(problem)

    def _do_chores(self) -> None:
        now = time.monotonic()
        if now - self._expired_at >= EXPIRE_S:
            self._expired_at = now
            if applied := self._admin.expire():
                self.metrics.committed(applied, time.monotonic() - now)
        if now - self._readers_at >= READERS_S:
            self._readers_at = now
            self.engine.store.environment.check_readers()

    def _tell(self, now: bool = False) -> None:
        """Log one line for the batches since the last one."""
        metrics = self.metrics
        batches, records = metrics.batches, metrics.outcomes.total()
        if batches > self._told[0] and (now or time.monotonic() - self._told_at >= LOG_S):
            self.log.info(
                "batches",
                batches=batches - self._told[0],
                records=records - self._told[1],
                version=self.engine.version,
                items=len(self.engine),
                lag=self.source.lag().total,
                size=self.pace.size,
            )
            self._told, self._told_at = (batches, records), time.monotonic()

    def _bug(self, op: str, problem: Exception) -> None:
        self.log.error("a handler failed", op=op, exc_info=problem)

    def _status(self, body: Body, vectors: Float32 | None) -> Body:
        """Report the loop's state. `stalled_s`: since its last iteration, including the current batch.
        `batch_s`: duration of the last batch until it was durable.
        """
        lag = self.source.lag()
        state = "stopping" if self.stopping.is_set() else "paused" if self._paused else "running"
        return {
            "state": state,
            "reason": self._paused,
            "pid": os.getpid(),
            "started": self._started_ms,
            "source": self.source.name,
            "version": self.engine.version,
            "dim": self.engine.dim,
            "batches": self.metrics.batches,
            "records": self.metrics.outcomes.total(),
            "rejected": self.metrics.outcomes["rejected"],
            "last_reject": self._last_reject,
            "lag_records": lag.total,
            "oldest_unread_s": lag.oldest_unread_s,
            "stalled_s": time.monotonic() - self._progress,
            "batch_s": self._batch_s,
        }

    def _assign(self, body: Body, vectors: Float32 | None) -> Body:
        if vectors is None:
            raise InputError("assign needs vectors")
        version, answers = self._assigning.ask(self.engine.on_grid(vectors), float(body["timeout_s"]))
        shown = [
            {
                "cluster": "new" if answer.cluster is None else answer.cluster,
                "probability": answer.probability,
                "neighbor": answer.neighbor,
            }
            for answer in answers
        ]
        return {"collection": self.settings.collection.name, "version": version, "answers": shown}

    def _explain(self, body: Body, vectors: Float32 | None) -> Body:
        key, level = str(body["key"]).encode(), body.get("level")
        return self.between(lambda: self.engine.explain(key, level), float(body["timeout_s"]))

    def _themes(self, body: Body, vectors: Float32 | None) -> Body:
        """`step`: of these levels above the final clusters; `known`: the version of those the caller has."""
        found = self._theme_keeper.ask(int(body["step"]), float(body["timeout_s"]))
        if found.version == body.get("known"):
            return {"version": found.version}
        return {"version": found.version, "clusters": found.clusters, "keys": found.keys}

    def _published(self, body: Body, vectors: Float32 | None) -> Body:
        """Take the first version not fully published; the log keeps events from there on."""
        self.engine.store.retain_from_version = int(body["version"])
        self.metrics.published(body)
        return {"version": self.engine.version}


def run(settings: Settings, open_source: OpenSource) -> None:
    """Run the writer process until SIGTERM. Raises ShoalError."""
    scheduling.switch_often()
    log = logs.get()
    stop = _stop_on_signals(settings, log)
    start = time.monotonic()
    with ThreadPoolExecutor(1, "snapshots") as aside, Engine.open(settings, executor=aside) as engine:
        if not len(engine):  # opening a store with items has loaded most already
            log.info("preparing", about="functions that batches need; they are compiled where they are new")
            warm_up(settings)
        source = open_source(context_of(settings, engine))
        writer = Writer(settings, engine, source, log)
        stop(writer.stopping)
        try:
            with writer.listen():
                log.info("ready", store=str(settings.store.path), source=source.name, items=len(engine),
                         version=engine.version, seconds=round(time.monotonic() - start, 3))  # fmt: skip
                scheduling.keep_for_good()
                scheduling.give_way_to(ANSWERING)
                writer.run()
                writer.close()
        finally:
            writer.close()
    log.info("stopped", version=engine.store.version)


def context_of(settings: Settings, engine: Engine) -> SourceContext:
    store = engine.store
    return SourceContext(
        settings,
        store.identity,
        store.position,
        version=lambda: engine.version,
        dim=lambda: engine.dim,
        holds=engine.holds,
    )


def _stop_on_signals(settings: Settings, log: Any) -> Callable[[threading.Event], None]:
    """Have SIGTERM set the event given later, and end the process if stopping takes too long."""
    asked: list[bool] = []
    events: list[threading.Event] = []
    limit_s = settings.limits.stop_timeout_s

    def too_long() -> None:
        log.error("stopping took too long", limit_s=limit_s)
        os._exit(1)

    def ask(number: int, frame: object) -> None:
        if not asked:
            timer = threading.Timer(limit_s, too_long)
            timer.daemon = True
            timer.start()
        asked.append(True)
        for event in events:
            event.set()

    def give(event: threading.Event) -> None:
        events.append(event)
        if asked:
            event.set()

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C goes to all; the supervisor decides
    return give
