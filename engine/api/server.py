"""The API server: uvicorn with bounded connections, timeouts for slow clients and a clean shutdown."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from engine.api.app import make_app
from engine.api.context import Context
from engine.api.event_stream import EventStreams
from engine.api.middleware.authentication import Keys, read_keys
from engine.api.problems import Problem, respond
from engine.config import ApiSettings, Settings
from engine.system import scheduling

STOP_S = 5  # for requests in progress at shutdown
SWITCH_S = 0.0005  # interpreter switch interval: the event loop preempts threads that read large pages
KEEP_ALIVE_S = 75


def serve(settings: Settings, listening: socket.socket) -> None:
    """Serve on a listening socket until SIGTERM or SIGINT. Raises ConfigError: the key cannot be used."""
    keys = read_keys(settings.api)
    sys.setswitchinterval(SWITCH_S)
    context = Context(settings)
    server = server_of(context, keys)
    for number in (signal.SIGTERM, signal.SIGINT):  # until here they end the process by themselves
        signal.signal(number, server.handle_exit)  # uvicorn raises them again at its end: that is no error
    scheduling.keep_for_good()
    server.run(sockets=[listening])
    if context.failure:
        raise context.failure  # a bug: the process ends, and the supervisor starts it again


def server_of(context: Context, keys: Keys) -> Server:
    """Return a server of the application whose connections are bounded as the settings say."""
    config = uvicorn.Config(
        make_app(context, keys),
        http=connection_of(context.settings.api),
        ws="none",
        lifespan="on",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_S,
    )
    return Server(config, context.streams)


def connection_of(settings: ApiSettings) -> type[HttpToolsProtocol]:
    """Return the connection class with these bounds."""

    class Bounded(Connection):
        bounds = settings

    return Bounded


class Connection(HttpToolsProtocol):
    """HTTP connection with timeouts: `patience_s` to receive a request's head, and to drain a response.

    Between requests a connection may be idle for KEEP_ALIVE_S. `bodies` times the reading of bodies.
    """

    bounds: ApiSettings
    _awaited: asyncio.TimerHandle | None = None  # a request's head
    _stuck: asyncio.TimerHandle | None = None  # since the client stopped reading
    _head = 0  # its bytes received so far

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.bounds.connections_max:
            most = self.bounds.connections_max
            self._refuse(Problem("busy", f"{most} connections are already open ([api] connections_max)."))
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._awaited, self._stuck):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._awaited:
            self._head += len(data)
            if self._head > self.bounds.header_max_bytes:
                self.send_400_response("The head of the request is too large ([api] header_max_bytes).")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        if self._awaited:
            self._awaited.cancel()
            self._awaited = None
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(Problem("bad-request", msg))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(self.bounds.patience_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck:
            self._stuck.cancel()
            self._stuck = None

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def _await_head(self) -> None:
        if self._awaited is None:
            self._head = 0
            self._awaited = self.loop.call_later(self.bounds.patience_s, self._lose_patience)

    def _lose_patience(self) -> None:
        self._refuse(Problem("too-slow", "The request headers did not arrive within [api] patience_s."))

    def _refuse(self, problem: Problem) -> None:
        response = respond(problem, {"connection": "close"})
        head = [b"HTTP/1.1 %d %b" % (response.status_code, problem.kind.title.encode())]
        head += [b"%b: %b" % pair for pair in response.raw_headers]
        self.transport.write(b"\r\n".join([*head, b"", bytes(response.body)]))
        self._close()

    def _close(self) -> None:
        """Abort also if the client does not read what is left to send."""
        if not self.transport.is_closing():
            self.transport.close()
            self.loop.call_later(self.bounds.patience_s, self.transport.abort)


class Server(uvicorn.Server):
    """End the event streams first: uvicorn would wait for them."""

    def __init__(self, config: uvicorn.Config, streams: EventStreams) -> None:
        super().__init__(config)
        self._streams = streams

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._streams.stop()
        super().handle_exit(sig, frame)
