"""`ingest`: files into a store, batch by batch; after an interruption it continues where it stopped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress import TimeRemainingColumn as TimeLeft
from rich.text import Text

from connectors.chunks import Chunk
from connectors.files.source import FileSource, Options
from engine.cli.console import FIRST, Interrupted, Stop, complain, print_json, printable
from engine.config import Settings
from engine.errors import InputError, counted
from engine.types import Applied

NAMELESS = "a column without a name"
OTHER_DIMENSION = ", not the collection's"  # as `records.wrong_dimension` says it
REASONS = 20  # of a file's rejected records are told apart where people read: many name a value
IGNORED = 20  # names that a file has instead are told
MAX_REJECTS_TOLD = 1000  # in JSON; standard error then gets all
APPLIED = ("inserted", "moved", "unchanged", "updated", "deleted", "unknown", "expired")
TOLD = (*APPLIED, "rejected", "superseded", "doubtful")
COUNTS = ("rows", *TOLD, "skipped", "rejected_before")


class Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} rows/s" if task.speed else "")


def ingest(
    settings: Settings,
    paths: Sequence[Path],
    options: Options,
    as_json: bool,
) -> None:
    """Take the files in order.

    Raises `InputError` at the end where a file could not be used, at once if `options.strict`.
    """
    sources, unusable = [], []
    for path in paths:
        try:
            sources.append(FileSource(path, options))
        except InputError as problem:
            if options.strict or len(paths) == 1:
                raise
            complain(f"shoal: {problem}")
            unusable.append(str(path))
    work = _Work(settings, as_json)
    if sources:
        unusable += work.run(sources, options.strict)
    work.tell(unusable)
    if work.stopped:
        raise Interrupted(work.stopped, f"{work.place}; the same command goes on from there")
    if work.useless:
        raise InputError(" ".join(work.useless))
    if unusable:
        raise InputError(f"{len(unusable)} of {len(paths)} files could not be used: {', '.join(unusable)}.")


class _Work:
    """The counts of one run."""

    def __init__(self, settings: Settings, as_json: bool) -> None:
        self.settings, self.as_json = settings, as_json
        self.counts: Counter[str] = Counter()
        self.rejects: list[str] = []
        self._refused: Counter[str] = Counter()  # of the current file, by reason; "": beyond so many
        self.ignored: Counter[str] = Counter()
        self.useless: list[str] = []  # of files without a record that could be used, sentences
        self.version: int | None = None  # none: no file could be opened, and the store was left alone
        self.seconds, self.place = 0.0, ""
        self.stopped = 0  # the signal's number

    def run(self, sources: Sequence[FileSource], strict: bool) -> list[str]:
        """Ingest all files; return those that failed half-way."""
        from engine.collection.collection import Engine

        failed = []
        with Stop() as stop, Engine.open(self.settings) as engine, _progress() as progress:
            start = time.perf_counter()
            for source in sources:
                try:
                    finished = self._take(engine, source, progress, stop)
                except InputError as problem:
                    if strict or len(sources) == 1:
                        raise
                    complain(f"shoal: {problem}")
                    failed.append(source.shown)
                    continue
                finally:
                    self._tell_notes(source)
                    self._tell_refused(source)
                    self._tell_ignored(source)
                if stop.asked and (not finished or source is not sources[-1]):
                    self.stopped = stop.asked
                    break
            self.seconds = time.perf_counter() - start
            self.version = engine.version
        return failed

    def _take(self, engine: Any, source: FileSource, progress: Progress, stop: Stop) -> bool:
        """Ingest one source; return whether it was read to its end."""
        mark = source.begin(engine.store.positions())
        at, rejected, blank = mark.row, mark.rejected, mark.blank
        self._tell_notes(source)
        self.counts["skipped"] += at - blank
        self.counts["rejected_before"] += rejected
        task = progress.add_task(source.path.name, total=source.total, completed=at)
        doubtful = 0
        for chunk in source.chunks(engine.dim):
            if chunk.rows:
                self._count(engine.apply(chunk.batch), chunk)
                self._tell_doubts(chunk, doubtful)
                at, rejected, blank = at + chunk.rows, rejected + len(chunk.rejects), blank + chunk.blank
                doubtful += len(chunk.doubts)
                progress.update(task, completed=at)
            self._tell_notes(source)
            if stop.asked and at != source.total:
                of = f" of {source.total:,}" if source.total else ""
                self.place = f" after row {at:,}{of} of {source.path.name}"
                return False
        self.place = f" after {source.path.name}"
        if rejected and rejected == at - blank:
            sentence = f"{source.shown} has {counted(rejected, 'record')}, and none that can be used."
            if OTHER_DIMENSION in " ".join(self.rejects[-1:]):
                sentence += (
                    f" The collection has {counted(engine.dim, 'dimension')} until all its items are deleted."
                    if engine.model.dim is None
                    else f" The model is bound to one embedding space, of {counted(engine.dim, 'dimension')}."
                )
            self.useless.append(sentence)
        return True

    def _count(self, applied: Applied, chunk: Chunk) -> None:
        for name in APPLIED:
            self.counts[name] += getattr(applied, name)
        self.counts["rows"] += chunk.rows - chunk.blank
        self.counts["superseded"] += chunk.superseded
        self.counts["rejected"] += len(chunk.rejects)
        self.counts["doubtful"] += len(chunk.doubts)
        for reject in chunk.rejects:
            is_apart = reject.reason in self._refused or len(self._refused) < REASONS
            reason = reject.reason if is_apart else ""
            self._refused[reason] += 1
            if self.as_json or (reason and self._refused[reason] <= FIRST):
                complain(f"rejected: {printable(str(reject))}")
        told = chunk.rejects[: MAX_REJECTS_TOLD - len(self.rejects)]
        self.rejects.extend(map(str, told))

    def _tell_notes(self, source: FileSource) -> None:
        for note in source.notes:
            complain(f"shoal: {printable(note)}")
        source.notes.clear()

    def _tell_refused(self, source: FileSource) -> None:
        """Print how many more records were rejected than those printed, by reason."""
        for reason, count in () if self.as_json else self._refused.items():
            if not reason:
                more = f"{count:,} more for other reasons, which --again --json names"
            elif count > FIRST:
                more = f"{count - FIRST:,} more for this reason, which --again --json names: {reason}"
            else:
                continue
            complain(f"rejected: {printable(f'{source.shown}: {more}')}")
        self._refused.clear()

    def _tell_doubts(self, chunk: Chunk, before: int) -> None:
        """Print the first doubt of a file; the summary has their number."""
        if chunk.doubts and not before:
            complain(f"doubtful: {printable(str(chunk.doubts[0]))}; it is kept, and so are others")

    def _tell_ignored(self, source: FileSource) -> None:
        self.ignored.update(source.ignored)
        if source.ignored:
            named = ", ".join(
                f"{name or NAMELESS} ({count:,})" for name, count in list(source.ignored.items())[:IGNORED]
            )
            if len(source.ignored) > IGNORED:
                named += f", and {counted(len(source.ignored) - IGNORED, 'more name')}"
            complain(f"shoal: {source.shown}: unknown fields, ignored: {printable(named)}.")

    def tell(self, unusable: Sequence[str]) -> None:
        counts = {name: self.counts[name] for name in COUNTS}
        if self.as_json:
            more = {"rejects": self.rejects, "ignored": self.ignored, "unusable": unusable}
            print_json({**counts, **more, "version": self.version, "seconds": self.seconds})
            return
        parts = [f"{count:,} {name}" for name, count in counts.items() if count and name in TOLD]
        if counts["skipped"]:
            before = counts["rejected_before"]
            of_them = f"{before:,} of them were rejected; " if before else ""
            parts.append(f"{counts['skipped']:,} skipped ({of_them}read before, --again reads them again)")
        rate = f" ({counts['rows'] / self.seconds:,.0f} rows/s)" if counts["rows"] else ""
        at = f" {self.settings.store.path} is at version {self.version}." if self.version is not None else ""
        took = f"{counted(counts['rows'], 'row')} in {self.seconds:.1f} s{rate}"
        print(f"{took}: {', '.join(parts) or 'nothing new'}.{at}")


def _progress() -> Progress:
    """Return a progress bar on standard error, shown only on a terminal."""
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
