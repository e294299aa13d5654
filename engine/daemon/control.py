"""The writer's control socket: the API and commands call operations of the live engine here.

A Unix socket `control` in the store's folder. A request is a frame of JSON, `{"op", "body", "shape",
"blob", "timeout_s"}`; where it has a shape, a frame of little-endian float32 follows, and where `blob` is
true, a frame of bytes. The answer is a frame of JSON, `{"answer"}` or `{"error", "sentence"}`. A frame is
its length, four bytes, big-endian, and that many bytes. Nothing is unpickled.

Everything is bounded: the size of a frame, connections, concurrent calls of each operation, and time. That is
why frames are read here and not by `multiprocessing.connection`: its `recv_bytes` has no deadline, so a peer
that sends half a frame would block a thread for ever.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from engine import errors
from engine.closing import Closing
from engine.config import ControlSettings
from engine.errors import InputError, ShoalError, StoreError, StoreLocked, WriterAway, WriterBusy
from engine.streams import Body, Handler
from engine.types import Float32

NAME = "control"
PATH_MAX_BYTES = 100  # of a socket's name; the system takes 107
_LENGTH = struct.Struct(">I")


class Control(Closing):
    """A client; any number of threads may call. Connections are kept for the next call.

    Without a writer each call raises WriterAway; nothing is connected before the first.
    """

    def __init__(
        self, store: str | os.PathLike[str], timeout_s: float = 5.0, bounds: ControlSettings | None = None
    ) -> None:
        self._folder, self._timeout_s = Path(store), timeout_s
        self._bounds = bounds or ControlSettings()
        self._idle: list[socket.socket] = []
        self._lock = threading.Lock()

    def call(
        self,
        op: str,
        body: Mapping[str, Any] | None = None,
        vectors: Float32 | None = None,
        timeout_s: float | None = None,
        blob: bytes | None = None,
    ) -> Body:
        """Call the writer's handler of `op`. `vectors`: (n, d); `blob`: arrives as `body["blob"]`.

        Raises WriterAway (there is none, or it ended before it answered), WriterBusy (no answer in time, or
        too many at once) and whatever the handler raised: InputError, StoreError ...
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        request: Body = {"op": op, "body": body or {}, "timeout_s": limit_s, "blob": blob is not None}
        request["shape"] = None if vectors is None else vectors.shape
        raw = [orjson.dumps(request, option=orjson.OPT_SERIALIZE_NUMPY)]
        if vectors is not None:
            raw.append(np.ascontiguousarray(vectors, "<f4").tobytes())
        if blob is not None:
            raw.append(blob)
        if max(map(len, raw)) > self._bounds.frame_max_bytes:
            raise InputError(
                f"a request of more than {self._bounds.frame_max_bytes} bytes ([control] frame_max_bytes): "
                "send less at once"
            )
        return _unwrap(self._exchange(op, raw, time.monotonic() + limit_s))

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _exchange(self, op: str, raw: list[bytes], deadline: float) -> Body:
        connection = self._take() or self._connect(deadline)
        try:
            for frame in raw:
                _send(connection, frame, deadline)
            answer = _receive(connection, deadline, self._bounds.frame_max_bytes)
        except TimeoutError:
            connection.close()
            raise WriterBusy(f"the writer did not answer {op} in time; try again") from None
        except (OSError, EOFError):
            connection.close()
            raise WriterAway(f"the writer ended before it answered {op}; try again when it is back") from None
        with self._lock:
            self._idle.append(connection)
        found: Body = orjson.loads(answer)
        return found

    def _take(self) -> socket.socket | None:
        """Return a kept connection that is still open, if there is one."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            waiting = select.poll()  # select takes no file handle of 1,024 or more
            waiting.register(connection, select.POLLIN)
            if not waiting.poll(0):
                return connection
            connection.close()  # readable without a question: the writer has gone

    def _connect(self, deadline: float) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_left(deadline))
            with _address(self._folder) as address:
                connection.connect(address)
        except (TimeoutError, BlockingIOError):
            connection.close()
            raise WriterBusy("the writer has too many callers; try again") from None
        except OSError:
            connection.close()
            raise WriterAway(
                f"nothing writes {self._folder} at the moment: start `shoal serve`, or wait until it is ready"
            ) from None
        return connection


class Listener(Closing):
    """The server: threads that answer calls with `handlers`, by operation, until closed.

    A handler gets the body (with `timeout_s`, the seconds that the caller still waits) and the vectors,
    float32 (n, d) or None; it returns what becomes JSON, or raises a ShoalError. Of each operation
    `calls_max` run at once; handlers of different ones must be able to run concurrently.
    `bug(op, error)` is called for any other exception; the caller gets its type only.

    Only for the process that holds the store's lock: a socket file without a listener is replaced.
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        handlers: Mapping[str, Handler],
        bounds: ControlSettings | None = None,
        bug: Callable[[str, Exception], None] | None = None,
    ) -> None:
        self._folder, self._handlers = Path(store), dict(handlers)
        self._bounds = bounds or ControlSettings()
        self._bug = bug or (lambda op, error: None)
        self._slots = {op: threading.BoundedSemaphore(self._bounds.calls_max) for op in self._handlers}
        self._places = threading.BoundedSemaphore(self._bounds.connections_max)
        self._open: set[socket.socket] = set()
        self._lock, self._closed = threading.Lock(), False
        self._socket = self._bind()
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering; waiting callers get no answer. Remove the socket file."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            connections = list(self._open)
        (self._folder / NAME).unlink(missing_ok=True)
        for connection in [self._socket, *connections]:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=1.0)
        self._socket.close()

    def _bind(self) -> socket.socket:
        path = self._folder / NAME
        with contextlib.suppress(WriterAway):
            Control(self._folder, 1.0)._connect(time.monotonic() + 1.0).close()
            raise StoreLocked(f"another process answers at {path}; stop it first")
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)
            with _address(self._folder) as address:
                listening.bind(address)
                os.chmod(address, 0o600)
            listening.listen(self._bounds.connections_max)
        except OSError as problem:
            listening.close()
            raise StoreError(f"no socket can be made at {path}: {problem.strerror or problem}") from None
        return listening

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                if self._closed:
                    return
                time.sleep(0.05)  # out of file handles: callers wait in the backlog
                continue
            self._places.acquire()  # beyond the bound callers wait in the backlog, until they lose patience
            threading.Thread(target=self._serve, args=(connection,), name="caller", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)
        try:
            while not self._closed and self._answer(connection):
                pass
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
            pass  # the caller has gone, or does not speak this language
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
            self._places.release()

    def _answer(self, connection: socket.socket) -> bool:
        connection.settimeout(None)
        if not connection.recv(1, socket.MSG_PEEK):
            return False
        deadline = time.monotonic() + self._bounds.receive_timeout_s
        request = orjson.loads(_receive(connection, deadline, self._bounds.frame_max_bytes))
        vectors = None
        if request.get("shape") is not None:
            rows, dim = map(int, request["shape"])
            raw = _receive(connection, deadline, self._bounds.frame_max_bytes)
            vectors = np.frombuffer(raw, "<f4").reshape(rows, dim)
        if request.get("blob"):
            request["body"]["blob"] = _receive(connection, deadline, self._bounds.frame_max_bytes)
        answer = self._run(request, vectors)
        _send(connection, answer, time.monotonic() + self._bounds.receive_timeout_s)
        return True

    def _run(self, request: Body, vectors: Float32 | None) -> bytes:
        op, limit_s = str(request["op"]), float(request["timeout_s"])
        if op not in self._handlers:
            return _wrap(InputError(f"the writer knows no operation {op!r}"))
        asked = time.monotonic()
        if not self._slots[op].acquire(timeout=max(0.0, min(limit_s, threading.TIMEOUT_MAX))):
            return _wrap(WriterBusy(f"the writer has too many calls of {op}; try again"))
        try:
            body = {**request["body"], "timeout_s": max(0.0, limit_s - (time.monotonic() - asked))}
            answer = self._handlers[op](body, vectors)
            frame = orjson.dumps({"answer": answer}, option=orjson.OPT_SERIALIZE_NUMPY)
            if len(frame) > self._bounds.frame_max_bytes:
                raise InputError(
                    f"the answer has {len(frame)} bytes, more than may be sent ([control] frame_max_bytes): "
                    "ask for less"
                )
            return frame
        except ShoalError as problem:
            return _wrap(problem)
        except Exception as problem:
            self._bug(op, problem)
            return _wrap(ShoalError(f"{op} failed inside the writer ({type(problem).__name__}); see its log"))
        finally:
            self._slots[op].release()


@contextlib.contextmanager
def _address(folder: Path) -> Iterator[str]:
    """Return a name of the socket that is short enough for the system, wherever the store is."""
    path = os.fspath(folder / NAME)
    if len(os.fsencode(path)) <= PATH_MAX_BYTES:
        yield path
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{handle}/{NAME}"
    finally:
        os.close(handle)


def _wrap(problem: ShoalError) -> bytes:
    return orjson.dumps(errors.dump(problem))


def _unwrap(answer: Body) -> Body:
    if "error" in answer:
        raise errors.load(answer)
    found: Body = answer["answer"]
    return found


def _send(connection: socket.socket, frame: bytes, deadline: float) -> None:
    connection.settimeout(_left(deadline))
    connection.sendall(_LENGTH.pack(len(frame)) + frame)


def _receive(connection: socket.socket, deadline: float, most: int) -> bytes:
    (length,) = _LENGTH.unpack(_read(connection, _LENGTH.size, deadline))
    if length > most:
        raise ValueError(f"a frame of {length} bytes, at most {most} are allowed")
    return _read(connection, length, deadline)


def _read(connection: socket.socket, count: int, deadline: float) -> bytes:
    found = bytearray(count)
    view, at = memoryview(found), 0
    while at < count:
        connection.settimeout(_left(deadline))
        got = connection.recv_into(view[at:])
        if not got:
            raise EOFError
        at += got
    return bytes(found)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
