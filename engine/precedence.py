"""Who goes first on busy cores: threads that answer, before those that take records in."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from collections.abc import Collection

NICENESS = 10  # more than before; on a busy core a tenth of the time


def give_way_to(names: Collection[str]) -> None:
    """All threads of this process but those with these names are nicer from now on, and what they start.

    A process cannot take it back.
    """
    if sys.platform != "linux":  # elsewhere threads have no niceness of their own
        return
    spared = {thread.native_id for thread in threading.enumerate() if thread.name in names}
    for thread in map(int, os.listdir("/proc/self/task")):
        if thread not in spared:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)


def keep_for_good() -> None:
    """What there is by now is not looked through for garbage again: with torch loaded that takes 0.1 s,
    and all threads wait.
    """
    gc.collect()
    gc.freeze()
