"""What tests share: the option for full counts, and a command line to call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

import engine  # noqa: F401  (pins the arithmetic before a test's torch loads)
from tests.support import warm_python
from tests.support.schedule import KAFKA, TOGETHER, Schedule, unit_of

if TYPE_CHECKING:
    from tests.broker import Broker, Given

ROOT = Path(__file__).parents[1]
Finished: TypeAlias = "subprocess.CompletedProcess[str]"
Run = Callable[..., Finished]
NEEDS = {"broker", "browser"}  # fixtures that are markers too
PROCESSES = (  # they start processes, the engine's readers of what may be damaged among them
    "tests/faults/",
    "tests/properties/test_adapted",
    "tests/properties/test_flips",
    "tests/cli/",
    "tests/api/page/",
    "tests/api/test_api.py",
    "tests/api/test_api_themes",
    "tests/collection/test_adapter",
    "tests/collection/test_check",
    "tests/collection/test_dimension",
    "tests/collection/test_erase",
    "tests/collection/test_index_snapshots",
    "tests/collection/test_lander_store",
    "tests/collection/test_library",
    "tests/collection/test_rebuild_store",
    "tests/collection/test_reopen",
    "tests/collection/test_snapshots",
    "tests/collection/test_upgrade",
    "tests/daemon/test_admin",
    "tests/daemon/test_supervisor",
    "tests/storage/test_backup",
    "tests/storage/test_damage",
    "tests/system/",
    "tests/training/test_published",
)
SLOW = (  # long sequences, many items, trainings: `make unit` leaves these to `make test`
    "tests/properties/test_exactness",
    "tests/properties/test_restart",
    "tests/properties/test_lander_exactness",
    "tests/training/",
    "tests/index/test_index.py::test_hnsw",
    "tests/api/test_api_schema",
    "tests/api/test_event_stream",
    "tests/api/test_many_items",
)
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"}  # audit events
FIRST = (  # these take longest
    *TOGETHER,
    "tests/faults/",
    "tests/cli/test_documented_commands",
    "tests/daemon/test_supervisor",
    "tests/properties/",
    "tests/cli/",
    "tests/index/",
    "tests/storage/",
    "tests/collection/",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="full counts, and the tests marked long")


def pytest_configure(config: pytest.Config) -> None:
    """Say how many examples hypothesis draws where a test does not; see that interrupts arrive."""
    from hypothesis import settings

    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts its background jobs
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what tests start inherits it

    settings.register_profile("short", max_examples=60, deadline=None)
    settings.register_profile("long", max_examples=300, deadline=None)
    settings.load_profile("long" if config.getoption("--long") else "short")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect long tests unless asked for; mark what a test needs; keep together what shares a fixture."""
    if not config.getoption("--long"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        for need in NEEDS & names:
            item.add_marker(need)
        if item.nodeid.startswith(PROCESSES) or names & {"shoal", "warm", *NEEDS}:
            item.add_marker("process")
        if item.nodeid.startswith(SLOW):
            item.add_marker("slow")
        if "broker" in names and unit_of(item.nodeid) != KAFKA:
            raise pytest.UsageError(f"{item.nodeid} starts a broker of its own: name it in TOGETHER")
    # Workers end together if what takes longest begins first.
    items.sort(key=lambda item: next((at for at, way in enumerate(FIRST) if item.nodeid.startswith(way)), 99))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Schedule:
    """Keep together what shares a fixture."""
    config.option.loadscopereorder = False
    return Schedule(config, log)


_alone: list[str] = []  # the test that runs, if it may start no process


def _refuse(event: str, _: tuple[object, ...]) -> None:
    if event in STARTS and _alone:
        pytest.fail(f"{_alone[0]} starts a process ({event}): give it the marker process")


sys.addaudithook(_refuse)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """See that what is not marked starts no process."""
    _alone[:] = [] if item.get_closest_marker("process") else [item.nodeid]
    try:
        return (yield)
    finally:
        _alone.clear()


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
    from engine.model.linkage import random_model

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


def pytest_sessionfinish() -> None:

    warm_python.close()
