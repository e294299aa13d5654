"""What runs together on one worker of pytest-xdist, and in which order."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

KAFKA = "kafka"  # all that the one broker of a session serves
TOGETHER = {  # by the beginning of a test's id; the longest first, so that workers end together
    "tests/connectors/test_kafka": KAFKA,
    "tests/faults/test_kafka_daemon": KAFKA,
    "tests/faults/test_faults.py::test_kills_of_the_daemon": KAFKA,
    "tests/cli/test_documented_commands.py::test_kafka_blocks": KAFKA,
    "tests/api/page/": "page",
}
APART = (  # files of long tests that share no fixture: each may run anywhere
    "tests/faults/test_faults.py",
    "tests/cli/test_documented_commands.py",
    "tests/properties/test_flips.py",
    "tests/daemon/test_supervisor.py",
    "tests/cli/",
    "tests/storage/test_backup.py",
    "tests/index/",
)


def unit_of(test: str) -> str:
    """The name of what runs together with this test: most often its file, for the fixtures of a module."""
    for beginning, unit in TOGETHER.items():
        if test.startswith(beginning):
            return unit
    return test if test.startswith(APART) else test.partition("::")[0]


class Schedule(LoadScopeScheduling):
    """Units in the order in which they were collected."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)
