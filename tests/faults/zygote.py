"""Processes that start warm: forked from one that has imported and compiled everything.

It opened no LMDB environment, and its numba runs on a threading layer that knows of forks, on one thread.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

ENVIRONMENT = {
    "NUMBA_THREADING_LAYER": "workqueue",  # the other layers do not outlive a fork
    "NUMBA_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def become(module: str, extra: Mapping[str, str] | None = None) -> None:
    """Starts this command again where its environment is not the one it needs."""
    wanted = {**ENVIRONMENT, **(extra or {})}
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        return
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    command = [sys.executable, *(f"-W{option}" for option in sys.warnoptions), "-m", module, *sys.argv[1:]]
    os.execve(sys.executable, command, {**kept, **wanted})


def warm() -> None:
    """Imports the engine and compiles, or loads from the cache, what a small collection needs."""
    import structlog
    import torch

    from tests.support.random_models import random_model
    from tests.support.sequences import World, empty_state, take

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    torch.set_num_threads(1)
    model = random_model(1, k=3)
    world = World(1, "mixed", 20, model)
    state = empty_state(world, model)
    for batch, _ in world.batches():
        take(state, batch)
    freeze()


def freeze() -> None:
    """Leave what there is now out of all collections: one in a child would copy its pages, for 0.4 s."""
    gc.collect()
    gc.freeze()


def fork(work: Callable[[], None], errors: Path) -> int:
    """Does the work in a child, without waiting; returns its process id.

    It ends with 0, or with 1 when the work raised; what that was is appended to `errors`.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        with open(errors, "a") as file:
            traceback.print_exc(file=file)
    finally:
        os._exit(status)


def wait(child: int) -> int:
    """The exit status of a child; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
