"""Divides work into blocks of one size among the cores; which core takes a block does not change its bits."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

WORKERS = os.cpu_count() or 1


def parts(rows: int, size: int) -> list[slice]:
    """Return rows 0 .. `rows` - 1 as blocks of `size`; the last one may be shorter."""
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


def share_out(rows: int, size: int, work: Callable[[Sequence[slice]], None]) -> None:
    """Call `work` with shares of the blocks of `parts` on all cores, one thread each.

    The kernels between the products release the GIL. Threads inside one small product would gain less than
    they cost, and on busy cores would wait for each other.
    """

    def with_one_thread(share: Sequence[slice]) -> None:
        with torch.inference_mode():
            work(share)

    blocks = parts(rows, size)
    # An `assign` must not queue behind a batch.
    if len(blocks) < 2 * WORKERS and torch.get_num_threads() == 1:
        work(blocks)
        return
    shares = min(len(blocks), WORKERS)
    list(_pool().map(with_one_thread, (blocks[at::shares] for at in range(shares))))


def use_one_thread() -> None:
    """Make torch run single-threaded when called from this thread."""
    torch.get_num_threads()  # in a new thread, the first call adopts what another thread set last
    torch.set_num_threads(1)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(WORKERS, "linkage", initializer=use_one_thread)


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not outlive a fork
