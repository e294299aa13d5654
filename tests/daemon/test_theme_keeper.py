"""The writer groups clusters when asked, keeps what it found, and does not do it too often."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.collection.collection import Engine
from engine.daemon.theme_keeper import ThemeKeeper
from engine.errors import InputError, WriterBusy
from tests.support.collections import draw, names, settings_of
from tests.support.random_models import random_model

pytestmark = pytest.mark.usefixtures("one_thread")


class Clock:
    """Each computation takes a second, read from it twice."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def at_once(work: Callable[[], Any], timeout_s: float) -> Any:
    return work()


def test_a_version_is_grouped_once_and_a_busy_stream_not_each_time(tmp_path: Path) -> None:
    clock, asked = Clock(), []

    def between(work: Callable[[], Any], timeout_s: float) -> Any:
        found = work()
        asked.append(engine.version)
        clock.now += 1.0
        return found

    with Engine.open(settings_of(tmp_path), random_model(7)) as engine:
        keeper = ThemeKeeper(engine, between, clock)
        assert keeper.ask(1, 10.0).keys.shape == (2, 0)
        engine.upsert(names(80), draw(1, 80))
        assert keeper.ask(1, 10.0).version == 0, "not within ten times what it took"
        clock.now += 9.0
        first = keeper.ask(2, 10.0)
        assert (first.version, first.keys.shape[0]) == (1, 2)
        clock.now += 100.0
        assert keeper.ask(1, 10.0) is first
        engine.upsert(names(40, 80), draw(2, 40))
        assert keeper.ask(1, 10.0).version == 2
        assert asked == [0, 1, 2]


def test_what_cannot_be_grouped_is_told(tmp_path: Path) -> None:
    with Engine.open(settings_of(tmp_path, limits={"theme_clusters": 3}), random_model(7)) as engine:
        keeper = ThemeKeeper(engine, at_once)
        with pytest.raises(InputError, match=r"level \+3: above the final clusters there are levels"):
            keeper.ask(3, 10.0)
        engine.upsert(names(80), draw(1, 80))
        for _ in range(2):  # and is tried again
            with pytest.raises(InputError, match=r"more than the 3 .*theme_clusters"):
                keeper.ask(1, 10.0)


def test_who_waits_in_vain_gets_the_last_ones_or_comes_again(tmp_path: Path) -> None:
    def never(work: Callable[[], Any], timeout_s: float) -> Any:
        time.sleep(timeout_s)
        raise WriterBusy("a large batch")

    with Engine.open(settings_of(tmp_path), random_model(7)) as engine:
        with pytest.raises(WriterBusy, match="try again"):
            ThemeKeeper(engine, never).ask(1, 0.05)
        how = [at_once, never]
        clock = Clock()
        keeper = ThemeKeeper(engine, lambda work, timeout_s: how.pop(0)(work, timeout_s), clock)
        engine.upsert(names(30), draw(1, 30))
        kept = keeper.ask(1, 10.0)
        engine.upsert(names(30, 30), draw(2, 30))
        clock.now += 100.0
        assert keeper.ask(1, 0.05) is kept
