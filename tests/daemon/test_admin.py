"""What an operator does to a running daemon's store: each command, while batches and queries go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import orjson
import pytest

from engine.cli import operate
from engine.collection.collection import Engine
from engine.collection.erase import Erasure
from engine.config import load
from engine.daemon import admin
from engine.daemon.control import Control
from engine.errors import InputError, NotFound, WriterBusy
from engine.storage.reader import View
from tests.conftest import Run
from tests.support import collections
from tests.support.live_api import settings_of, writer
from tests.support.random_models import random_model
from tests.support.records import submit
from tests.support.waiting import until

DIM = 8


draw = partial(collections.draw, groups=12, dim=DIM, spread=0.1)


@contextmanager
def stream(store: Path) -> Iterator[list[int]]:
    """Records all the time; the versions that brought them."""
    versions: list[int] = []
    stopping = threading.Event()

    def send() -> None:
        with Control(store, 60.0) as control:
            while not stopping.is_set():
                at = len(versions)
                told = submit(control, [f"s{at}"], draw(at, 1), deletes=[f"s{at - 5}"])
                versions.append(told["version"])

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield versions
    finally:
        stopping.set()
        thread.join(60)
        assert not thread.is_alive()


def test_every_command_beside_a_daemon(shoal: Run, tmp_path: Path) -> None:
    random_model(7).save(tmp_path / "model")
    store = tmp_path / "shoal-store"
    flags = {"model__path": str(tmp_path / "model"), "model__tau": 0.3, "retention__max_items": 250}
    env = {
        "SHOAL_INDEX__KIND": "exact",
        "SHOAL_MODEL__PATH": str(tmp_path / "model"),
        "SHOAL_MODEL__TAU": "0.3",
    }
    with writer(settings_of(store, **flags)), Control(store, 60.0) as control, View.open(store) as view:
        names = [f"the item {i}" for i in range(300)]
        submit(control, names, draw(0, 300), times=list(range(300)))
        until(lambda: view.summary()["items"] <= 250, 120)  # nothing comes: the clock alone does it
        with pytest.raises(NotFound):
            view.item("the item 3")
        with stream(store) as versions:
            done = shoal("check", "--sample", "0", env=env)
            assert done.returncode == 0, done.stdout + done.stderr
            done = shoal("backup", "copy", env=env)
            assert done.returncode == 0, done.stderr
            done = shoal("restore", "copy", "--force", env=env)
            assert done.returncode == 6, "a daemon has the store"
            sent = len(versions)
            done = shoal("rebuild", "--tau", "0.6", "--base-tau", "0.5", "--json", env=env)
            made = orjson.loads(done.stdout)
            assert made["live"], done.stderr
            assert made["items"] >= 240
            assert len(versions) > sent, "records go on"
            done = shoal("erase", "the item 200", env=env)
            assert done.returncode == 0, done.stderr
            done = shoal("compact", "--json", env=env)
            assert orjson.loads(done.stdout)["live"], done.stderr
            before, sent = view.version, len(versions)
            until(lambda: len(versions) >= sent + 5)
            assert view.version > before, "this reader went over to the new file"
        assert versions == sorted(versions)
        with pytest.raises(NotFound):
            view.item("the item 200")
        assert view.item("the item 299")["key"] == "the item 299"
        assert control.call("status")["state"] == "running"
    assert not any(b"the item 200" in path.read_bytes() for path in store.iterdir() if path.is_file())
    done = shoal("check", "--sample", "0", env=env | {"SHOAL_MODEL__TAU": "0.6"})
    assert "base_tau 0.5, not the model's" in done.stdout + done.stderr
    done = shoal("check", "--sample", "0", "--tau", "0.6", "--base-tau", "0.5", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not looked at" not in done.stdout


def test_one_rebuild_or_erasure_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine.open(settings_of(tmp_path), random_model(7)) as engine:
        found = admin.Admin(engine, lambda work: work()).handlers
        body = {"key": "a", "model": None}

        def beside(*_: object, **__: object) -> Erasure:
            for op in "erase", "rebuild":
                with pytest.raises(WriterBusy, match="another rebuild or erasure is in progress"):
                    found[op](body, None)
            return Erasure(True, 0, 1, 0)

        monkeypatch.setattr(engine, "erase", beside)
        for _ in range(2):  # the first one has ended
            assert found["erase"](body, None)["found"]


def test_what_expires_while_nothing_comes_is_counted(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "store", retention__max_items=5)
    with writer(settings), Control(tmp_path / "store", 30.0) as control:
        submit(control, [f"k{i}" for i in range(9)], draw(0, 9))
        until(lambda: 'shoal_records_total{outcome="expired"} 4.0' in control.call("metrics")["text"], 120)


def test_settings_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    changed = admin.changed(settings, {"model": {"tau": 0.4}, "index": {}})
    assert (changed.model.tau, changed.index) == (0.4, settings.index)
    with pytest.raises(
        InputError, match=r"rebuild with these settings. .* index.kind = 'other' \(in the req.*\.$"
    ):
        admin.changed(settings, {"index": {"kind": "other"}})


def test_a_daemon_is_told_what_is_set_and_nothing_else(tmp_path: Path) -> None:
    """By file, flag or variable; the defaults here are not to take the place of its settings."""
    config = tmp_path / "shoal.toml"
    config.write_text('[model]\nmax_levels = 3\npath = "a.safetensors"\n[limits]\nslack = 7\n')
    told = operate._renewed(load(config, {"model.tau": 0.4, "model.base_tau": 0.7}))
    assert told == {
        "model": {
            "max_levels": 3,
            "tau": 0.4,
            "base_tau": 0.7,
            "path": str(Path("a.safetensors").absolute()),
        },
        "index": {},
    }
    assert operate._renewed(load(None, {})) == {"model": {}, "index": {}}
