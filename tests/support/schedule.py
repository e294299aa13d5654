"""What a test needs, which tests run together on one worker of pytest-xdist, and which begin.

Names are beginnings of tests' ids.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from xdist.scheduler import LoadScopeScheduling

KAFKA, PAGE = "kafka", "page"
TOGETHER = {  # what shares the one broker, or the one page
    "tests/connectors/test_kafka": KAFKA,
    "tests/faults/test_kafka_daemon": KAFKA,
    "tests/faults/test_faults.py::test_kills_of_the_daemon": KAFKA,
    "tests/cli/test_documented_commands.py::test_kafka_blocks": KAFKA,
    "tests/api/page/": PAGE,
}
FIRST = (  # workers end together if what takes longest begins first
    *TOGETHER,
    "tests/test_types",
    "tests/faults/",
    "tests/training/",
    "tests/daemon/test_supervisor",
    "tests/properties/",
    "tests/cli/",
    "tests/index/",
    "tests/clustering/test_neighborhood",
    "tests/storage/",
    "tests/collection/",
)
APART = (  # files of long tests that share no fixture: each may run anywhere
    "tests/faults/test_faults.py",
    "tests/cli/",
    "tests/daemon/test_supervisor",
    "tests/index/",
    "tests/properties/",
    "tests/storage/test_backup",
    "tests/training/",
)
PROCESSES = (  # they start processes, the engine's readers of what may be damaged among them
    "tests/api/page/",
    "tests/api/test_api.py",
    "tests/api/test_api_schema",
    "tests/api/test_api_themes",
    "tests/api/test_event_stream",
    "tests/cli/",
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
    "tests/faults/",
    "tests/properties/test_adapted",
    "tests/properties/test_exactness.py::test_all_but_the_lists",
    "tests/properties/test_flips",
    "tests/storage/test_backup",
    "tests/storage/test_damage",
    "tests/system/",
    "tests/test_types",
    "tests/training/test_published",
)
STARTERS = {"broker", "browser", "shoal", "warm"}  # fixtures that do
SLOW = (  # long sequences, many items, trainings: `make unit` leaves these to `make test`
    "tests/api/test_many_items",
    "tests/finetuning/",
    "tests/index/test_index.py::test_hnsw",
    "tests/properties/test_exactness",
    "tests/properties/test_lander_exactness",
    "tests/properties/test_restart",
    "tests/training/",
)


def mark(item: pytest.Item) -> None:
    """Set the markers that follow from a test's place and fixtures."""
    names = set(getattr(item, "fixturenames", ()))
    for fixture in {"broker", "browser"} & names:
        item.add_marker(fixture)
    if item.nodeid.startswith(PROCESSES) or names & STARTERS:
        item.add_marker("process")
    if item.nodeid.startswith(SLOW):
        item.add_marker("slow")
    if "broker" in names and unit_of(item.nodeid) != KAFKA:
        raise pytest.UsageError(f"{item.nodeid} starts a broker of its own: name it in TOGETHER")


def shares_processes(config: pytest.Config) -> bool:
    """Whether this process has workers whose tests start processes."""
    has_workers = bool(getattr(config.option, "numprocesses", None)) and not hasattr(config, "workerinput")
    return has_workers and "not process" not in config.option.markexpr


def rank_of(test: str) -> int:
    """When a test begins, by what is at most as long."""
    return next((at for at, name in enumerate(FIRST) if test.startswith(name)), len(FIRST))


def unit_of(test: str) -> str:
    """The name of what runs together with a test: as a rule its file, for the fixtures of a module."""
    shared = next((unit for name, unit in TOGETHER.items() if test.startswith(name)), None)
    return shared or (test if test.startswith(APART) else test.partition("::")[0])


class Schedule(LoadScopeScheduling):
    """Units in the order in which they were collected."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


_STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"}  # audit events
_LINKER = "/sbin/ldconfig"  # what torch asks where a library is, imported by the first test that needs it
_alone: list[str] = []  # the test that runs, if it may start no process


@contextmanager
def alone(item: pytest.Item) -> Iterator[None]:
    """Within it a test fails when it starts a process, unless it is marked `process`."""
    _alone[:] = [] if item.get_closest_marker("process") else [item.nodeid]
    try:
        yield
    finally:
        _alone.clear()


def _refuse(event: str, details: tuple[object, ...]) -> None:
    if event in _STARTS and _alone and details[:1] != (_LINKER,):
        pytest.fail(f"{_alone[0]} starts a process ({event}): name it in tests.support.schedule.PROCESSES")


sys.addaudithook(_refuse)
