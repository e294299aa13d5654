"""The library as a Python person expects it: opening, a mapping from keys, export, forks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine import Engine
from engine.config import load
from engine.errors import ConfigError, InputError, NotFound, StoreError
from engine.storage.reader import View
from tests.collection.conftest import Open
from tests.conftest import ROOT, environment
from tests.support.collections import DIM, draw, labels, members, names

pytestmark = pytest.mark.usefixtures("one_thread")


def test_opens_a_folder(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Engine.open("news", model=model) as engine:
        assert engine.upsert(["a"], draw(1, 1)).inserted == 1
    with Engine.open(tmp_path / "news", model=str(model)) as engine:
        assert "a" in engine
    with Engine.open(path="news", model=model, index="hnsw") as engine:
        assert len(engine) == 1
    assert (tmp_path / "news" / "data.mdb").exists()


def test_opens_with_keywords(tmp_path: Path, model: Path) -> None:
    (tmp_path / "shoal.toml").write_text('[collection]\nname = "file"\ndim = 8\n')
    with Engine.open(
        path=tmp_path / "store", config=tmp_path / "shoal.toml", name="flag", index="exact", tau=0.7,
        max_items=5, model=model, index__ef=50,  # type: ignore[call-arg]
    ) as engine:  # fmt: skip
        chosen = engine.settings
        assert (chosen.collection.name, chosen.collection.dim) == ("flag", 8)
        assert (chosen.index.kind, chosen.index.ef, chosen.model.tau) == ("exact", 50, 0.7)
        assert chosen.retention.max_items == 5


def test_wrong_keywords_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no keyword indx: there are config, path, name"):
        Engine.open(tmp_path, indx="exact")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"index\.kind = 'fast'"):
        Engine.open(tmp_path, index="fast")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"There is no setting index\.speed"):
        Engine.open(tmp_path, index__speed=1)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"There is no setting foo \(in the keywords\)"):
        Engine.open(tmp_path, foo__bar=1)
    with pytest.raises(ConfigError, match=r"The setting index\.ef = 'x' \(in the keywords\) is refused"):
        Engine.open(tmp_path, index__ef="x")
    with pytest.raises(InputError, match="either Settings or a folder and keywords"):
        Engine.open(load(None, {}), path=tmp_path)


def test_the_home_folder_is_understood(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with Engine.open("~/news", model=model):
        assert (tmp_path / "news" / "data.mdb").exists()
    assert not (tmp_path / "~").exists()


def test_a_mapping_from_keys_to_items(opened: Open) -> None:
    engine = opened()
    payloads = [{"title": name} for name in names(30)]
    engine.upsert(names(30), draw(2, 30), times=1.4e9 + np.arange(30), payloads=payloads)
    assert len(engine) == 30
    assert sorted(engine) == sorted(names(30))
    assert "item 3" in engine
    assert b"item 3" in engine
    assert "nobody" not in engine
    assert 1.5 not in engine
    item = engine["item 3"]
    assert (item.key, item.cluster) == ("item 3", labels(engine)["item 3"])
    assert item.path[0] == item.cluster
    assert (item.payload, item.time_ms, item.updated) == ({"title": "item 3"}, 1_400_000_003_000, 1)
    assert item.time.isoformat() == "2014-05-13T16:53:23+00:00"
    assert engine.get("item 3") == item
    assert engine.get("nobody") is None
    with pytest.raises(KeyError, match=r"^no item has the key 'nobody'$"):
        engine["nobody"]
    with pytest.raises(NotFound):
        engine.explain("nobody")


def test_members_of_every_cluster(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.collection.collection.MAX_PAGE", 7)
    engine = opened()
    engine.upsert(names(120), draw(3, 120))
    found = members(labels(engine))
    assert max(map(len, found.values())) > 7
    for cluster, own in found.items():
        keys = engine.members(cluster)
        assert len(keys) == len(own)
        assert set(keys) == own
    with pytest.raises(NotFound):
        engine.members(10**6)
    for wrong in "item 1", 1.5, None:
        with pytest.raises(InputError, match="a cluster is named by its number, not by"):
            engine.members(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="after is the event-id of an event"):
        engine.changes(after=5)  # type: ignore[arg-type]


def test_labels_of_every_level_are_those_of_the_items(opened: Open) -> None:
    engine = opened(model={"coarser": [0.3, 0.1]})
    assert engine.labels("+1") == ([], pytest.approx([]))
    engine.upsert(names(120), draw(3, 120))
    keys, final = engine.labels()
    with View.beside(engine.store) as view:
        for level in (0, 1, 2, 64):
            own, clusters = engine.labels(level)
            assert own == keys
            assert clusters.tolist() == [view.item(key, level)["cluster"] for key in keys]
    assert (engine.labels(0)[1] != final).any()
    found = engine.prepare_themes()()
    for step in (1, 2):
        themes = dict(zip(found.clusters.tolist(), found.keys[step - 1].tolist(), strict=True))
        assert engine.labels(f"+{step}")[1].tolist() == [themes[cluster] for cluster in final.tolist()]
    assert (engine.labels("+2")[1] != final).any()
    with pytest.raises(InputError, match=r"level \+3: above the final clusters there are levels \+1 to \+2"):
        engine.labels("+3")
    for wrong in -1, "top", 1.5, True:
        with pytest.raises(InputError, match="level is 0 to 64"):
            engine.labels(wrong)
    engine.delete(keys)
    assert [len(part) for part in engine.labels("+1")] == [0, 0]


def test_assign_and_events_name_keys_as_text(opened: Open) -> None:
    engine = opened()
    vectors = draw(4, 40)
    engine.upsert(names(40), vectors)
    assert {answer.neighbor for answer in engine.assign(vectors)} <= set(names(40))
    events = engine.changes()
    assert {event["key"] for event in events if "key" in event} == set(names(40))
    engine.delete(["item 0"])
    later = engine.changes(after=events[-1]["event-id"])
    assert [event["cluster"] for event in later if event.get("key") == "item 0"] == [None]
    assert engine.changes(after=later[-1]["event-id"]) == []
    with pytest.raises(InputError, match="like '12-0', not 'x'"):
        engine.changes(after="x")


def test_export(opened: Open) -> None:
    engine = opened()
    engine.upsert(names(50), draw(5, 50), times=[1.4e9] * 50, payloads=[{"n": 1}, *[None] * 49])
    engine.delete(names(5, 10))
    table = engine.to_arrow()
    assert table.column_names == ["key", "cluster", "path", "time", "payload", "updated"]
    rows = {row["key"]: row for row in table.to_pylist()}
    assert {key: row["cluster"] for key, row in rows.items()} == labels(engine)
    for key, row in rows.items():
        assert tuple(row["path"]) == engine[key].path
        assert row["time"] == engine[key].time
    assert rows["item 0"]["payload"] == '{"n":1}'
    assert rows["item 1"]["payload"] is None
    assert opened("empty").to_arrow().num_rows == 0


def test_a_fork_is_refused(opened: Open) -> None:
    """Whatever it calls; and its end leaves the parent's store alone."""
    engine = opened()
    engine.upsert(names(20), draw(6, 20))
    calls = {
        "upsert": lambda: engine.upsert(["x"], draw(1, 1)),
        "assign": lambda: engine.assign(draw(1, 1)),
        "labels": engine.labels,
        "getitem": lambda: engine["item 1"],
        "explain": lambda: engine.explain("item 1"),
        "rebuild": engine.rebuild,
    }
    for name, call in calls.items():
        assert forked(call) == "Forked", name
    assert forked(engine.close) == "nothing"
    assert engine.upsert(["y"], draw(2, 1)).inserted == 1


def forked(call: object) -> str:
    """The exception that the call ends with in a fork."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            call()  # type: ignore[operator]
            os.write(writing, b"nothing")
        except BaseException as problem:
            os.write(writing, type(problem).__name__.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        found = told.read().decode()
    assert os.waitpid(child, 0)[1] == 0
    return found


FORKS = """
import os, sys
import numpy as np
from engine import Engine
from engine.errors import Forked
with Engine.open(sys.argv[1]) as engine:
    engine.upsert(["a", "b"], np.random.rand(2, 8))
if not os.fork():
    try:
        Engine.open(sys.argv[1])
    except Forked as problem:
        os.write(1, str(problem).encode())
    os._exit(0)
assert os.wait()[1] == 0
"""


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_a_fork_that_could_not_compute_opens_nothing(tmp_path: Path, model: Path, layer: str) -> None:
    env = environment({"SHOAL_MODEL__PATH": str(model), "NUMBA_THREADING_LAYER": layer})
    command = [sys.executable, "-W", "ignore", "-c", FORKS, str(tmp_path / "store")]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ("which does not survive a fork" in done.stdout) == (layer == "omp")


def test_a_spawned_process_computes(tmp_path: Path, model: Path) -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=put, args=(tmp_path / "store", model))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    with Engine.open(tmp_path / "store", model) as engine:
        assert len(engine) == 3


def put(path: Path, model: Path) -> None:
    signal.alarm(110)
    with Engine.open(path, model) as engine:
        engine.upsert(names(3), np.eye(3, DIM))


def test_what_makes_no_sense_is_refused_with_a_sentence(opened: Open) -> None:
    engine = opened()
    engine.upsert(names(20), draw(1, 20))
    for level in (-1, 65, "+1", "x", 1.5, True):
        with pytest.raises(InputError, match="level is 0 to 64, 0 the finest; exports and explanations take"):
            engine.explain(names(1)[0], level)  # type: ignore[arg-type]
    assert engine.explain(names(1)[0], np.int64(0)) == engine.explain(names(1)[0], 0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a cluster is named by its number, not by True"):
        engine.members(True)
    for limit in ("x", 0, 1.5, None):
        with pytest.raises(InputError, match="a page has 1 to 10000 entries, not "):
            engine.changes(limit=limit)  # type: ignore[arg-type]
    engine.close()
    with pytest.raises(StoreError, match="the engine is closed; reopen the store"):
        len(engine)
