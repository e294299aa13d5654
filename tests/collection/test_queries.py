"""What a collection answers: clusters, and where a vector would go."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from engine.collection.collection import Engine
from tests.collection.conftest import Open
from tests.support.collections import DIM, draw, labels, members, names, settings_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_moved_item_keeps_its_id_and_its_history(opened: Open) -> None:
    engine = opened()
    engine.upsert(names(100), draw(20, 100))
    state, before = engine.state, labels(engine)
    ids = {key: int(state.items.ids[row]) for key, row in state.items.row_of.items()}
    moving = names(10)
    engine.upsert(moving, draw(21, 10))
    assert {key: int(state.items.ids[row]) for key, row in state.items.row_of.items()} == ids
    after = labels(engine)
    now = engine.store.load()
    assert now.items.versions.tolist() == [2 if i < 10 else 1 for i in range(100)]
    assert any(before[key] != after[key] for key in moving)
    kept = set(members(before)) & set(members(after))
    assert kept  # clusters that lived on under their ids


def test_an_item_nudged_within_its_cluster_stays_in_it(opened: Open) -> None:
    engine = opened()
    vectors = draw(22, 60)
    engine.upsert(names(60), vectors)
    before = labels(engine)
    engine.upsert(["item 0"], vectors[:1] + 1e-4)
    assert engine.version == 2
    assert labels(engine)["item 0"] == before["item 0"]


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_assign_answers_as_an_insert_that_enters_no_list(opened: Open, kind: str) -> None:
    """Then nothing differs from an insert: the same linkage, to the bit."""
    engine = opened(index={"kind": kind})
    engine.upsert(names(400), draw(23, 400))
    rng = np.random.default_rng(23)
    compared = linked = 0
    for at in range(60):
        vector = draw(100 + at, 1) + rng.choice([0.0, 0.5]) * rng.normal(size=(1, DIM))
        version = engine.version
        [answer] = engine.assign(vector)
        assert engine.version == version
        before = labels(engine)
        key = f"probe {at}"
        applied = engine.upsert([key], vector)
        state = engine.state
        base = state.hierarchy.base
        row = int(state.items.nodes[state.items.row_of[key.encode()]])
        if applied.stats["work"][0].changed == 1 and not applied.stats["recalibrated"]:
            compared += 1
            linkage = base.linkage[row, : base.lists.degrees[row]].tolist()
            hashes = base.nodes.hashes[base.lists.neighbors[row]].tolist()
            rank = min(range(len(linkage)), key=lambda at: (-linkage[at], hashes[at]))
            [neighbor] = map(bytes.decode, state.representatives(base.lists.neighbors[row, rank : rank + 1]))
            assert answer.probability == float(base.linkage[row, rank])
            assert answer.neighbor == neighbor
            linked += answer.cluster is not None
            assert answer.cluster == (before[neighbor] if answer.probability > engine.model.tau else None)
        engine.delete([key])
    assert compared >= 10
    assert linked >= 5


def test_assign_of_an_item_that_is_there(opened: Open) -> None:
    """The shipped weights put a copy of an item where the item is."""
    engine = Engine.open(settings_of(opened().settings.store.path.with_name("shipped")))
    with engine:
        vectors = draw(24, 200)
        engine.upsert(names(200), vectors)
        found = labels(engine)
        answers = engine.assign(vectors)
        same = [found[name] == a.cluster for name, a in zip(names(200), answers, strict=True)]
        assert sum(same) > 150
        assert engine.assign(vectors[7]) == [answers[7]]  # one vector needs no matrix


def test_queries_run_beside_batches(opened: Open) -> None:
    engine = opened(index={"kind": "hnsw"})
    engine.upsert(names(200), draw(25, 200))
    problems: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        try:
            while not done.is_set():
                assert len(labels(engine)) in range(200, 401, 20)
                assert len(engine.assign(draw(26, 3))) == 3
        except BaseException as problem:
            problems.append(problem)

    asking = threading.Thread(target=ask)
    asking.start()
    for first in range(200, 400, 20):
        engine.upsert(names(20, first), draw(first, 20))
    done.set()
    asking.join()
    assert not problems
