"""Exports of all assignments: each by a process of its own, read as fast as the client takes it.

So an export costs the queries only its share of the processor, whatever its size and format.
"""

from __future__ import annotations

import asyncio
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote

import orjson
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from engine import errors
from engine.api.problems import Problem
from engine.config import Settings
from engine.errors import StoreError
from engine.system import isolation

CHUNK_BYTES = 2**16
SLOT_TIMEOUT_S = 1.0  # a process ends a moment after its client has the last byte


class Export:
    """A process that writes an export. Close it in any case."""

    def __init__(self, process: Process, deadline: float) -> None:
        self._process, self._deadline = process, deadline
        self.head: dict[str, Any] = {}  # collection, version, items

    async def begin(self) -> None:
        """Read the head. Raises the ShoalError that the process met."""
        line = await self._in_time(self._output.readline())
        if not line:
            raise StoreError("the export did not start; see the daemon's log")
        head: dict[str, Any] = orjson.loads(line)
        if "error" in head:
            raise errors.load(head)
        self.head = head

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the export. Raises StoreError where the process fails or the time is up."""
        while chunk := await self._in_time(self._output.read(CHUNK_BYTES)):
            yield chunk
        if await self._process.wait():
            raise StoreError(f"the export ended with status {self._process.returncode}; see the daemon's log")

    async def close(self) -> None:
        self.kill()
        await self._process.communicate()  # what is left in the pipe keeps it open

    def kill(self) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()

    @property
    def _output(self) -> asyncio.StreamReader:
        assert self._process.stdout is not None
        return self._process.stdout

    async def _in_time(self, reading: Awaitable[bytes]) -> bytes:
        try:
            return await asyncio.wait_for(reading, max(0.0, self._deadline - time.monotonic()))
        except asyncio.TimeoutError:
            raise StoreError("the export took longer than [api] export_timeout_s") from None


class Exports:
    """Runs at most `[api] exports_max` processes at once, for `export_timeout_s` each."""

    def __init__(self, settings: Settings) -> None:
        self._folder, self._bounds = settings.store.path, settings.api
        self._slots = asyncio.Semaphore(self._bounds.exports_max)
        self._running: set[Export] = set()

    @asynccontextmanager
    async def run(self, form: str, level: int | None) -> AsyncIterator[Export]:
        """Start an export. Raises Problem (too many), NoStore, CorruptStore."""
        async with self._slot(), self._process(form, level) as export:
            yield export

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        try:
            await asyncio.wait_for(self._slots.acquire(), SLOT_TIMEOUT_S)
        except asyncio.TimeoutError:
            most = self._bounds.exports_max
            raise Problem("busy", f"{most} exports are already in progress ([api] exports_max).") from None
        try:
            yield
        finally:
            self._slots.release()

    @asynccontextmanager
    async def _process(self, form: str, level: int | None) -> AsyncIterator[Export]:
        deadline = time.monotonic() + self._bounds.export_timeout_s
        shown = "" if level is None else str(level)
        words = isolation.command("engine.storage.export", self._folder, form, shown)
        process = await asyncio.create_subprocess_exec(*words, stdout=PIPE, limit=CHUNK_BYTES)
        export = Export(process, deadline)
        self._running.add(export)
        try:
            await export.begin()
            yield export
        finally:
            await export.close()
            self._running.discard(export)

    def close(self) -> None:
        for export in self._running:
            export.kill()


class ExportResponse(StreamingResponse):
    """Streams an export, and ends its process with the response, also where the client goes away."""

    def __init__(self, export: Export, running: AsyncExitStack, media_type: str) -> None:
        named = {
            "shoal-version": str(export.head["version"]),
            "shoal-collection": quote(export.head["collection"]),
            "cache-control": "no-store",
        }
        super().__init__(export.chunks(), media_type=media_type, headers=named)
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._running:
            await super().__call__(scope, receive, send)
