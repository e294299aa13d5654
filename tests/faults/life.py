"""One life: a process opens the store, checks it, takes batches, publishes, until it ends one way or another.

What it did it writes to a journal beside the store, one line of JSON each, for the judge:

    {"opened": version, "digest": {table: digest}}     found when it opened the store, and checked
    {"applied": version, "digest": {table: digest}}    durable: no later life may find less
    {"refused": words}                                 the disk failed; the engine said so and stopped
    {"ended": operations, "points": {name: count}}     it closed the store
"""

from __future__ import annotations

import io
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import orjson
from xxhash import xxh64

from engine.clustering import pipeline
from engine.collection.collection import Engine
from engine.collection.rebuild import rebuild_store
from engine.collection.snapshots import Snapshots
from engine.daemon import publisher
from engine.daemon.publisher import Published, Publisher
from engine.errors import CorruptStore, StoreError
from engine.storage import commit, schema
from engine.storage.reader import View
from engine.storage.store import Store
from engine.streams import SinkAway
from engine.system import isolation
from tests.faults import disk
from tests.faults.disk import Disk
from tests.faults.story import BY_SIZE, LOG_BYTES, OPERATION, SOURCE, STOP, Fault, Story
from tests.faults.topic import Topic, replay
from tests.support.checks import check_calibration, check_state
from tests.support.sequences import differences, rebuilt

HISTORY = ("commits", "events", "endings", "clusters")  # what the log's bounds decide, not the batches alone
INPUT = ("items", "keys", "positions")


class Stop(Exception):
    """The fault is an ordinary stop."""


class Life:
    """`topic`: where events go; what is in it outlives any life. `disk`: the one that strikes, if any."""

    def __init__(
        self, story: Story, folder: Path, topic: Topic, disk: Disk | None = None, fault: Fault | None = None
    ) -> None:
        self.story, self.folder, self.topic, self.fault = story, folder, topic, fault
        self.disk = disk
        self.points: Counter[str] = Counter()
        self.now_ms = story.times_ms[0]
        self.journal = os.open(
            folder.with_suffix(".journal"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644
        )

    def live(self) -> None:
        """To the end of the story, or of this process."""
        if self.disk:
            self.disk.watch(self.folder)
            self._set_points()
            if self.fault and self.fault.where == OPERATION:
                self.disk.strike(self.fault.nth, self.fault.how, self.fault.seed)
        try:
            self._live()
        except StoreError as problem:
            self._excuse(problem)

    def _excuse(self, problem: StoreError) -> None:
        """Only a disk that fails is an excuse, and not for what is damaged: nothing was lost before."""
        if not self.fault or self.fault.how not in disk.FAILING or isinstance(problem, CorruptStore):
            raise problem
        self._write(refused=f"{type(problem).__name__}: {problem}")

    def _live(self) -> None:
        self._open()
        try:
            self._write(opened=self.engine.version, digest=digest(self.engine.store, self.story))
            self._check(self.engine)
            while self.engine.version < len(self.story.batches):
                if not self.engine.store.log_is_full():
                    self._take(self.engine.version)
                if self.topic.rng.random() < 0.7 or self.engine.store.log_is_full():
                    self._publish()
            while self._publish():
                pass
            self._check(self.engine)
        except Stop:
            pass
        self.engine.close()
        self._write(ended=self.disk.operations if self.disk else 0, points=dict(self.points))

    def _open(self) -> None:
        story = self.story
        self.engine = Engine.open(story.settings(self.folder), story.model, self._now)
        store = self.engine.store
        if story.forgets == BY_SIZE:
            store._limits = replace(store._limits, events_max_bytes=LOG_BYTES)
        store.retain_from_version = 0
        self._meet_publisher()

    def _now(self) -> float:
        return self.now_ms / 1000

    def _take(self, version: int) -> None:
        """What makes the next version: a batch, or a rebuild; then the file may be written anew."""
        story, batch = self.story, self.story.batches[version]
        self.now_ms = story.times_ms[version]
        if batch:
            self.engine.apply(batch)
        else:
            self.engine.close()
            rebuild_store(story.settings(self.folder), story.model, self._now)
            self._open()
        self._write(applied=self.engine.version, digest=digest(self.engine.store, story))
        if version in story.compactions:
            self.engine.compact()
            self._meet_publisher()

    def _meet_publisher(self) -> None:
        """It works in this process here, in an order of the seed's, and not beside it."""
        store = self.engine.store

        def hear(told: Published) -> None:
            store.retain_from_version = told.retain_from_version

        view = View.beside(store)
        self.publisher = Publisher(view, self.topic, self.story.settings(self.folder), hear, Event())
        self.is_lost = True

    def _publish(self) -> bool:
        """A slice of the log to the topic; returns whether there may be more."""
        self._point("before publishing")
        self.topic.at_middle = lambda: self._point("inside publishing")
        try:
            if self.is_lost:
                self.publisher._begin(self.topic.resume())
            self.is_lost = False
            return self.publisher.advance()
        except SinkAway:
            self.is_lost = True
            return True
        finally:
            self._point("after publishing")

    def _write(self, **fields: Any) -> None:
        os.write(self.journal, orjson.dumps(fields) + b"\n")

    # -- faults at named points

    def _set_points(self) -> None:
        self._around(pipeline, "step", "before step", "after step")
        self._around(commit, "forget", "inside commit", "")
        self._around(Store, "commit", "", "after commit")
        self._around(Snapshots, "begin", "before snapshot", "after snapshot")
        publisher.TELL_S = 0.0  # nothing depends on the hour
        isolation.subprocess = _Forked  # type: ignore[assignment]

    def _around(self, owner: Any, name: str, before: str, after: str) -> None:
        call: Callable[..., Any] = getattr(owner, name)

        def with_points(*arguments: Any, **named: Any) -> Any:
            self._point(before)
            result = call(*arguments, **named)
            self._point(after)
            return result

        setattr(owner, name, with_points)

    def _point(self, name: str) -> None:
        if not name:
            return
        self.points[name] += 1
        fault = self.fault
        if fault and fault.where == name and fault.nth == self.points[name]:
            if fault.how == STOP:
                raise Stop
            assert self.disk
            self.disk.die(fault.how, fault.seed)

    # -- what has to be true of a store whenever it is opened

    def _check(self, engine: Engine) -> None:
        story, state, version = self.story, engine.state, engine.version
        world = story.world
        world.live = story.lives[version]
        found = engine.store.position(SOURCE)
        assert found == story.positions[version], f"{version=} {found=}"
        check_state(state, world)
        if story.exact:
            other = rebuilt(world, story.model, state.calibration.epoch)
            wrong = differences(state.hierarchy, other.hierarchy)
            assert not wrong, wrong
            check_calibration(state, other)
        keys, clusters = engine.labels()
        held = dict(zip(map(str.encode, keys), clusters.tolist(), strict=True))
        told = replay(self.topic.events(), engine.store)
        assert told == held, f"the log tells of {len(told)} items, the store holds {len(held)}, or elsewhere"


def digest(store: Store, story: Story) -> dict[str, str]:
    """A fingerprint of each table, of what a faultless run has as well."""
    tables: Sequence[str] = schema.TABLES if story.exact else INPUT
    found = {}
    for table in tables:
        if story.forgets and table in HISTORY:
            continue
        fingerprint = xxh64()
        for key, body in store.rows(table):
            own = table == "meta" and (key == b"identity" or (key == b"log" and story.forgets))
            if not own:
                fingerprint.update(b"%d %d " % (len(key), len(body)) + key + body)
        found[table] = fingerprint.hexdigest()
    return found


class _Forked:
    """Stands for `subprocess` where the engine reads a store in another process: one that starts warm."""

    @staticmethod
    def run(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        function, *arguments = command[5:]
        reader, writer = os.pipe()
        process = os.fork()
        if not process:
            out, err, status = io.StringIO(), io.StringIO(), 1
            try:
                with redirect_stdout(out), redirect_stderr(err):
                    isolation.main(function, *arguments)
                status = 0
            except SystemExit as ending:
                print(ending.code, file=err)
            except BaseException as error:
                print(repr(error), file=err)
            finally:
                os.write(writer, orjson.dumps([out.getvalue(), err.getvalue()]))
                os._exit(status)
        os.close(writer)
        with open(reader, "rb") as told:
            out_text, err_text = orjson.loads(told.read() or b'["",""]')
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        return subprocess.CompletedProcess(list(command), status, out_text, err_text)
