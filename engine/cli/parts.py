"""The processes of `shoal serve`, and the connectors that the settings choose for them.

Run as a module it is such a process: the command line would take longer to load than to name the part.
"""

from __future__ import annotations

import signal
from argparse import ArgumentParser
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.cli.console import open_streams

if TYPE_CHECKING:
    from engine.config import Settings
    from engine.streams import Sink, Source, SourceContext


def main() -> None:
    """Run a process started by `engine.daemon.supervisor`: NAME --parent PID [--listen HANDLE]."""
    open_streams()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the daemon says when to end
    parser = ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--listen", type=int, default=-1)
    given = parser.parse_args()
    work(given.name, given.parent, given.listen)


def work(name: str, parent: int, listen: int) -> None:
    """Be a process of the daemon. `listen`: the API's socket."""
    from engine.daemon.supervisor import work_as

    def write(chosen: Settings) -> None:
        from engine.daemon.writer import run

        run(chosen, open_source)

    def answer(chosen: Settings) -> None:
        import socket

        from engine.api import server

        server.serve(chosen, socket.socket(fileno=listen))

    def publish(chosen: Settings) -> None:
        from engine.daemon.publisher import run

        run(chosen, open_sink)

    work_as(name, parent, {"writer": write, "api": answer, "publisher": publish}[name])


def open_source(context: SourceContext) -> Source:
    """Return the source that the settings name, for the writer."""
    if context.settings.source.kafka:
        from connectors.kafka.source import KafkaSource

        return KafkaSource(context)
    if context.settings.source.http:
        from connectors.http import HttpSource

        return HttpSource(context)
    from engine.streams import NoSource

    return NoSource()


def plan_source(chosen: Settings, position: Callable[[str], bytes | None]) -> str:
    """Describe the source that the settings name."""
    if chosen.source.kafka:
        from connectors.kafka.source import POSITION, plan

        return plan(chosen.source.kafka, position(POSITION))
    if chosen.source.http:
        return "It would take records over HTTP."
    return "It would take no records: set [source] http = true, or fill in [source.kafka]."


def open_sink(chosen: Settings, collection: str, identity: str) -> Sink:
    """Return the sink that the publisher publishes to."""
    from connectors.kafka.sink import KafkaSink

    assert chosen.source.kafka is not None
    return KafkaSink(chosen.source.kafka, chosen.limits, collection, identity)


if __name__ == "__main__":
    main()
