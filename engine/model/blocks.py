"""Work in blocks of one size, shared among the cores: which core does a block changes no bits."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

WORKERS = os.cpu_count() or 1


def parts(rows: int, size: int) -> list[slice]:
    """Return the blocks of so many rows; the last one may be shorter."""
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


def share_out(blocks: Sequence[slice], work: Callable[[Sequence[slice]], None]) -> None:
    """Do the blocks on all cores, one thread each.

    The kernels between the products let go of the interpreter's lock; threads inside one small product
    would gain less than they cost, and on busy cores wait for each other.
    """

    def with_one_thread(share: Sequence[slice]) -> None:
        with torch.inference_mode():
            work(share)

    if len(blocks) < 2 * WORKERS and torch.get_num_threads() == 1:  # a question need not wait behind a batch
        work(blocks)
        return
    shares = min(len(blocks), WORKERS)
    list(_pool().map(with_one_thread, (blocks[at::shares] for at in range(shares))))


def use_one_thread() -> None:
    """Torch works on one thread in this thread from now on."""
    torch.get_num_threads()  # in a new thread the first call takes over what another thread set last
    torch.set_num_threads(1)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(WORKERS, "linkage", initializer=use_one_thread)


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not outlive a fork
