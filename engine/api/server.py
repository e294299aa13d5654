"""The API server: uvicorn with bounded connections, timeouts for slow clients and a clean shutdown."""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import Any

import httptools
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
KEEP_ALIVE_S = 75
FRAMING = (b"content-length", b"transfer-encoding")  # headers that say where a body ends


def serve(settings: Settings, listening: socket.socket) -> None:
    """Serve on a listening socket until SIGTERM or SIGINT. Raises ConfigError: the key cannot be used."""
    keys = read_keys(settings.api)
    scheduling.switch_often()  # the event loop preempts threads that read large pages
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


class Parser(httptools.HttpRequestParser):
    """Hands over what follows the head of a request that asks for another protocol (`Upgrade: h2c`).

    httptools takes its body for that protocol, and parses no further.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._connection = connection

    def feed_data(self, data: Any) -> None:
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as asked:
            self._connection.go_on(data[asked.args[0] :])


class Connection(HttpToolsProtocol):
    """HTTP connection with timeouts: `patience_s` to receive a request's head, and to drain a response.

    Between requests a connection may be idle for KEEP_ALIVE_S. `bodies` times the reading of bodies. A wish
    for another protocol is ignored, as RFC 9110, 7.8 allows: Java's client sends one with each request.
    """

    bounds: ApiSettings
    _head_known = False
    _awaited: asyncio.TimerHandle | None = None  # a request's head
    _stuck: asyncio.TimerHandle | None = None  # since the client stopped reading
    _head = 0  # its bytes received so far

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.parser = Parser(self)
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

    def go_on(self, data: bytes) -> None:
        """Parse what follows a head anew, as the body that the head announced."""
        framing = [b"%b: %b\r\n" % header for header in self.headers if header[0] in FRAMING]
        self.parser = Parser(self)
        self._head_known = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
        self._head_known = False
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        if not self._head_known:
            super().on_message_begin()
            self._await_head()

    def on_url(self, url: bytes) -> None:
        if not self._head_known:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_known:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._awaited:
            self._awaited.cancel()
            self._awaited = None
        if not self._head_known:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():  # else the body is still to come
            super().on_message_complete()

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
