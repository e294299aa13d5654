"""The process that answers HTTP: one test for each hook of uvicorn that it builds on, and its end."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.api import server
from engine.api.app import SWAGGER
from engine.storage.store import Store
from tests.conftest import environment
from tests.support import warm_python
from tests.support.fake_collection import Toy
from tests.support.live_api import Api, api, settings_of
from tests.support.waiting import until

LIMIT_S = 60.0  # of the tests' own patience
HEAD = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"

_TOLD_TO_END_WHILE_IT_STARTS = """
import signal, sys
from pathlib import Path
from engine.api import server
from engine.api.app import SWAGGER
from engine.daemon.supervisor import listen
from tests.support.live_api import settings_of
server.scheduling.keep_for_good = lambda: signal.raise_signal(signal.SIGTERM)
settings = settings_of(Path(sys.argv[1]))
server.serve(settings, listen(settings.api))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("server") / "store"
    with Store.open(path, {"collection": "toy", "dim": None}) as store:
        store.commit(Toy(1).step())
    return path


@contextmanager
def serving(made: Path, tmp_path: Path, **settings: Any) -> Iterator[Api]:
    """On a copy of the store: LMDB must not be opened twice in one process."""
    shutil.copytree(made, tmp_path / "store")
    with api(settings_of(tmp_path / "store", **settings)) as served:
        yield served


def connect(served: Api) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), LIMIT_S)


def rest_of(client: socket.socket) -> bytes:
    """All that comes until the server hangs up."""
    return b"".join(iter(lambda: client.recv(2**16), b""))


def answer_of(client: socket.socket) -> bytes:
    """The whole answer to HEAD: its head and its body may come apart."""
    answer = b""
    while not answer.endswith(b'{"live":true}'):
        part = client.recv(2**16)
        assert part, answer
        answer += part
    return answer


def connections(served: Api) -> int:
    return len(served.server.server_state.connections)


def test_connection_made_bounds_the_connections(made: Path, tmp_path: Path) -> None:
    with serving(made, tmp_path, api__connections_max=4) as served:
        clients = [connect(served) for _ in range(4)]
        until(lambda: connections(served) == 4)
        with connect(served) as late:
            answer = rest_of(late)
            assert answer.startswith(b"HTTP/1.1 503 Server busy")
            assert b"retry-after: 1" in answer
        for client in clients:
            client.close()
        until(lambda: connections(served) == 0)
        assert served.http.get("/livez").status_code == 200


def test_connection_made_and_lost_start_and_end_the_wait_for_a_head(made: Path, tmp_path: Path) -> None:
    with serving(made, tmp_path, api__patience_s=0.3) as served:
        with connect(served) as silent:
            assert rest_of(silent).startswith(b"HTTP/1.1 408")
        with connect(served):
            until(lambda: connections(served) == 1)
            (held,) = served.server.server_state.connections
        until(lambda: connections(served) == 0)
        assert held._awaited.cancelled()


def test_data_received_bounds_a_head(made: Path, tmp_path: Path) -> None:
    with serving(made, tmp_path, api__header_max_bytes=4096) as served, connect(served) as wide:
        wide.sendall(b"GET /livez HTTP/1.1\r\nX-Wide: " + b"x" * 8192)
        answer = rest_of(wide)
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"header_max_bytes" in answer


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_on_message_complete_takes_the_body_of_a_request_that_asks_for_an_upgrade(
    made: Path, tmp_path: Path, chunked: bool, apart: bool
) -> None:
    """As Java's HTTP client sends it. Its body must be neither lost nor taken for the next request."""
    body = b'{"keys": ["GET /livez HTTP/1.1\\r\\n\\r\\n"]}'
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
    request = b"POST /v1/items:lookup HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head = request + upgrade + framing + b"\r\n\r\n"
    with serving(made, tmp_path) as served, connect(served) as client:
        for part in (head, sent) if apart else (head + sent,):
            client.sendall(part)
            until(lambda: connections(served) == 1)
        client.sendall(HEAD + upgrade + b"\r\n")  # without a body; the next request follows it
        client.sendall(HEAD + b"Connection: close\r\n\r\n")
        answers = rest_of(client)
    assert answers.count(b"HTTP/1.1 200 OK") == answers.count(b"HTTP/1.1") - 1 == 3, answers
    assert b'"missing":["GET /livez HTTP/1.1' in answers
    assert answers.count(b'{"live":true}') == 2


def test_on_message_begin_bounds_the_time_of_each_head(made: Path, tmp_path: Path) -> None:
    with serving(made, tmp_path, api__patience_s=0.5) as served, connect(served) as slow:
        slow.sendall(HEAD + b"\r\n")
        assert answer_of(slow).startswith(b"HTTP/1.1 200")
        slow.sendall(HEAD)  # the head of a second request, which does not end
        answer = rest_of(slow)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"urn:shoal:problem:too-slow" in answer


def test_on_headers_complete_ends_the_wait(made: Path, tmp_path: Path) -> None:
    """A connection that rests between two requests is not slow: uvicorn's own time-out counts for it."""
    with serving(made, tmp_path, api__patience_s=30.0) as served, connect(served) as client:
        client.sendall(HEAD + b"\r\n")
        assert answer_of(client).startswith(b"HTTP/1.1 200")
        (held,) = served.server.server_state.connections
        assert held._awaited is None


def test_send_400_response_is_a_problem_document(made: Path, tmp_path: Path) -> None:
    with serving(made, tmp_path) as served, connect(served) as odd:
        odd.sendall(b"\x16\x03\x01\x00\x00 what\r\n\r\n")
        answer = rest_of(odd)
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"application/problem+json" in answer


def test_pause_writing_bounds_the_time_of_a_client_that_does_not_read(made: Path, tmp_path: Path) -> None:
    with serving(made, tmp_path, api__patience_s=0.5) as served, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", served.port))
        request = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
        client.sendall(20 * request)  # more than the system takes in for a client
        until(lambda: connections(served) == 1)
        until(lambda: connections(served) == 0)


def test_resume_writing_ends_that_wait(made: Path, tmp_path: Path) -> None:
    with serving(made, tmp_path, api__patience_s=300.0) as served, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(LIMIT_S)
        client.connect(("127.0.0.1", served.port))
        request = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n"
        client.sendall(10 * (request + b"\r\n") + request + b"Connection: close\r\n\r\n")
        until(lambda: connections(served) == 1)
        (held,) = served.server.server_state.connections
        until(lambda: held._stuck)
        assert len(rest_of(client)) > 11 * (SWAGGER / "swagger-ui-bundle.js").stat().st_size
        assert held._stuck is None


def test_timeout_keep_alive_handler_closes_an_idle_connection(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 1)
    with serving(made, tmp_path) as served, connect(served) as idle:
        idle.sendall(HEAD + b"\r\n")
        assert rest_of(idle).startswith(b"HTTP/1.1 200")  # and then hangs up


def test_handle_exit_ends_streams(made: Path, tmp_path: Path) -> None:
    with serving(made, tmp_path) as served, connect(served) as stream:
        stream.sendall(b"GET /v1/changes HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
        assert stream.recv(2**16).startswith(b"HTTP/1.1 200")
        served.server.handle_exit(15, None)
        assert rest_of(stream).endswith(b"0\r\n\r\n"), "an end, not a broken connection"


@pytest.mark.process
def test_a_signal_while_it_starts_ends_it(tmp_path: Path) -> None:
    command = [warm_python.executable(), "-c", _TOLD_TO_END_WHILE_IT_STARTS, str(tmp_path / "store")]
    assert subprocess.run(command, env=environment(), timeout=300, check=False).returncode == 0
