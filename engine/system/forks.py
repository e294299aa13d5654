"""Detect a forked child in which OpenMP would abort, because its parent has used OpenMP."""

from __future__ import annotations

import os
import sys

from engine.errors import Forked

_unfit = False


def check() -> None:
    """Raise Forked if the first parallel loop would end this process."""
    if _unfit:
        raise Forked(
            "this process was forked from one that has already used OpenMP, which does not survive a fork: "
            'start it with multiprocessing.get_context("spawn")'
        )


def _mark() -> None:
    """Note in the child, right after the fork, whether OpenMP was in use."""
    global _unfit
    numba = sys.modules.get("numba")
    try:
        _unfit = numba is not None and numba.threading_layer() == "omp"
    except ValueError:  # no parallel loop has run yet
        _unfit = False


os.register_at_fork(after_in_child=_mark)
