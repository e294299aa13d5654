"""`demo`: the terminal's side of `engine.cli.digits`."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.style import Style
from rich.table import Table
from rich.text import Text

from connectors.memory import MemorySource
from engine.cli.console import Interrupted, Stop
from engine.cli.digits import Demo, Digits, Frame, Shown
from engine.cli.evaluate import print_figures
from engine.config import Settings
from engine.daemon import key_file
from engine.errors import ConfigError, counted
from engine.system import logs
from engine.types import Applied, Batch

if TYPE_CHECKING:
    from engine.daemon.writer import Writer

RATE = 60  # digits a second while there is a page to watch: half a minute in all
REST_S = 0.05
BATCH = 64  # items; small, for there is something to see after each
CELL = 13  # columns a cluster takes
SHADES = " .:-=+*#%@"


def run(
    settings: Settings,
    make_source: Callable[[Digits, int], MemorySource],
    store: Path | None,
    seed: int,
    rate: int | None,
    exit_at_end: bool,
    as_json: bool,
) -> None:
    """Stream and show. `make_source(digits, batch size)`; without a `store` there is a temporary one.

    `rate`: digits a second; the default lets a viewer of the page see clusters grow.
    """
    if not exit_at_end:
        key_file.read(settings.api)  # the page's process would end for want of it, and nobody would be told
    console = Console(stderr=as_json, highlight=False)
    logs.configure("demo", logging.WARNING)
    with _store(store) as path, Stop() as stop, ExitStack() as open_:
        settings = settings.in_folder(path)
        page = None if exit_at_end else open_.enter_context(_Page(settings, console))
        digits = Digits.load(seed)
        source = make_source(digits, settings.batch.size or BATCH)
        console.print(f"{len(digits.labels):,} handwritten digits, shuffled (seed {seed})")
        with _writing(settings, answering=page is not None) as writer:
            wall = _Wall(console)
            demo = Demo(writer.engine, digits, wall.places)
            rate = rate or (RATE if page else None)
            begun, taken = time.monotonic(), 0

            def take(batch: Batch) -> Applied:
                nonlocal taken
                due = begun + taken / rate if rate else 0.0
                taken += len(batch.keys)
                writer.rest()
                while time.monotonic() < due and not stop.asked:
                    time.sleep(REST_S)
                    writer.rest()
                return writer.take(batch)

            with wall:
                ended = demo.run(source, lambda frame: wall.draw(frame) and not stop.asked, take)
            if not ended:
                raise Interrupted(stop.asked, " before the stream ended")
            print_figures(asdict(demo.figures()), as_json)
            if page and not stop.asked:
                console.print(f"\nLook around at {page.url}")
                console.print(f"or try `shoal clusters --store {path}` elsewhere.", soft_wrap=True)
                console.print("Ctrl-C ends the demo.")
                page.watch(writer, stop)


@contextmanager
def _writing(settings: Settings, answering: bool) -> Iterator[Writer]:
    """Run the writer of `shoal serve`, fed by the demo."""
    from engine.collection.collection import Engine
    from engine.daemon.writer import Writer
    from engine.streams import NoSource

    with Engine.open(settings) as engine:
        writer = Writer(settings, engine, NoSource())
        with closing(writer), writer.listen() if answering else nullcontext():
            yield writer


class _Page:
    """The API's process, which serves the page; on another port where the settings' is taken."""

    def __init__(self, settings: Settings, console: Console) -> None:
        from engine.daemon import supervisor

        api = settings.api
        try:
            self._listening = supervisor.listen(api)
        except ConfigError:
            self._listening = supervisor.listen(api.model_copy(update={"port": 0}))
            console.print(f"Port {api.port} is taken: another one serves the page ([api] port chooses it).")
        self.url = supervisor.url_of(self._listening)
        self._child = supervisor.Child(supervisor.api_part(self._listening), settings, logs.get())
        console.print(f"The page is at {self.url}")

    def __enter__(self) -> _Page:
        self._child.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._child.terminate()
        self._child.stop()
        self._listening.close()

    def watch(self, writer: Writer, stop: Stop) -> None:
        """Keep writer and API running until a signal arrives."""
        while not stop.asked:
            self._child.look()
            writer.rest()
            time.sleep(REST_S)


@contextmanager
def _store(path: Path | None) -> Iterator[Path]:
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="shoal-demo-") as folder:
        yield Path(folder)


class _Wall:
    """Pictures of the largest clusters, redrawn in place on a terminal, else a line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._columns = max(1, min(8, console.width // CELL))
        self._rows = max(1, min(3, (console.height - 9) // 7))
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._told = 0

    @property
    def places(self) -> int:
        return self._columns * self._rows

    def __enter__(self) -> _Wall:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *problem: object) -> None:
        if self._live:
            self._live.stop()

    def draw(self, frame: Frame) -> bool:
        """Draw the state; return True, to continue."""
        if self._live:
            self._live.update(self._render(frame), refresh=True)
        elif frame.items >= self._told + 256 or frame.items == frame.total or not self._told:
            self._told = frame.items
            largest = ", ".join(f"{s.size} x {s.digit} ({s.share:.0%})" for s in frame.largest[:5])
            self._console.print(f"{_heading(frame)}; largest: {largest}", soft_wrap=True)
        return True

    def _render(self, frame: Frame) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        cells = [self._cell(shown) for shown in frame.largest]
        for first in range(0, len(cells), self._columns):
            grid.add_row(*cells[first : first + self._columns])
        stories = [Text(story, style="dim", overflow="ellipsis", no_wrap=True) for story in frame.stories]
        return Group(Text(_heading(frame), style="bold"), grid, *stories)

    def _cell(self, shown: Shown) -> RenderableType:
        style = "green" if shown.share >= 0.9 else "yellow" if shown.share >= 0.6 else "red"
        caption = Text(f"{counted(shown.size, 'item')}\n{shown.share:.0%} are {shown.digit}", style=style)
        in_color = self._console.color_system is not None and not self._console.no_color
        return Group(_picture(shown, in_color), caption, Text())


def _heading(frame: Frame) -> str:
    return (
        f"{frame.items:,} of {frame.total:,} digits, {frame.clusters:,} clusters, {frame.rate:,.0f} items/s,"
        f" version {frame.version}"
    )


def _picture(shown: Shown, in_color: bool) -> Text:
    """8 x 8 grey pixels: two above each other in a half block, or one as a character."""
    text = Text()
    levels = shown.picture
    for row in range(0, 8, 2):
        for column in range(8):
            upper, lower = float(levels[row, column]), float(levels[row + 1, column])
            if in_color:
                text.append("▀", Style(color=_grey(upper), bgcolor=_grey(lower)))
            else:
                text.append(SHADES[round((upper + lower) / 2 * (len(SHADES) - 1))])
        text.append("\n")
    text.right_crop(1)
    return text


def _grey(level: float) -> str:
    value = round(255 * level)
    return f"rgb({value},{value},{value})"
