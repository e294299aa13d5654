"""`ingest`: files into a store, batch by batch; interrupted, it goes on where it stopped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress import TimeRemainingColumn as TimeLeft
from rich.text import Text

from engine.cli.console import Interrupted, Stop, complain, print_json, printable
from engine.config import BULK_BATCH, Settings
from engine.errors import InputError
from engine.types import Applied, Batch

MAX_REJECTS_TOLD = 1000  # in JSON; standard error gets all


class Chunk(Protocol):
    """What came of the next rows of a source."""

    @property
    def batch(self) -> Batch: ...
    @property
    def rejects(self) -> Sequence[object]: ...
    @property
    def rows(self) -> int: ...


class Source(Protocol):
    name: str  # under which its position is stored
    path: Path
    total: int  # rows

    def next_row(self, position: bytes | None) -> int: ...
    def chunks(self, position: bytes | None, dim: int | None) -> Iterator[Chunk]: ...


class Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} rows/s" if task.speed else "")


def ingest(
    settings: Settings,
    paths: Sequence[Path],
    open_source: Callable[[Path, int, bool], Source],
    strict: bool,
    as_json: bool,
) -> None:
    """Take the files in order. `open_source(path, batch size, strict)` raises `InputError`.

    Raises `InputError` at the end where a file could not be used, at once if `strict`.
    """
    size = settings.batch.size or BULK_BATCH
    sources, unusable = [], []
    for path in paths:
        try:
            sources.append(open_source(path, size, strict))
        except InputError as problem:
            if strict or len(paths) == 1:
                raise
            complain(f"shoal: {problem}")
            unusable.append(str(path))
    work = _Work(settings, as_json)
    if sources:
        unusable += work.run(sources, strict)
    work.tell(unusable)
    if work.stopped:
        raise Interrupted(work.stopped, f"{work.place}; the same command goes on from there")
    if unusable:
        raise InputError(f"{len(unusable)} of {len(paths)} files could not be used: {', '.join(unusable)}.")


class _Work:
    """The counts of one run."""

    def __init__(self, settings: Settings, as_json: bool) -> None:
        self.settings, self.as_json = settings, as_json
        self.counts: Counter[str] = Counter()
        self.rejects: list[str] = []
        self.version, self.seconds, self.place = 0, 0.0, ""
        self.at = 0  # rows of the current source that are done
        self.stopped = 0  # the signal's number

    def run(self, sources: Sequence[Source], strict: bool) -> list[str]:
        """Returns the files that failed half-way."""
        from engine.collection.collection import Engine

        failed = []
        with Stop() as stop, Engine.open(self.settings) as engine, _progress() as progress:
            start = time.perf_counter()
            for source in sources:
                try:
                    self._take(engine, source, progress, stop)
                except InputError as problem:
                    if strict or len(sources) == 1:
                        raise
                    complain(f"shoal: {problem}")
                    failed.append(str(source.path))
                if stop.asked and (self.at < source.total or source is not sources[-1]):
                    self.stopped = stop.asked
                    break
            self.seconds = time.perf_counter() - start
            self.version = engine.version
        return failed

    def _take(self, engine: Any, source: Source, progress: Progress, stop: Stop) -> None:
        position = engine.store.position(source.name)
        self.at = source.next_row(position)
        self.counts["skipped"] += self.at
        task = progress.add_task(source.path.name, total=source.total, completed=self.at)
        for chunk in source.chunks(position, engine.dim):
            self._count(engine.apply(chunk.batch), chunk)
            progress.update(task, completed=self.at)
            if stop.asked and self.at < source.total:
                self.place = f" after row {self.at:,} of {source.total:,} of {source.path.name}"
                return
        self.place = f" after {source.path.name}"

    def _count(self, applied: Applied, chunk: Chunk) -> None:
        for name in ("inserted", "moved", "unchanged", "deleted", "unknown"):
            self.counts[name] += getattr(applied, name)
        self.counts["rows"] += chunk.rows
        self.counts["rejected"] += len(chunk.rejects)
        for reject in chunk.rejects:
            complain(f"rejected: {printable(str(reject))}")
        told = chunk.rejects[: MAX_REJECTS_TOLD - len(self.rejects)]
        self.rejects.extend(map(str, told))
        self.at += chunk.rows

    def tell(self, unusable: Sequence[str]) -> None:
        names = ("rows", "inserted", "moved", "unchanged", "deleted", "unknown", "rejected", "skipped")
        counts = {name: self.counts[name] for name in names}
        if self.as_json:
            more = {"rejects": self.rejects, "unusable": unusable}
            print_json({**counts, **more, "version": self.version, "seconds": self.seconds})
            return
        parts = [f"{count:,} {name}" for name, count in counts.items() if count and name != "rows"]
        rate = f" ({counts['rows'] / self.seconds:,.0f} rows/s)" if counts["rows"] else ""
        print(
            f"{counts['rows']:,} rows in {self.seconds:.1f} s{rate}: {', '.join(parts) or 'nothing new'}."
            f" {self.settings.store.path} is at version {self.version}."
        )


def _progress() -> Progress:
    """On standard error, and only where somebody watches."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeLeft(),
        console=console,
        disable=not console.is_terminal,
    )
