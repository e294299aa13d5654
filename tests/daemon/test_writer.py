"""The writer's loop in one process: batches, and what is answered beside them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from connectors.http import HttpSource
from engine.collection.collection import Engine
from engine.config import BatchSettings, Settings
from engine.daemon.control import Control
from engine.daemon.metrics import Metrics
from engine.daemon.writer import Pace, Writer, context_of
from engine.errors import InputError, NotFound, StoreError, WriterAway, WriterBusy
from engine.model.linkage import LinkageModel
from engine.storage import schema
from engine.streams import Handler, Lag, NoSource, Source
from engine.types import Applied, Batch, DeadLetter
from engine.vectors import quantize
from tests.support.collections import DIM, draw
from tests.support.random_models import random_model
from tests.support.records import submit
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights() -> LinkageModel:
    return random_model(7)


class Script:
    """A source of batches that are put into it."""

    name = "script"
    handlers: Mapping[str, Handler] = {}

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.versions: list[int] = []
        self.sizes: list[int] = []
        self.closed = 0

    def poll(self, size: int, timeout_s: float) -> Batch | None:
        self.sizes.append(size)
        if not self.batches:
            time.sleep(timeout_s)
            return None
        return self.batches.pop(0)

    def committed(self, applied: Applied) -> None:
        self.versions.append(applied.version)

    def lag(self) -> Lag:
        return Lag({"p 1": len(self.batches), "p 2": 2}, 1.5)

    def close(self) -> None:
        self.closed += 1


def batch(seed: int, count: int, **more: Any) -> Batch:
    keys = [b"%d-%d" % (seed, row) for row in range(count)]
    return Batch(keys, quantize(draw(seed, count))[0], np.zeros(count, np.int64), [b""] * count, **more)


@contextmanager
def running(
    path: Path, weights: LinkageModel, make: Callable[[Settings, Engine], Source], **sections: Any
) -> Iterator[tuple[Writer, Control]]:
    """A writer whose loop runs in a thread, and a client of it."""
    settings = Settings.model_validate({"store": {"path": path}, "index": {"kind": "exact"}, **sections})
    with Engine.open(settings, weights) as engine:
        writer = Writer(settings, engine, make(settings, engine))
        with writer.listen(), Control(path, 60.0) as control:
            thread = threading.Thread(target=writer.run)
            thread.start()
            try:
                yield writer, control
            finally:
                writer.stopping.set()
                thread.join()
                writer.close()


@pytest.fixture
def script() -> Script:
    return Script()


class Durable(Script):
    """Its lag counts what is not committed, as Kafka's does."""

    def lag(self) -> Lag:
        return Lag({"p": 3 - len(self.versions)})


class Lines:
    """A log that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.told.append({"event": event, **fields})


def test_the_last_line_is_of_the_last_batch(
    tmp_path: Path, weights: LinkageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.daemon.writer.LOG_S", 0.2)
    source, log = Durable(), Lines()
    with running(tmp_path, weights, lambda *_: source) as (writer, _):
        writer.log = log
        source.batches += [batch(1, 40), batch(2, 40), batch(3, 40)]
        until(lambda: log.told[-1:] and log.told[-1]["version"] == 3)
        assert sum(line["batches"] for line in log.told) == 3
        assert log.told[-1]["lag"] == 0


def test_batches_go_through_and_are_counted(tmp_path: Path, weights: LinkageModel, script: Script) -> None:
    with running(tmp_path, weights, lambda *_: script) as (writer, control):
        letter = DeadLetter("broken", "topic 0 7", b"k", b"v")
        script.batches += [
            batch(1, 40, positions={"script": b"40"}),
            batch(1, 40),
            Batch(
                [], np.empty((0, 1), np.int16), np.empty(0, np.int64), [], [b"1-0", b"nobody"], {}, [letter]
            ),
        ]
        until(lambda: script.versions == [1, 2, 3])
        assert writer.engine.store.position("script") == b"40"
        status = control.call("status")
        assert {name: status[name] for name in ("state", "source", "version", "dim", "batches")} == {
            "state": "running",
            "source": "script",
            "version": 3,
            "dim": DIM,
            "batches": 3,
        }
        assert (status["lag_records"], status["oldest_unread_s"]) == (2, 1.5)
        assert status["stalled_s"] < 5
        assert 0 < status["batch_s"] < 60
        lines = control.call("metrics")["text"].splitlines()
        assert {
            'shoal_records_total{outcome="inserted"} 40.0',
            'shoal_records_total{outcome="unchanged"} 40.0',
            'shoal_records_total{outcome="deleted"} 1.0',
            'shoal_records_total{outcome="unknown"} 1.0',
            'shoal_records_total{outcome="rejected"} 1.0',
            "shoal_dead_letters_total 1.0",
            "shoal_batches_total 3.0",
            "shoal_batch_seconds_count 3.0",
            "shoal_items 39.0",
            "shoal_version 3.0",
            'shoal_source_lag_records{partition="p 2"} 2.0',
            "shoal_oldest_unread_seconds 1.5",
            "shoal_oldest_reader_seconds 0.0",
            'shoal_up{process="writer"} 1.0',
        } <= set(lines)
        names = {line.split("{")[0].split(" ")[0] for line in lines if not line.startswith("#")}
        assert {"shoal_clusters", "shoal_levels", "shoal_store_bytes", "shoal_disk_free_bytes"} <= names
        assert {"shoal_batch_seconds_bucket", "shoal_stage_seconds_total"} <= names
        assert "shoal_publish_lag_events" not in names


def test_the_publisher_tells_how_far_it_is(tmp_path: Path, weights: LinkageModel, script: Script) -> None:
    with running(tmp_path, weights, lambda *_: script) as (writer, control):
        control.call("published", {"version": 5, "events": {"t.assignments": 9}, "lag_events": 4})
        assert writer.engine.store.retain_from_version == 5
        lines = control.call("metrics")["text"].splitlines()
        assert {
            'shoal_events_published_total{topic="t.assignments"} 9.0',
            "shoal_publish_lag_events 4.0",
            'shoal_up{process="publisher"} 1.0',
        } <= set(lines)


def test_a_held_reader_is_told_of_by_its_age(tmp_path: Path, weights: LinkageModel, script: Script) -> None:
    with running(tmp_path, weights, lambda *_: script) as (writer, _):
        now = 100.0
        metrics = Metrics(writer.engine.store, script.lag, lambda: now)
        with writer.engine.store.snapshot():
            metrics.committed(writer.engine.apply(batch(1, 5)), 0.1)
            now = 107.0
            assert "shoal_oldest_reader_seconds 7.0" in metrics.text()
        assert "shoal_oldest_reader_seconds 0.0" in metrics.text()


@pytest.mark.process
def test_a_held_reader_is_told_of_after_a_compaction_too(
    tmp_path: Path, weights: LinkageModel, script: Script
) -> None:
    with running(tmp_path, weights, lambda *_: script) as (writer, _):
        now, engine = 100.0, writer.engine
        metrics = Metrics(engine.store, script.lag, lambda: now)
        for seed in range(1, 41):
            metrics.committed(engine.apply(batch(seed, 5)), 0.1)
        writer.between(engine.compact, 20)
        now = 200.0
        metrics.committed(engine.apply(batch(51, 5)), 0.1)
        with engine.store.snapshot():
            metrics.committed(engine.apply(batch(52, 5)), 0.1)
            now = 207.0
            assert "shoal_oldest_reader_seconds 7.0" in metrics.text()


def test_readers_are_looked_up_where_no_compaction_goes(
    tmp_path: Path, weights: LinkageModel, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path, weights, lambda *_: script) as (writer, _):
        store, metrics = writer.engine.store, writer.metrics
        monkeypatch.setattr(metrics, "_oldest_reader_s", lambda: float(store.environment._active))
        assert "shoal_oldest_reader_seconds 1.0" in metrics.text()


def test_assign_and_explain_over_the_socket(tmp_path: Path, weights: LinkageModel, script: Script) -> None:
    with running(tmp_path, weights, lambda *_: script) as (writer, control):
        vectors = draw(1, 60)
        assert control.call("assign", {}, vectors[:1])["answers"][0]["cluster"] == "new"
        with pytest.raises(NotFound):
            control.call("explain", {"key": "1-3"})
        script.batches.append(batch(1, 60))
        until(lambda: script.versions == [1])
        told = control.call("assign", {}, vectors)
        assert (told["collection"], told["version"]) == ("shoal", 1)
        expected = writer.engine.assign(vectors)
        for shown, answer in zip(told["answers"], expected, strict=True):
            assert shown["cluster"] == (answer.cluster or "new")
            assert (shown["probability"], shown["neighbor"]) == (
                answer.probability,
                answer.neighbor,
            )
        for wrong, words in (np.ones((1, 3)), "3 dimensions"), (np.zeros((1, DIM)), "zero"):
            with pytest.raises(InputError, match=words):
                control.call("assign", {}, wrong.astype(np.float32))
        with pytest.raises(InputError, match="needs vectors"):
            control.call("assign")
        assert control.call("explain", {"key": "1-3"}) == writer.engine.explain(b"1-3")
        assert len(control.call("explain", {"key": "1-3", "level": 0})["levels"]) == 1


def test_a_question_between_batches_does_not_wait_for_ever(
    tmp_path: Path, weights: LinkageModel, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path, weights, lambda *_: script) as (writer, control):
        script.batches.append(batch(1, 30))
        until(lambda: script.versions == [1])
        apply, reached, go = writer.engine.apply, threading.Event(), threading.Event()

        def halting(found: Batch) -> Applied:
            reached.set()
            assert go.wait(120)
            return apply(found)

        monkeypatch.setattr(writer.engine, "apply", halting)
        script.batches.append(batch(2, 30))
        assert reached.wait(60)
        with pytest.raises(WriterBusy):
            control.call("explain", {"key": "1-3"}, timeout_s=0.3)
        with pytest.raises(WriterBusy, match="large batch"):
            writer.between(lambda: None, 0.1)
        status = control.call("status")
        assert (status["state"], status["version"]) == ("running", 1)
        assert status["stalled_s"] >= 0.3
        assert control.call("assign", {}, draw(1, 1))["version"] == 1
        go.set()
        assert writer.between(lambda: writer.engine.version, 60) == 2


def test_work_between_batches_may_fail_and_may_take_long(
    tmp_path: Path, weights: LinkageModel, script: Script
) -> None:
    with running(tmp_path, weights, lambda *_: script) as (writer, _):

        def refuse() -> None:
            raise InputError("no")

        with pytest.raises(InputError, match="no"):
            writer.between(refuse, 60)
        begun = threading.Event()

        def long() -> str:
            begun.set()
            time.sleep(1.2)
            return "done"

        assert writer.between(long, 1.0) == "done"
        assert begun.is_set()
        writer.stopping.set()
        with pytest.raises((WriterAway, WriterBusy)):
            writer.between(lambda: None, 0.5)


def test_http_records_to_a_durable_version(tmp_path: Path, weights: LinkageModel) -> None:
    def http(settings: Settings, engine: Engine) -> Source:
        return HttpSource(context_of(settings, engine))

    with running(tmp_path, weights, http) as (writer, control):
        keys = [f"k{row}" for row in range(20)]
        answer = submit(control, [*keys, "zero"], [*draw(3, 20), np.zeros(DIM)], deletes=["none"])
        assert answer == {
            "version": 1,
            "rejected": [{"index": 20, "reason": "the embedding is zero"}],
            "doubts": [],
            "unknown": [21],
        }
        assert len(writer.engine) == 20
        told = submit(control, [], [], deletes=["k1", "k1"])
        assert (told["version"], told["unknown"]) == (2, [1])
        with pytest.raises(NotFound):
            control.call("explain", {"key": "k1"})


def test_a_full_log_pauses_the_source(
    tmp_path: Path, weights: LinkageModel, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path, weights, lambda *_: script) as (writer, control):
        full, asked = True, []

        def log_is_full() -> bool:
            asked.append(full)
            return full

        monkeypatch.setattr(writer.engine.store, "log_is_full", log_is_full)
        until(lambda: control.call("status")["state"] == "paused")
        assert "unpublished events" in control.call("status")["reason"]
        script.batches.append(batch(1, 5))
        before = len(asked)
        until(lambda: len(asked) > before + 3)
        assert script.versions == []
        full = False
        until(lambda: script.versions == [1])
        assert control.call("status")["state"] == "running"


def test_a_source_brings_operations_of_its_own(tmp_path: Path, weights: LinkageModel, script: Script) -> None:
    script.handlers = {"sweep": lambda body, vectors: {"by": body["by"]}}
    with running(tmp_path, weights, lambda *_: script) as (_, control):
        assert control.call("sweep", {"by": "me"}) == {"by": "me"}


def test_a_failed_commit_ends_the_loop(
    tmp_path: Path, weights: LinkageModel, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.model_validate({"store": {"path": tmp_path}, "index": {"kind": "exact"}})
    with Engine.open(settings, weights) as engine:
        writer = Writer(settings, engine, script)
        script.batches += [batch(1, 5), batch(2, 5)]

        def fail(*_: Any) -> None:
            raise lmdb.DiskError("no space")

        monkeypatch.setattr("engine.storage.commit.apply", fail)
        with pytest.raises(StoreError, match="make room"):
            writer.run()
        writer.close()
        assert script.versions == []
        assert script.closed == 1


def test_nothing_comes_in_without_a_source(tmp_path: Path, weights: LinkageModel) -> None:
    with running(tmp_path, weights, lambda *_: NoSource()) as (_, control):
        assert control.call("status")["source"] == "none"
        with pytest.raises(InputError, match="no operation 'submit'"):
            control.call("submit", {})


def test_batches_grow_with_the_backlog_and_stay_within_their_time() -> None:
    pace = Pace(BatchSettings(min=16, max=1000, target_s=1.0))
    assert pace.size == 256
    pace.took(256, 0.1)
    assert pace.size == 512
    pace.took(3, 5.0)  # a batch that was not full says nothing
    assert pace.size == 512
    pace.took(512, 1.0)
    assert pace.size == 512
    pace.took(512, 0.01)
    assert pace.size == 1000
    for _ in range(20):
        pace.took(pace.size, 60.0)
    assert pace.size == 16
    fixed = Pace(BatchSettings(size=300))
    fixed.took(300, 60.0)
    assert fixed.size == 300
    assert Pace(BatchSettings(min=400)).size == 400


def test_tables_have_what_metrics_read(tmp_path: Path, weights: LinkageModel) -> None:
    """`sizes` has a row for each final cluster."""
    settings = Settings.model_validate({"store": {"path": tmp_path}, "index": {"kind": "exact"}})
    with Engine.open(settings, weights) as engine:
        engine.apply(batch(1, 50))
        with engine.store.snapshot() as found:
            assert found.sizes.count() == len(set(engine.labels()[1].tolist()))
            assert "sizes" in schema.TABLES
