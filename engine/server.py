"""The process that answers HTTP: a socket, connections that do not wait for ever, a clean end."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import sys
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from engine.api import make_app
from engine.config import ApiSettings, Settings
from engine.errors import ConfigError
from engine.gate import read_keys
from engine.problems import Problem, respond
from engine.service import Service

BACKLOG = 512
STOP_S = 5  # answers under way have so long when the process is to end
SWITCH_S = 0.0005  # threads that read large pages give way to the event loop so often
KEEP_ALIVE_S = 75


def serve(settings: Settings) -> None:
    """Answers until SIGTERM or SIGINT. Raises ConfigError: the address or the key cannot be used."""
    keys = read_keys(settings.api)
    listening = bind(settings.api)
    sys.setswitchinterval(SWITCH_S)
    service = Service(settings)
    server = _Server(
        uvicorn.Config(
            make_app(service, keys),
            http=connection_of(settings.api),
            ws="none",
            lifespan="on",
            access_log=False,
            server_header=False,
            log_config=None,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=STOP_S,
        )
    )
    server.service = service
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn stops, then raises it again: that is no error
    with listening:
        server.run(sockets=[listening])


def bind(settings: ApiSettings) -> socket.socket:
    """A listening socket. Raises ConfigError: the port is taken, or the host is not of this machine."""
    where = f"{settings.host}:{settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"[api] host = {settings.host!r} is no address here: {error}.") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            words = f"{where} is taken by another process: stop it, or name another [api] port."
        else:
            words = f"{where} cannot be listened on: {error.strerror}; name another [api] host or port."
        raise ConfigError(words) from None
    return listening


def connection_of(settings: ApiSettings) -> type[HttpToolsProtocol]:
    """Connections with these bounds."""

    class Bounded(Connection):
        bounds = settings

    return Bounded


class Connection(HttpToolsProtocol):
    """A client has `patience_s` to send a request's head, and as long to take what is sent to it.

    Between requests a connection may rest for KEEP_ALIVE_S. Bodies are timed by who reads them.
    """

    bounds: ApiSettings
    _awaited: asyncio.TimerHandle | None = None  # a request's head
    _stuck: asyncio.TimerHandle | None = None  # on a client that does not read
    _head = 0  # bytes of it so far

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.bounds.connections_max:
            most = self.bounds.connections_max
            self._refuse(Problem("busy", f"{most} connections are open already ([api] connections_max)."))
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
        self._refuse(Problem("too-slow", "The head of the request did not come in time."))

    def _refuse(self, problem: Problem) -> None:
        response = respond(problem, {"connection": "close"})
        head = [b"HTTP/1.1 %d %b" % (response.status_code, problem.kind.title.encode())]
        head += [b"%b: %b" % pair for pair in response.raw_headers]
        self.transport.write(b"\r\n".join([*head, b"", bytes(response.body)]))
        self._close()

    def _close(self) -> None:
        """Also where a client does not take what is still to be sent."""
        if not self.transport.is_closing():
            self.transport.close()
            self.loop.call_later(self.bounds.patience_s, self.transport.abort)


class _Server(uvicorn.Server):
    """Streams of changes end when the process is to end: else they would hold it up."""

    service: Service

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.service.stop()
        super().handle_exit(sig, frame)
