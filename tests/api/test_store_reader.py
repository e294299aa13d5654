"""The API's view of a store: one, whoever asks first."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.api.store_reader import StoreReader
from engine.storage.store import Store
from tests.support.fake_collection import CONFIG, Toy
from tests.support.live_api import settings_of

THREADS = 8


def test_threads_that_ask_at_once_share_one_view(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with Store.open(store, CONFIG) as made:
        made.commit(Toy(1).step(12))
    for _ in range(20):
        reader, together = StoreReader(settings_of(store)), threading.Barrier(THREADS)

        def asked(reader: StoreReader = reader, together: threading.Barrier = together) -> int:
            together.wait()
            return id(reader.view())

        try:
            with ThreadPoolExecutor(THREADS) as pool:
                assert len({each.result() for each in [pool.submit(asked) for _ in range(THREADS)]}) == 1
        finally:
            reader.close()
