"""What the API's requests share: the store's view, the tail of its log, the way to the writer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from zlib import crc32

import orjson
from fastapi import Request, Response

from engine.api.cluster_map import Atlas
from engine.api.follower import Tail, TailBounds
from engine.api.middleware import Meters
from engine.api.problems import Problem
from engine.api.slices import Slices
from engine.config import Settings
from engine.daemon.control import Control
from engine.errors import ShoalError, StoreError, WriterAway
from engine.storage.reader import View
from engine.types import Float32

READ_THREADS = 4
POLL_S = 0.1  # between two looks for a new version
STATUS_S = 1.0  # between two questions to the writer how it does
READERS_S = 60.0  # between two looks for readers that died

Body = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Status:
    """What the writer said last of itself; None: it was away, for this reason."""

    told: Body | None = None
    reason: str = "the writer was not asked yet"


class Service:
    """Made before the event loop runs; `run` keeps it up to date."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.bounds = settings, settings.api
        self.meters, self.atlas, self.slices = Meters(), Atlas(), Slices()
        self.tail = Tail(
            TailBounds(
                window_ms=int(self.bounds.growth_window_s * 1000),
                window_events=self.bounds.growth_events,
                history_events=self.bounds.history_events,
                history_versions=self.bounds.history_versions,
                poll_s=POLL_S,
            )
        )
        self.status = Status()
        self.stopping = False
        self.failure: BaseException | None = None  # that ended `run`
        self.control = Control(settings.store.path, self.bounds.forward_timeout_s, settings.control)
        self._view: View | None = None
        self._readers = ThreadPoolExecutor(READ_THREADS, "reader")
        self._callers = ThreadPoolExecutor(3 * self.bounds.forwards_max + 1, "caller")
        self._calling: dict[str, int] = {}

    def view(self) -> View:
        """The store's view; opened as soon as there is a store. Raises StoreError."""
        if self._view is None:
            self._view = View.open(self.settings.store.path, self.settings.bounds.map_size_bytes)
        return self._view

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.gather(self.tail.run(self.view), self._ask_status(), self._check_readers())

    def stop(self) -> None:
        """Streams end; answers under way do not."""
        self.stopping = True
        self.tail.wake()

    def close(self) -> None:
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._callers.shutdown(wait=False, cancel_futures=True)
        self.control.close()
        if self._view:
            self._view.close()

    async def read(self, ask: Callable[[View], T]) -> T:
        """Asks the view in a thread: for what takes more than some hundred microseconds."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, ask, self.view())

    async def call(
        self,
        op: str,
        body: Mapping[str, Any] | None = None,
        vectors: Float32 | None = None,
        timeout_s: float | None = None,
    ) -> Body:
        """Asks the writer; at most `forwards_max` questions of a kind wait. Raises Problem, ShoalError."""
        if self._calling.get(op, 0) >= self.bounds.forwards_max:
            raise Problem("writer-busy", f"{self._calling[op]} requests wait for the writer already.")
        self._calling[op] = self._calling.get(op, 0) + 1
        try:
            return await self.thread(lambda: self.control.call(op, body, vectors, timeout_s))
        finally:
            self._calling[op] -= 1

    async def thread(self, work: Callable[[], T]) -> T:
        """For what waits, or works on large bodies."""
        return await asyncio.get_running_loop().run_in_executor(self._callers, work)

    def growth(self, cluster: int) -> int | None:
        return self.tail.growth.of(cluster) if self.tail.ready else None

    def window(self) -> Body:
        window = self.tail.growth.window
        return {"from_version": window.first, "to_version": window.last, "seconds": window.seconds}

    async def answer(
        self, request: Request, ask: Callable[[View], Body], *, inline: bool = False
    ) -> Response:
        """The answer of the view with its ETag; 304 where the asker has it. `inline`: takes microseconds."""
        view = self.view()
        head = view.head()
        address = crc32(request.scope["raw_path"] + b"?" + request.scope["query_string"])
        tag = f'"{head.version}-{head.time_ms:x}-{self.tail.version}-{address:x}"'
        if _matches(request.headers.get("if-none-match"), tag):
            return Response(None, 304, {"etag": tag, "cache-control": "no-cache"})
        body = ask(view) if inline else await self.read(ask)
        fresh = body["version"] == head.version
        return reply(body, {"cache-control": "no-cache", **({"etag": tag} if fresh else {})})

    async def _ask_status(self) -> None:
        while True:
            self.status = await self.thread(self._asked)
            await asyncio.sleep(STATUS_S)

    def _asked(self) -> Status:
        try:
            return Status(self.control.call("status", timeout_s=5.0), "")
        except WriterAway as error:
            return Status(None, f"the writer does not run: {error}")
        except ShoalError as error:
            return Status(None, f"the writer does not answer: {error}")

    async def _check_readers(self) -> None:
        while True:
            with suppress(StoreError):
                await self.read(lambda view: view.check_readers())
            await asyncio.sleep(READERS_S)


def reply(body: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    return Response(
        orjson.dumps(body), status, {"cache-control": "no-store", **(headers or {})}, "application/json"
    )


def _matches(known: str | None, tag: str) -> bool:
    return known is not None and tag in (one.strip().removeprefix("W/") for one in known.split(","))
