"""`shoal serve` with a real broker under load, some of its processes killed at random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import NoStore, ShoalError, StoreLocked
from engine.storage.reader import View
from tests.broker.daemon import is_out
from tests.broker.topics import Sent, Topics, document
from tests.conftest import ROOT, environment
from tests.faults.judge import Wrong

DIM, KEYS, PARTITIONS, K = 8, 150, 3, 4
RATE = 150  # records a second
WRITER, PUBLISHER, API, ALL, SUPERVISOR = "writer", "publisher", "api", "all", "supervisor"
TARGETS = (WRITER, WRITER, PUBLISHER, API, ALL, SUPERVISOR)
QUIET_S = 120.0  # for the lag to be gone once the load ends
SETTINGS = """
[collection]
name = "kills"
dim = {dim}
[store]
path = "{store}"
[index]
kind = "exact"
[model]
path = "{model}"
[source.kafka]
bootstrap = "{bootstrap}"
topic = "{topic}"
[batch]
least = 8
most = 64
[api]
port = 0
[limits]
restarts_max = 1000
restarts_window_s = 3.0
publish_events = 50
"""


class Daemon:
    """`shoal serve` on a topic of its own, started again when it has to be, as systemd would."""

    def __init__(self, folder: Path, bootstrap: str, python: str = sys.executable) -> None:
        from tests.support.random_models import random_model

        self.store = folder / "store"
        self.topics = Topics(bootstrap)
        self.topic = topic = self.topics.make(PARTITIONS)
        self._python = python
        self.settings = folder / "shoal.toml"
        self._log = folder / "log"
        model = folder / "model.safetensors"
        random_model(7, K).save(model)
        self.settings.write_text(
            SETTINGS.format(dim=DIM, store=self.store, model=model, bootstrap=bootstrap, topic=topic)
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._python, "-m", "engine", "serve", "-c", str(self.settings)],
                cwd=ROOT,
                env=environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def watch(self) -> None:
        """Starts it again if it ended because the one before still held the store. Raises Wrong."""
        assert self._process
        code = self._process.poll()
        if code is None:
            return
        if code != StoreLocked.exit_code:
            raise Wrong(f"shoal serve ended with {code}: {self.log()[-3000:]}")
        self.start()

    def kill(self, target: str) -> bool:
        """SIGKILL; False: it was not there."""
        assert self._process
        if target == ALL:
            os.killpg(self._process.pid, signal.SIGKILL)
        elif target == SUPERVISOR:
            self._process.kill()
        else:
            found = [child for child, words in self._children() if target in words]
            for child in found:
                os.kill(child, signal.SIGKILL)
            return bool(found)
        self._process.wait()
        self.start()
        return True

    def _children(self) -> list[tuple[int, list[str]]]:
        assert self._process
        listing = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        children = [int(child) for child in listing.read_text().split()]
        return [(child, Path(f"/proc/{child}/cmdline").read_text().split("\0")) for child in children]

    def stop(self) -> None:
        """As an operator does. Raises Wrong."""
        assert self._process
        self._process.terminate()
        if code := self._process.wait(120):
            raise Wrong(f"shoal serve ended with {code} on SIGTERM: {self.log()[-3000:]}")

    def end(self) -> None:
        """Whatever became of it."""
        if self._process and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""


class Load:
    """Records of a seed at a steady rate: moves, deletes, and some that cannot be used.

    `live`: by key the vector that a daemon has to end with; `poisoned`: the values for the dead letters.
    """

    def __init__(self, topics: Topics, topic: str, seed: int) -> None:
        self._producer = topics.producer(acks="all")
        self._topic = topic
        self._rng = np.random.default_rng([seed, 6])
        self._centres = self._rng.standard_normal((12, DIM))
        self.live: dict[bytes, Any] = {}
        self.poisoned: list[bytes | None] = []
        self.sent = 0
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> list[bytes]:
        """Ends the load with one item in each partition, whose keys it returns."""
        self._stopping.set()
        self._thread.join()
        if self._failure:
            raise self._failure
        last = [b"last %d" % partition for partition in range(PARTITIONS)]
        for partition, key in enumerate(last):
            self._send_item(key, partition)
        self._producer.flush(30)
        self._producer.close()
        return last

    def abandon(self) -> None:
        """Ends it, without what `stop` does."""
        self._stopping.set()

    def _run(self) -> None:
        try:
            while not self._stopping.wait(0.05):
                for _ in range(round(RATE * 0.05)):
                    self._send()
        except BaseException as failure:
            self._failure = failure

    def _send(self) -> None:
        key, dice = b"k%d" % self._rng.integers(KEYS), self._rng.random()
        if dice < 0.1:
            self.live.pop(key, None)
            self._put(Sent(key, None))
        elif dice < 0.13:
            value = b"{broken %d" % self.sent
            self.poisoned.append(value)
            self._put(Sent(key, value))
        else:
            self._send_item(key)

    def _send_item(self, key: bytes, partition: int | None = None) -> None:
        vector = self._centres[self._rng.integers(len(self._centres))]
        vector = (vector + 0.4 * self._rng.standard_normal(DIM)).astype(np.float32)
        self.live[key] = vector
        self._put(Sent(key, document(vector, payload={"sent": self.sent}), partition=partition))

    def _put(self, record: Sent) -> None:
        self.sent += 1
        self._producer.send(self._topic, record.value, record.key, partition=record.partition)


def kill_daemon(daemon: Daemon, seed: int, kills: int, within_s: float) -> dict[str, Any]:
    """Kills under load; then all that is stored and published is compared. Raises Wrong."""
    from tests.faults.aftermath import compare

    dice = random.Random(seed)
    daemon.start()
    load = Load(daemon.topics, daemon.topic, seed)
    done: list[str] = []
    try:
        while len(done) < kills:
            _watch(daemon, dice.uniform(0.0, within_s))
            target = dice.choice(TARGETS)
            if daemon.kill(target):
                done.append(target)
        last = load.stop()
        _wait_until_quiet(daemon, last)
        daemon.stop()
        compare(daemon.settings, daemon.topics, daemon.topic, load)
    finally:
        load.abandon()
        daemon.end()
    return {"kills": done, "records": load.sent}


def _watch(daemon: Daemon, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        daemon.watch()
        time.sleep(0.02)


def _wait_until_quiet(daemon: Daemon, last: list[bytes]) -> None:
    """Until the last record of each partition is stored, and all events are published. Raises Wrong."""
    deadline = time.monotonic() + QUIET_S
    while not _has(daemon.store, last):
        _watch(daemon, 0.2)
        if time.monotonic() > deadline:
            raise Wrong(f"records are unread after {QUIET_S:g} s: {daemon.log()[-3000:]}")
    while not is_out(daemon.store, daemon.topics, daemon.topic):
        _watch(daemon, 0.2)
        if time.monotonic() > deadline:
            raise Wrong(f"events are not published after {QUIET_S:g} s: {daemon.log()[-3000:]}")


def _has(store: Path, keys: list[bytes]) -> bool:
    try:
        with View.open(store) as view:
            return all(view.item(key) for key in keys)
    except (NoStore, ShoalError):
        return False
