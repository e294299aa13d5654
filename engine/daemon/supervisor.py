"""`shoal serve`: a small process that starts the others, supervises them and stops them.

A part that crashes is restarted with a growing delay, and given up after too many crashes. One that ends
with a ShoalError would do so again: the daemon then ends with that message and exit code. No part outlives
the daemon, however that ends. This process imports neither torch nor dgl.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import config_transfer, errors
from engine.backoff import Backoff
from engine.config import ApiSettings, Settings
from engine.daemon.control import Control
from engine.errors import ConfigError, ShoalError
from engine.storage.environment import unwritable
from engine.storage.store import hold
from engine.system import isolation, logs
from engine.system.systemd import Notifier

WRITER, API, PUBLISHER = "writer", "api", "publisher"
LOOK_S = 0.1  # between two checks of the processes
ASK_S = 0.5, 5.0  # between two status calls to the writer: until it is ready, then
BACKOFF_S = 1.0, 30.0  # before a failed part is started again: first, last
API_STOP_S = 20.0
NICENESS = 5
BACKLOG = 512
LOCK = "writer"  # a store's file that its writer holds
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Part:
    """A process of the daemon. `handles` are file descriptors that it inherits."""

    name: str
    arguments: Sequence[str] = ()
    handles: Sequence[int] = ()
    stop_s: float = API_STOP_S  # to end after SIGTERM


class Child:
    """A running part, restarted when it crashes."""

    def __init__(self, part: Part, settings: Settings, log: Any) -> None:
        self.part, self._limits, self._log = part, settings.limits, log.bind(part=part.name)
        self._frozen = config_transfer.freeze(settings)
        self._failures: deque[float] = deque()
        self._backoff = Backoff(*BACKOFF_S)
        self._process: subprocess.Popen[str] | None = None
        self._again_at = 0.0
        self.started = 0.0

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start the process, with the settings on its standard input. Raises OSError."""
        self._process = subprocess.Popen(
            isolation.command(
                "engine.cli.parts", self.part.name, "--parent", str(os.getpid()), *self.part.arguments
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,  # carries a final ShoalError as JSON: see `work_as`
            text=True,
            env=config_transfer.without_settings(os.environ),
            pass_fds=self.part.handles,
        )
        self.started = time.monotonic()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(self._frozen)
        self._log.info("started", pid=self._process.pid)

    def look(self) -> None:
        """Check the process; restart it if it crashed and its delay is over.

        Raises the ShoalError that the process ended with, and ShoalError after too many crashes.
        """
        if self._process is None:
            if time.monotonic() >= self._again_at:
                self.start()
            return
        code = self._process.poll()
        if code is not None:
            self._ended(self._process, code)

    def stop(self) -> None:
        """Wait until the process ends, for at most `part.stop_s`; then kill it. Call `terminate` first."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.wait(self.part.stop_s)
        except subprocess.TimeoutExpired:
            self._log.error("killed", reason="it did not stop in time")
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()

    def terminate(self) -> None:
        """Send SIGTERM to the process, if it runs; does not wait."""
        if self._process is not None:
            self._process.terminate()

    def _ended(self, process: subprocess.Popen[str], code: int) -> None:
        self._process = None
        assert process.stdout is not None
        with process.stdout as stdout:
            words = stdout.read()
        if words.endswith("}"):  # a complete document: a killed process may leave half of one, or nothing
            raise errors.load(json.loads(words))
        now = time.monotonic()
        self._failures.append(now)
        while self._failures[0] < now - self._limits.restarts_window_s:
            self._failures.popleft()
        count = len(self._failures)
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        if count > self._limits.restarts_max:
            raise ShoalError(
                f"the {self.part.name} failed {count} times within {self._limits.restarts_window_s:g} s, the "
                f"last time with {cause}: see the log above"
            )
        if count == 1:
            self._backoff.reset()
        delay = self._backoff.next_s()
        self._again_at = now + delay
        self._log.error("failed", cause=cause, again_in_s=delay, failures=count)


class Daemon:
    """The parts of one store, the API among them."""

    def __init__(self, settings: Settings, parts: Sequence[Part], log: Any = None) -> None:
        self._settings, self._log = settings, log or logs.get()
        self.children = {part.name: Child(part, settings, self._log) for part in parts}
        self._notifier = Notifier()
        self._control = Control(settings.store.path, 2.0, settings.control)
        self._asked_at = 0.0
        self.ready = False
        self.stopping = False

    def run(self) -> None:
        """Run until a signal handler sets `stopping`. Raises ShoalError: why it cannot continue."""
        try:
            for child in self.children.values():
                child.start()
            while not self.stopping:
                for child in self.children.values():
                    child.look()
                self._ask()
                time.sleep(LOOK_S)
        finally:
            self._stop()

    def _ask(self) -> None:
        """Ask for the writer's status and notify the service manager."""
        now = time.monotonic()
        if now - self._asked_at < ASK_S[self.ready]:
            return
        self._asked_at = now
        limits = self._settings.limits
        try:
            status = self._control.call("status")
        except ShoalError:
            writer = self.children.get(WRITER)
            well = writer is None or now - writer.started < limits.start_timeout_s
        else:
            well = status["stalled_s"] < limits.progress_timeout_s
            if not self.ready:
                self.ready = True
                self._notifier.tell("READY=1", f"STATUS=version {status['version']}")
        if well:
            self._notifier.beat()

    def _stop(self) -> None:
        """Stop the API last: its callers still get their answers."""
        self._notifier.tell("STOPPING=1")
        self._control.close()
        for together in [c for c in self.children.values() if c.part.name != API], [self.children[API]]:
            for child in together:
                child.terminate()
            for child in together:
                child.stop()


def listen(api: ApiSettings) -> socket.socket:
    """Open the API's socket. Raises ConfigError: the port is taken, or the host is not this machine's."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            api.host, api.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as problem:
        raise ConfigError(
            f"The API cannot listen on {api.host}, port {api.port} ({problem.strerror or problem}): stop "
            "what listens there, or choose others with [api] host and port."
        ) from None


def url_of(listening: socket.socket) -> str:
    """Return the API's address as seen from this machine."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def api_part(listening: socket.socket) -> Part:
    handle = listening.fileno()
    return Part(API, ["--listen", str(handle)], [handle])


def parts_of(settings: Settings, listening: socket.socket) -> list[Part]:
    """Return the parts of `shoal serve`. The API comes first: queries do not need the writer."""
    parts = [
        api_part(listening),
        Part(WRITER, stop_s=settings.limits.stop_timeout_s + 2.0),
    ]
    if settings.source.publishes:
        parts.append(Part(PUBLISHER, stop_s=settings.limits.stop_timeout_s))
    return parts


def work_as(name: str, parent: int, work: Callable[[Settings], None]) -> None:
    """Run a part's process. Settings arrive on standard input; a ShoalError is written to standard output
    as JSON, and its exit code is the process's."""
    end_with_parent(parent)
    if name != API:
        os.nice(NICENESS)  # queries come first
    last_words = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else may be printed there
    logs.configure(name)
    try:
        work(config_transfer.thaw(sys.stdin.read()))
    except ShoalError as problem:
        logs.get().error("cannot go on", error=type(problem).__name__, reason=str(problem))
        with contextlib.suppress(BrokenPipeError), last_words:
            json.dump(errors.dump(problem), last_words)
        sys.exit(problem.exit_code)
    except Exception:
        logs.get().exception("internal error")
        sys.exit(1)


def end_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM when the parent dies (PR_SET_PDEATHSIG; Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def serve(settings: Settings) -> None:
    """Run the daemon until SIGTERM or SIGINT. Raises ShoalError."""
    log = logs.get()
    need_folder(settings.store.path)
    with listen(settings.api) as listening:
        daemon = Daemon(settings, parts_of(settings, listening), log)

        def stop(number: int, frame: object) -> None:
            daemon.stopping = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        log.info("serving", url=url_of(listening), store=str(settings.store.path))
        daemon.run()
        log.info("stopped")


def need_folder(folder: Path) -> None:
    """Raise StoreLocked while another process writes the store, StoreFull or StoreError where none can.

    The writer would find out much later.
    """
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        if not there.is_dir():
            raise NotADirectoryError
        if (folder / LOCK).exists():
            os.close(hold(folder))
        elif not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))
    except OSError as problem:
        raise unwritable(folder, problem) from None
