"""The API's calls of the writer: bounded in number and time; and the writer's status, kept up to date."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from engine.api.problems import Problem
from engine.config import Settings
from engine.daemon.control import Control
from engine.errors import ShoalError, WriterAway
from engine.streams import Body
from engine.types import Float32

STATUS_S = 1.0  # between two requests of the status
STATUS_TIMEOUT_S = 5.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Status:
    """The writer's last status; `told` is None where there is none, for this `reason`.

    `silent_s`: how long a writer that is running has not answered.
    """

    told: Body | None = None
    reason: str = "the writer was not asked yet"
    silent_s: float = 0.0


class WriterClient:
    """Calls operations of the control socket from the event loop."""

    def __init__(self, settings: Settings) -> None:
        bounds = settings.api
        self.status, self._heard = Status(), time.monotonic()
        self._calls_max = bounds.forwards_max
        self._control = Control(settings.store.path, bounds.forward_timeout_s, settings.control)
        self._threads = ThreadPoolExecutor(3 * bounds.forwards_max + 1, "caller")
        self._calls: dict[str, int] = {}

    async def call(
        self,
        op: str,
        body: Mapping[str, Any] | None = None,
        vectors: Float32 | None = None,
        timeout_s: float | None = None,
        blob: bytes | None = None,
    ) -> Body:
        """Call the writer; return its answer. Raises Problem (too many calls of `op` wait), ShoalError."""
        if self._calls.get(op, 0) >= self._calls_max:
            raise Problem("writer-busy", f"{self._calls[op]} requests wait for the writer already.")
        self._calls[op] = self._calls.get(op, 0) + 1
        try:
            return await self._in_thread(lambda: self._control.call(op, body, vectors, timeout_s, blob))
        finally:
            self._calls[op] -= 1

    async def run(self) -> None:
        """Keep `status` up to date, until cancelled."""
        while True:
            self.status = await self._in_thread(self._read_status)
            await asyncio.sleep(STATUS_S)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._control.close()

    def _read_status(self) -> Status:
        try:
            status = Status(self._control.call("status", timeout_s=STATUS_TIMEOUT_S), "")
        except WriterAway as error:
            status = Status(None, f"the writer does not run: {error}")
        except ShoalError as error:
            silent_s = time.monotonic() - self._heard
            return Status(None, f"the writer does not answer: {error}", silent_s)
        self._heard = time.monotonic()
        return status

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
