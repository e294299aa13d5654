"""Work in another process: how it ended, in words that fit."""

from __future__ import annotations

import pytest

from engine.errors import CorruptStore, StoreError
from engine.system import isolation


@pytest.mark.parametrize("name", ["KILL", "TERM"])
def test_a_process_that_is_ended_from_outside_is_no_damage(name: str) -> None:
    with pytest.raises(StoreError, match=f"was ended by SIG{name}; give it memory") as told:
        isolation.call("os.system", f"kill -{name} $PPID; sleep 1")
    assert told.type is StoreError


@pytest.mark.parametrize("name", ["SEGV", "BUS"])
def test_a_process_that_reads_beyond_its_pages_is_damage(name: str) -> None:
    with pytest.raises(CorruptStore, match=f"ended the process with SIG{name}; restore a backup"):
        isolation.call("os.system", f"kill -{name} $PPID; sleep 1")
