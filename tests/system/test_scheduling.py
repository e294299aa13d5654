"""Threads that answer go first; in a process of its own, for it is not taken back."""

from __future__ import annotations

import platform
import subprocess
import sys

from tests.conftest import environment

SCRIPT = """
import ctypes, gc, platform, struct, threading
from engine.system import scheduling

GET_ATTRIBUTES = {"x86_64": 315, "aarch64": 275}[platform.machine()]

def turn(thread):
    attributes = ctypes.create_string_buffer(48)
    assert ctypes.CDLL(None).syscall(GET_ATTRIBUTES, thread.native_id, attributes, 48, 0) == 0
    return struct.unpack("=IIQiIQQQ", attributes)[5]

def start(name, work):
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread

rest = threading.Event()
answering, busy = start("answering", rest.wait), start("busy", rest.wait)
before = turn(busy)
scheduling.give_way_to(["answering"])
scheduling.keep_for_good()
later = start("later", rest.wait)
print(before, *map(turn, (answering, busy, threading.main_thread(), later)), gc.get_freeze_count() > 0)
"""


def test_all_but_the_named_threads_have_long_turns() -> None:
    command = [sys.executable, "-c", SCRIPT]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment()).stdout
    before, answering, *others, frozen = told.split()
    release = tuple(int(part) for part in platform.release().split(".")[:2])
    assert answering == before
    assert others == [str(30_000_000) if release >= (6, 12) else before] * 3
    assert frozen == "True"
