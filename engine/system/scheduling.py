"""Thread scheduling, Linux 6.12 or later only: request threads preempt batch threads on busy cores.

Every thread keeps its fair share. Batch threads request a longer scheduler slice (`sched_setattr`), so a
request thread that wakes up, with a short slice, has the earlier deadline and runs at once. Niceness would do
the same at the expense of the batch, which would get little next to any other process.
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

SLICE_S = 0.03  # many times the default
SWITCH_S = 0.0005  # the interpreter's switch interval
_SET_ATTRIBUTES = {"x86_64": 314, "aarch64": 274}.get(platform.machine())  # the system's sched_setattr
# size, policy, flags, niceness, priority, runtime, deadline, period
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")


def switch_often() -> None:
    """Have threads of this process that wait for the interpreter get it soon."""
    sys.setswitchinterval(SWITCH_S)


def give_way_to(names: Collection[str]) -> None:
    """Give long slices to all threads of this process except those with these names, and to their children.

    Does nothing on a system that does not support it (Linux does since 6.12).
    """
    if sys.platform != "linux" or _SET_ATTRIBUTES is None:
        return
    system = ctypes.CDLL(None).syscall
    spared = {thread.native_id for thread in threading.enumerate() if thread.name in names}
    for thread in map(int, os.listdir("/proc/self/task")):
        if thread not in spared and (attributes := _with_long_slice(thread)):
            system(_SET_ATTRIBUTES, thread, attributes, 0)  # refused: the thread keeps its slice


def _with_long_slice(thread: int) -> bytes | None:
    """Return the thread's attributes with a long slice; None if it has another policy or has ended."""
    try:
        if os.sched_getscheduler(thread) != os.SCHED_OTHER:
            return None
        niceness = os.getpriority(os.PRIO_PROCESS, thread)
    except ProcessLookupError:
        return None
    slice_ns = int(SLICE_S * 1e9)
    return _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, niceness, 0, slice_ns, 0, 0)


def keep_for_good() -> None:
    """Exempt existing objects from garbage collection: with torch loaded a pass takes 0.1 s and stops all
    threads.
    """
    gc.collect()
    gc.freeze()
