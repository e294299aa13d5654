"""The process that answers HTTP: it ends when it is told to, whenever that is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import environment

_TOLD_TO_END_WHILE_IT_STARTS = """
import signal, sys
from pathlib import Path
from engine.api import server
from engine.daemon.supervisor import listen
from tests.support.live_api import settings_of
server.scheduling.keep_for_good = lambda: signal.raise_signal(signal.SIGTERM)
settings = settings_of(Path(sys.argv[1]))
server.serve(settings, listen(settings.api))
"""


def test_a_signal_while_it_starts_ends_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _TOLD_TO_END_WHILE_IT_STARTS, str(tmp_path / "store")]
    assert subprocess.run(command, env=environment(), timeout=30, check=False).returncode == 0
