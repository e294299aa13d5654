"""What requests share: one part each for the store, the writer, the event log, the streams and the map.

They live on `app.state.context`. A handler declares the parts that it uses (`reader: Reader`), and FastAPI
passes them; that costs some ten microseconds for each.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any
from zlib import crc32

from fastapi import Depends, FastAPI, Request

from engine import __version__
from engine.api.cluster_map import Atlas
from engine.api.event_stream import EventStreams
from engine.api.exports import Exports
from engine.api.follower import Follower, bounds_of
from engine.api.middleware.metrics import Meters
from engine.api.store_reader import StoreReader
from engine.api.theme_reader import ThemeReader
from engine.api.write_queue import WriteQueue
from engine.api.writer_client import WriterClient
from engine.config import Settings

ANSWERING = {"model", "api", "limits"}  # sections of settings on which an answer may depend


class Context:
    """The parts. Create it before the event loop; within `running` they are kept up to date."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.meters, self.atlas = settings, Meters(), Atlas()
        told = f"{__version__} {settings.model_dump_json(include=ANSWERING)}"
        self.stamp = crc32(told.encode())  # of ETags
        self.reader, self.writer = StoreReader(settings), WriterClient(settings)
        self.themes = ThemeReader(self.writer)
        self.writes = WriteQueue(self.writer, settings)
        self.follower = Follower(bounds_of(settings.api))
        self.streams = EventStreams(self.reader, self.follower, settings.api.heartbeat_s)
        self.exports = Exports(settings)
        self.failure: BaseException | None = None  # of a background task

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Open all parts for the application's lifespan."""
        running = asyncio.create_task(self._run())
        running.add_done_callback(self._fail)
        yield
        self.streams.stop()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        self.close()

    def close(self) -> None:
        self.exports.close()
        self.writer.close()
        self.reader.close()

    async def _run(self) -> None:
        await asyncio.gather(self.follower.run(self.reader.view), self.writer.run(), self.reader.run())

    def _fail(self, task: asyncio.Task[None]) -> None:
        """End the process: without its background tasks it would answer from an old state."""
        if not task.cancelled() and (error := task.exception()):
            self.failure = error
            signal.raise_signal(signal.SIGTERM)


def context_of(request: Request) -> Context:
    """Return all parts, for a handler so frequent that it has no dependencies."""
    context: Context = request.app.state.context
    return context


def _part(pick: Callable[[Context], object]) -> Any:
    async def of_request(request: Request) -> object:
        return pick(context_of(request))

    return Depends(of_request)


Themed = Annotated[ThemeReader, _part(lambda context: context.themes)]
Config = Annotated[Settings, _part(lambda context: context.settings)]
Reader = Annotated[StoreReader, _part(lambda context: context.reader)]
Writer = Annotated[WriterClient, _part(lambda context: context.writer)]
Writes = Annotated[WriteQueue, _part(lambda context: context.writes)]
Log = Annotated[Follower, _part(lambda context: context.follower)]
Streams = Annotated[EventStreams, _part(lambda context: context.streams)]
Exporting = Annotated[Exports, _part(lambda context: context.exports)]
Map = Annotated[Atlas, _part(lambda context: context.atlas)]
Metrics = Annotated[Meters, _part(lambda context: context.meters)]
