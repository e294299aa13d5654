"""`shoal serve` on a topic, in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.daemon.control import Control
from engine.errors import ShoalError, StoreError
from engine.events import EventId
from engine.storage.reader import View
from tests.broker.topics import Topics

ROOT = Path(__file__).resolve().parents[2]
START_S = 180.0


class Daemon:
    """Settings go by the environment: `Daemon(folder, bootstrap, topic, index__kind="exact")`."""

    def __init__(
        self, folder: Path, bootstrap: str, topic: str, python: str = sys.executable, **settings: Any
    ) -> None:
        self.topic, self.store, self.logged = topic, folder / "store", folder / "log"
        folder.mkdir(parents=True, exist_ok=True)
        given = {
            "store__path": self.store,
            "source__kafka__bootstrap": bootstrap,
            "source__kafka__topic": topic,
            "api__port": 0,
            **settings,
        }
        plain = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
        self._environment: Mapping[str, str] = {
            **plain,
            "PYTHONPATH": str(ROOT),
            **{f"SHOAL_{name.upper()}": str(value) for name, value in given.items()},
        }
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None
        self._topics = Topics(bootstrap)

    def start(self, wait: bool = True) -> None:
        with self.logged.open("ab") as log:
            self._process = subprocess.Popen(
                [self._python, "-m", "engine", "serve"],
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while wait and self.status() is None:
            assert self._process.poll() is None, self.told()
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.1)

    def status(self) -> dict[str, Any] | None:
        """What the writer says; None: there is none."""
        try:
            with Control(self.store, 5.0) as control:
                return control.call("status")
        except ShoalError:
            return None

    def ended(self, limit_s: float) -> int:
        """Its exit code, when it ends by itself."""
        assert self._process
        return self._process.wait(limit_s)

    def stop(self) -> int:
        """As an operator does; returns its exit code."""
        assert self._process
        self._process.terminate()
        return self._process.wait(120)

    def kill(self) -> None:
        """All of its processes at once."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def told(self) -> str:
        """Its log."""
        return self.logged.read_text() if self.logged.exists() else ""

    def is_through(self) -> bool:
        """Whether all records of the topic are taken, and all that came of them is published."""
        status = self.status()
        return (
            status is not None
            and self.offset() == self._topics.end(self.topic)
            and is_out(self.store, self._topics, self.topic)
        )

    def offset(self) -> int:
        """How many offsets of the topic are behind the store."""
        from connectors.kafka.reader import Position

        try:
            with View.open(self.store) as view:
                raw = view.positions().get("kafka")
        except StoreError:
            return 0
        return sum(Position.load(raw).offsets.values()) if raw else 0


def is_out(store: Path, topics: Topics, topic: str) -> bool:
    """Whether all events of the store are published, as the outgoing topics say, not the publisher."""
    place = published(topics, topic)
    try:
        with View.open(store) as view:
            return place is not None and view.behind(place) == 0
    except StoreError:
        return False


def published(topics: Topics, topic: str) -> EventId | None:
    """The last event on the outgoing topics."""
    import orjson

    records = topics.read(f"{topic}.progress", last=50)
    told = orjson.loads(records[-1].value) if records else None
    return (told["version"], told["ordinal"]) if told else None
