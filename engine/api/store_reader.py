"""The API's view of the store: opened when there is one, read in the event loop or in threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from engine.config import Settings
from engine.errors import NoStore, StoreError
from engine.storage.reader import View

THREADS = 4
CHECK_READERS_S = 60.0  # between two checks for dead processes in LMDB's reader table

T = TypeVar("T")


class StoreReader:
    """Opens the view lazily: the API starts before there is a store."""

    def __init__(self, settings: Settings) -> None:
        self._path, self._map_bytes = settings.store.path, settings.limits.map_size_bytes
        self._is_written = settings.source.http or settings.source.kafka is not None
        self._view: View | None = None
        self._opening = threading.Lock()  # LMDB opens a store once in a process
        self._threads = ThreadPoolExecutor(THREADS, "reader")

    def view(self) -> View:
        """Return the view; the first call, from any thread, opens it. Raises StoreError."""
        if self._view is None:
            with self._opening:
                if self._view is None:
                    self._view = self._opened()
        return self._view

    def _opened(self) -> View:
        try:
            return View.open(self._path, self._map_bytes)
        except NoStore:
            if not self._is_written:
                raise
            raise NoStore("there is no store yet: the daemon makes one when its writer has started") from None

    async def read(self, query: Callable[[View], T]) -> T:
        """Query the view in a thread: for what takes more than some hundred microseconds."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, query, self.view())

    async def run(self) -> None:
        """Free the reader slots of dead processes, until cancelled."""
        while True:
            with suppress(StoreError):
                await self.read(lambda view: view.check_readers())
            await asyncio.sleep(CHECK_READERS_S)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._view:
            self._view.close()
