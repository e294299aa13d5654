"""What tests share: the option for full counts, and a command line to call."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

import engine  # noqa: F401  (pins the arithmetic before a test's torch loads)
from tests.support import schedule, warm_python

if TYPE_CHECKING:
    from tests.broker import Broker, Given

ROOT = Path(__file__).parents[1]
Finished: TypeAlias = "subprocess.CompletedProcess[str]"
Run = Callable[..., Finished]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="full counts, and the tests marked long")


def pytest_configure(config: pytest.Config) -> None:
    """Say how many examples hypothesis draws where a test does not; see that interrupts arrive.

    Start what the processes of tests are forked from.
    """
    from hypothesis import settings

    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts its background jobs
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what tests start inherits it

    settings.register_profile("short", max_examples=60, deadline=None)
    settings.register_profile("long", max_examples=300, deadline=None)
    settings.load_profile("long" if config.getoption("--long") else "short")
    if schedule.shares_processes(config):
        warm_python.share()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect long tests unless asked for; mark what a test needs; begin with what takes longest."""
    if not config.getoption("--long"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    for item in items:
        schedule.mark(item)
    items.sort(key=lambda item: schedule.rank_of(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> schedule.Schedule:
    """Keep together what shares a fixture."""
    config.option.loadscopereorder = False
    return schedule.Schedule(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported stays: to look through it for garbage takes seconds, now and later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin when the kernels are compiled, once for all workers of the session."""
    if hasattr(session.config, "workerinput"):
        warm_python.wait()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """See that what is not marked starts no process."""
    with schedule.alone(item):
        return (yield)


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether full counts are asked for."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch and numba on one thread: on a busy machine small calls otherwise wait for each other."""
    import numba
    import torch

    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads a store in a process of its own has one that starts warm."""
    monkeypatch.setattr(sys, "executable", warm_python.executable())


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings of Shoal, so that no test depends on them."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    return {**kept, "PYTHONPATH": str(ROOT), **(extra or {})}


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker | Given]:
    """One Kafka broker for the whole session; without one these tests fail."""
    from tests.broker import open_broker

    running = open_broker(tmp_path_factory.mktemp("broker"))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that links: tests of everything else need no trained one."""
    from tests.support.random_models import random_model

    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    random_model(3).save(path)
    return path


@pytest.fixture
def shoal(tmp_path: Path, model: Path) -> Run:
    """`shoal("query", "a")` runs the command in an empty folder and returns the finished process."""

    def run(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Finished:
        own = environment({"SHOAL_MODEL__PATH": str(model), **(env or {})})
        own_modules = own["PYTHONPATH"] != str(ROOT)  # other ones than a warm process has
        words = command(*arguments) if own_modules else warm_command(*arguments)
        return subprocess.run(words, cwd=tmp_path, env=own, capture_output=True, text=True, check=False)

    return run


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "engine", *map(str, arguments)]


def warm_command(*arguments: str | Path, threads: bool = False) -> list[str]:
    """The same, without the seconds that imports take. `threads`: several of them compute."""
    return [warm_python.executable(threads), *command(*arguments)[1:]]


def pytest_unconfigure() -> None:
    warm_python.close()
