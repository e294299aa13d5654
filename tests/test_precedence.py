"""Threads that answer go first; in a process of its own, for niceness cannot be taken back."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import environment

SCRIPT = """
import gc, os, threading
from engine import precedence

def niceness(thread):
    return os.getpriority(os.PRIO_PROCESS, thread.native_id)

def start(name, work):
    threading.Thread(target=work, name=name, daemon=True).start()
    return next(thread for thread in threading.enumerate() if thread.name == name)

def answer():
    asked.wait()
    done.append(niceness(threading.current_thread()))

asked, rest, done = threading.Event(), threading.Event(), []
answering, busy = start("answering", answer), start("busy", rest.wait)
before = niceness(threading.main_thread())
precedence.give_way_to(["answering"])
precedence.keep_for_good()
later = start("later", rest.wait)
asked.set()
answering.join()
others = [niceness(thread) for thread in (busy, threading.main_thread(), later)]
print(before, done[0], *others, gc.get_freeze_count() > 0)
"""


def test_all_but_the_named_threads_give_way() -> None:
    command = [sys.executable, "-c", SCRIPT]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment()).stdout
    before, answering, *others, frozen = told.split()
    assert answering == before
    assert others == [str(min(19, int(before) + 10))] * 3
    assert frozen == "True"
