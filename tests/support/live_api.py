"""The API over a real socket, in a thread of the test; and a real writer, in a process of its own."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from engine.api.context import Context
from engine.api.middleware.authentication import read_keys
from engine.api.server import Server, server_of
from engine.config import Settings, load
from engine.daemon.control import Control
from engine.daemon.supervisor import listen, url_of
from engine.errors import WriterAway
from tests.conftest import ROOT, environment
from tests.support import warm_python
from tests.support.waiting import until

_WRITER = """
import sys
from connectors.http import HttpSource
from engine import config_transfer
from engine.daemon import writer
settings = config_transfer.thaw(sys.stdin.read())
writer.run(settings, HttpSource)
"""

PATIENCE_S = 280.0  # with a writer that may compile its kernels first; clients have more


def settings_of(store: Path, **flags: Any) -> Settings:
    """A free port, the exact index, patience; `api__key_file=...` sets `[api] key_file`."""
    given = {name.replace("__", "."): value for name, value in flags.items()}
    patience = {f"api.{name}_timeout_s": PATIENCE_S for name in ("forward", "bulk")}
    return load(None, {"store.path": str(store), "api.port": 0, "index.kind": "exact", **patience, **given})


def plain_http(**options: Any) -> httpx.Client:
    """A client without certificates: to read those of the system takes 0.1 s of processor time."""
    return httpx.Client(verify=False, **options)


class Api:
    """The API of some settings, from the first request on until closed."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.context = settings, Context(settings)
        self._listening = listen(settings.api)
        self.url = url_of(self._listening)
        self.port = self._listening.getsockname()[1]
        self.server: Server = server_of(self.context, read_keys(settings.api))
        self._thread = threading.Thread(target=self.server.run, args=([self._listening],), daemon=True)
        self._thread.start()
        # A server that is told to stop before it has started never ends its lifespan: its reader stays open.
        until(lambda: self.server.started or not self._thread.is_alive())
        self.http = plain_http(base_url=self.url, timeout=300.0)

    def close(self) -> None:
        self.context.streams.stop()
        self.server.should_exit = True
        self._thread.join(60.0)
        assert not self._thread.is_alive(), "the API did not stop"
        self.http.close()
        self._listening.close()

    def wait_ready(self, limit_s: float = 300.0) -> None:
        until(lambda: self.http.get("/readyz").is_success, limit_s)

    def wait_counted(self, limit_s: float = 300.0) -> None:
        """Until growth and history know the newest version."""
        follower, view = self.context.follower, self.context.reader.view()
        until(lambda: follower.ready and follower.version >= view.version, limit_s)


@contextmanager
def api(settings: Settings) -> Iterator[Api]:
    served = Api(settings)
    try:
        yield served
    finally:
        served.close()


@contextmanager
def writer(settings: Settings) -> Iterator[subprocess.Popen[str]]:
    """A writer that takes what comes over HTTP, ready."""
    from engine.config_transfer import freeze

    with subprocess.Popen(
        [warm_python.executable(threads=True), "-c", _WRITER],
        stdin=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(),
    ) as process:
        assert process.stdin is not None
        with process.stdin as stdin:
            stdin.write(freeze(settings))
        _wait_for(settings.store.path, process)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(120)


def _wait_for(store: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    with Control(store, 5.0) as control:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                control.call("status")
                return
            except WriterAway:
                time.sleep(0.1)
    raise AssertionError(f"the writer did not start: {process.poll()}")
