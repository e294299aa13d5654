"""The themes as the writer last grouped them. It is asked each time, and sends them only if they differ."""

from __future__ import annotations

from engine.api.writer_client import WriterClient
from engine.storage.themes import received
from engine.types import Themes


class ThemeReader:
    """Asks the writer for themes."""

    def __init__(self, writer: WriterClient) -> None:
        self._writer = writer
        self._known: Themes | None = None

    async def at(self, step: int) -> Themes:
        """Return themes that have a level `step` above the final clusters. Raises Problem, ShoalError."""
        known = self._known
        answer = await self._writer.call("themes", {"step": step, "known": known.version if known else None})
        if known is None or "clusters" in answer:
            known = self._known = received(answer)
        return known
