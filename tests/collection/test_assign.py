"""Assign beside a batch at work: of the committed version, as if nothing else were going on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.clustering import pipeline
from engine.collection.assign import NEW, Answer
from engine.collection.collection import Engine
from engine.config import Settings
from engine.daemon.assign_queue import AssignQueue
from engine.errors import StoreError, WriterAway, WriterBusy
from engine.index.hnsw import GraphLock, HnswIndex
from engine.model.linkage import LinkageModel
from engine.types import Float64, Int16
from engine.vectors import quantize
from tests.support.random_models import random_model
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("one_thread")
DIM, SEED = 8, 11
QUESTIONS = 60


@pytest.fixture(scope="module")
def weights() -> LinkageModel:
    return random_model(7)


@pytest.fixture(params=["exact", "hnsw"])
def engine(request: pytest.FixtureRequest, tmp_path: Path, weights: LinkageModel) -> Iterator[Engine]:
    settings = Settings.model_validate({"store": {"path": tmp_path}, "index": {"kind": request.param}})
    with Engine.open(settings, weights, lambda: 1.5) as opened:
        yield opened


def draw(seed: int, count: int) -> Float64:
    centres = np.random.default_rng(SEED).normal(size=(10, DIM))
    rng = np.random.default_rng(seed)
    return centres[rng.integers(0, 10, count)] + 0.25 * rng.normal(size=(count, DIM))


def ask(engine: Engine, seed: int = 5) -> tuple[int, list[Answer]]:
    return engine.assign_grid(engine.on_grid(draw(seed, QUESTIONS)))


class Halted:
    """A batch that stops at a stage, in a thread, until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
        self._reached, self._go = threading.Event(), threading.Event()
        module, name = {"names": (pipeline, "_name"), "change": (pipeline, "_lists")}[stage]
        before = getattr(module, name)

        def halt(*arguments: Any) -> Any:
            self._reached.set()
            assert self._go.wait(120)
            return before(*arguments)

        monkeypatch.setattr(module, name, halt)

    def start(self, work: Any) -> None:
        self._thread = threading.Thread(target=work)
        self._thread.start()
        assert self._reached.wait(60)

    def finish(self) -> None:
        self._go.set()
        self._thread.join()


@pytest.mark.parametrize("stage", ["names", "change"])
def test_a_batch_at_work_changes_no_answer(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Items come, move and go in it, near what is asked for; the answers are the ones from before."""
    engine.upsert([f"i{row}" for row in range(300)], draw(1, 300))
    before = ask(engine)
    assert before[0] == 1
    assert {answer.cluster is None for answer in before[1]} == {True, False}, SEED

    halted = Halted(monkeypatch, stage)
    batch = np.concatenate([draw(5, QUESTIONS), draw(2, 40)])  # the very vectors that are asked for
    keys = [f"new{row}" for row in range(QUESTIONS)] + [f"i{row}" for row in range(40)]
    halted.start(lambda: engine.upsert(keys, batch))
    assert ask(engine) == before
    assert len(engine) in (300, 300 + QUESTIONS)
    halted.finish()
    version, after = ask(engine)
    assert version == 2
    assert after != before[1]


def test_deletes_at_work_change_no_answer(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.upsert([f"i{row}" for row in range(300)], draw(1, 300))
    engine.delete([f"i{row}" for row in range(200, 210)])  # rows to be used again
    before = ask(engine)
    halted = Halted(monkeypatch, "names")
    halted.start(lambda: engine.delete([f"i{row}" for row in range(0, 200, 2)]))
    assert ask(engine) == before
    halted.finish()
    assert ask(engine)[0] == 3


def test_a_crowd_in_a_batch_hides_nobody(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """More uncommitted items near a question than the index is first asked for."""
    engine.upsert([f"i{row}" for row in range(200)], draw(1, 200))
    vector = draw(5, 1)
    before = engine.assign(vector)
    halted = Halted(monkeypatch, "names")
    crowd = vector + 1e-3 * np.random.default_rng(SEED).normal(size=(300, DIM))
    halted.start(lambda: engine.upsert([f"n{row}" for row in range(300)], crowd))
    assert engine.assign(vector) == before
    halted.finish()
    assert engine.assign(vector) != before


def test_together_or_alone(engine: Engine) -> None:
    engine.upsert([f"i{row}" for row in range(300)], draw(1, 300))
    engine.delete([f"i{row}" for row in range(0, 300, 7)])
    version, together = ask(engine)
    assert version == 2
    for vector, answer in zip(draw(5, QUESTIONS), together, strict=True):
        assert engine.assign(vector) == [answer]


def test_many_equal_items(engine: Engine) -> None:
    """The order among equal ones is the keys' hash; all of them are candidates."""
    engine.upsert([f"i{row}" for row in range(90)], np.ones((90, DIM)))
    [answer] = engine.assign(np.ones(DIM))
    assert answer.neighbor is not None
    assert answer.probability > 0


def test_before_the_first_commit(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(engine) == (0, [NEW] * QUESTIONS)
    halted = Halted(monkeypatch, "names")
    halted.start(lambda: engine.upsert(["a", "b"], draw(1, 2)))
    assert ask(engine) == (0, [NEW] * QUESTIONS)
    halted.finish()
    assert ask(engine)[0] == 1
    engine.delete(["a", "b"])
    assert ask(engine) == (2, [NEW] * QUESTIONS)


def test_a_new_generation_is_not_mixed_with_the_old_one(engine: Engine) -> None:
    engine.upsert(["a", "b", "c"], draw(1, 3))
    engine.model = random_model(8)
    with pytest.raises(WriterBusy, match="new generation"):
        ask(engine)


def test_a_closed_store_is_not_asked(tmp_path: Path, weights: LinkageModel) -> None:
    settings = Settings.model_validate({"store": {"path": tmp_path}, "index": {"kind": "exact"}})
    with Engine.open(settings, weights) as engine:
        engine.upsert(["a"], draw(1, 1))
        grid = engine.on_grid(draw(1, 1))
    with pytest.raises(StoreError, match="closed"):
        engine.assign_grid(grid)


def test_answers_under_load_are_of_one_version(engine: Engine) -> None:
    """What is asked while versions go by is what asking at rest gives for that version."""
    base = draw(1, 200)
    engine.upsert([f"i{row}" for row in range(200)], base)
    exact = not isinstance(engine.state.hierarchy.base.lists.index, HnswIndex)
    seen: list[tuple[int, list[Answer]]] = []
    done = threading.Event()

    def keep_asking() -> None:
        while not done.is_set():
            seen.append(ask(engine))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    known = {}
    try:
        for step in range(12):
            engine.upsert([f"n{step}-{row}" for row in range(10)], draw(100 + step, 10))
            known[engine.version] = ask(engine)[1]
            engine.delete([f"n{step}-{row}" for row in range(5)])
            known[engine.version] = ask(engine)[1]
    finally:
        done.set()
        asking.join()
    assert len({version for version, _ in seen}) >= 3
    compared = [(answers, known[version]) for version, answers in seen if version in known]
    assert compared
    for answers, at_rest in compared:
        same = sum(a == b for a, b in zip(answers, at_rest, strict=True))
        assert same == QUESTIONS if exact else same >= 0.9 * QUESTIONS


class Slow:
    """A probe that takes its time."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.go = threading.Event()

    def __call__(self, grid: Int16) -> tuple[int, list[Answer]]:
        self.sizes.append(len(grid))
        assert self.go.wait(120)
        if grid[0, 0] < 0:
            raise ValueError("of ours")
        return 3, [Answer(int(row[1]), 1.0, None) for row in grid]


def test_questions_that_wait_are_answered_together() -> None:
    probe = Slow()
    queue = AssignQueue(probe, together=4, waiting_max=100)
    grids = [np.array([[1, number]] * 2, np.int16) for number in range(5)]
    found: dict[int, Any] = {}

    def put(number: int) -> None:
        found[number] = queue.ask(grids[number], 10)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(5)]
    for number, thread in enumerate(threads):
        thread.start()
        until(lambda number=number: probe.sizes and len(queue._waiting) == number)
    probe.go.set()
    for thread in threads:
        thread.join()
    assert found == {number: (3, [Answer(number, 1.0, None)] * 2) for number in range(5)}
    assert probe.sizes == [2, 4, 4]
    with pytest.raises(ValueError, match="of ours"):
        queue.ask(np.array([[-1, 0]], np.int16), 10)
    assert queue.ask(grids[0], 10)
    queue.close()


def test_the_model_answers_on_one_thread_whatever_others_chose() -> None:
    threads: list[int] = []

    def probe(grid: Int16) -> tuple[int, list[Answer]]:
        threads.append(torch.get_num_threads())
        return 1, [NEW]

    before = torch.get_num_threads()
    queue = AssignQueue(probe, together=4, waiting_max=4)
    try:
        torch.set_num_threads(2)  # as a thread does that names its arithmetic
        queue.ask(np.ones((1, 2), np.int16), 10)
    finally:
        torch.set_num_threads(before)
        queue.close()
    assert threads == [1]


def test_questions_are_bounded_in_number_and_time() -> None:
    probe = Slow()
    queue = AssignQueue(probe, together=4, waiting_max=2)
    grid = quantize(np.ones((2, 2)))[0]
    with pytest.raises(WriterBusy, match="in time"):
        queue.ask(grid, 0.05)
    outcomes: list[type[Exception] | None] = []

    def put() -> None:
        try:
            queue.ask(grid, 10)
            outcomes.append(None)
        except (WriterAway, WriterBusy) as problem:
            outcomes.append(type(problem))

    threads = [threading.Thread(target=put) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: len(queue._waiting) == 2)
    with pytest.raises(WriterBusy, match="wait already"):
        queue.ask(grid, 10)
    closing = threading.Thread(target=queue.close)
    closing.start()
    until(lambda: queue._closed)
    probe.go.set()
    for thread in (*threads, closing):
        thread.join()
    assert outcomes == [WriterAway, WriterAway]
    with pytest.raises(WriterAway):
        queue.ask(grid, 10)


def test_a_search_comes_in_between_two_slices() -> None:
    turns = GraphLock()
    order: list[str] = []
    inserting = threading.Event()

    def insert() -> None:
        for _ in range(3):
            with turns.insert():
                order.append("insert")
                inserting.set()
                time.sleep(0.05)

    thread = threading.Thread(target=insert)
    thread.start()
    assert inserting.wait(60)
    assert not turns.busy
    with turns.search():
        order.append("search")
    thread.join()
    assert order == ["insert", "search", "insert", "insert"]
    assert turns.busy


def test_searches_go_together_and_an_insert_alone() -> None:
    turns = GraphLock()
    with turns.search(), turns.search():
        entered = threading.Event()

        def insert() -> None:
            with turns.insert():
                entered.set()

        thread = threading.Thread(target=insert)
        thread.start()
        assert not entered.wait(0.1)
    assert entered.wait(60)
    thread.join()


def test_searches_without_end_do_not_keep_an_insert_out() -> None:
    turns = GraphLock()
    done = threading.Event()

    def keep_searching() -> None:
        while not done.is_set():
            with turns.search():
                time.sleep(0.002)

    threads = [threading.Thread(target=keep_searching) for _ in range(4)]
    for thread in threads:
        thread.start()
    inserted = threading.Semaphore(0)

    def insert() -> None:
        for _ in range(5):
            with turns.insert():
                inserted.release()

    inserting = threading.Thread(target=insert)
    inserting.start()
    try:
        for _ in range(5):
            assert inserted.acquire(timeout=60), "an insert waits for searches that have no end"
    finally:
        done.set()
        for thread in (*threads, inserting):
            thread.join()
