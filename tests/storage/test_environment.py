"""The LMDB environment: shared by threads, bounded in readers, grown and replaced while others read."""

from __future__ import annotations

import resource
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from engine.errors import StoreError, StoreFull
from engine.storage.environment import MAX_READERS, Environment
from engine.storage.reader import View
from engine.storage.store import Store
from engine.storage.tables import Tables
from tests.support.fake_collection import Toy


@pytest.mark.skipif(sys.platform != "linux", reason="needs a bound of address space that holds")
def test_memory_that_is_short_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    Store.open(tmp_path / "s").close()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, limits[1]))
    try:
        with pytest.raises(StoreFull, match=r"s: memory or address space is short .*Cannot allocate memory"):
            Store.open(tmp_path / "s")
        with pytest.raises(StoreFull, match="memory or address space is short"):
            View.open(tmp_path / "s")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_a_full_reader_table_is_named_and_does_no_harm(tmp_path: Path) -> None:
    """Of the writer's process as of another one; a commit needs no reader slot."""
    toy = Toy(1)
    with Store.open(tmp_path / "store") as store:
        store.commit(toy.step())
        with ExitStack() as readers:
            for _ in range(MAX_READERS):
                readers.enter_context(store.environment.read())
            for ask in (store.load, lambda: View.beside(store)):
                with pytest.raises(StoreError, match=f"all {MAX_READERS} reader slots are taken") as told:
                    ask()
                assert not isinstance(told.value, StoreFull)
            store.commit(toy.step())
        assert store.load().version == 2
        store.commit(toy.step())


def test_a_transaction_that_fails_keeps_nothing(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    environment = Environment.create(tmp_path)

    def work(tables: Tables) -> None:
        tables.positions.put("file", b"7")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        environment.write(work)
    with environment.read() as tables:
        assert tables.positions.get("file") is None
    environment.close()
    with pytest.raises(StoreError, match="is closed; reopen the store"), environment.read():
        pass
