"""Who goes first on busy cores: threads that answer, before those that take records in.

Nobody gets less than a fair share. But a thread that asks for long turns waits for the next one while others
have short ones, and one that wakes for a question gets the core at once. (Niceness would do the same at
the price of the batch: beside any other process it is left with little.)
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import struct
import sys
import threading
from collections.abc import Collection

TURN_S = 0.03  # many times the usual
_SET_ATTRIBUTES = {"x86_64": 314, "aarch64": 274}.get(platform.machine())  # the system's sched_setattr
# size, policy, flags, niceness, priority, runtime, deadline, period
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")


def give_way_to(names: Collection[str]) -> None:
    """All threads of this process but those with these names have long turns from now on, and those that
    they start. Changes nothing where the system does not know how (Linux does since 6.12).
    """
    if sys.platform != "linux" or _SET_ATTRIBUTES is None:
        return
    system = ctypes.CDLL(None).syscall
    spared = {thread.native_id for thread in threading.enumerate() if thread.name in names}
    for thread in map(int, os.listdir("/proc/self/task")):
        if thread not in spared and (attributes := _with_long_turns(thread)):
            system(_SET_ATTRIBUTES, thread, attributes, 0)  # refused: then it stays as it is


def _with_long_turns(thread: int) -> bytes | None:
    """None: somebody has chosen another way of scheduling, or it has ended."""
    try:
        if os.sched_getscheduler(thread) != os.SCHED_OTHER:
            return None
        niceness = os.getpriority(os.PRIO_PROCESS, thread)
    except ProcessLookupError:
        return None
    turn_ns = int(TURN_S * 1e9)
    return _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, niceness, 0, turn_ns, 0, 0)


def keep_for_good() -> None:
    """What there is by now is not looked through for garbage again: with torch loaded that takes 0.1 s,
    and all threads wait.
    """
    gc.collect()
    gc.freeze()
