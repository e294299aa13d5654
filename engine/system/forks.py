"""Detect a fork that cannot compute: OpenMP ends it, without an exception, where its parent has used it."""

from __future__ import annotations

import os
import sys

from engine.errors import Forked

_unfit = False


def check() -> None:
    """Raise Forked if the first parallel loop would end this process."""
    if _unfit:
        raise Forked(
            "this process was forked from one that has computed already, and OpenMP does not survive that: "
            'start it with multiprocessing.get_context("spawn")'
        )


def _mark() -> None:
    """In the child, right after the fork."""
    global _unfit
    numba = sys.modules.get("numba")
    try:
        _unfit = numba is not None and numba.threading_layer() == "omp"
    except ValueError:  # no parallel loop has run yet
        _unfit = False


os.register_at_fork(after_in_child=_mark)
