"""The writer's socket: what goes through, what is refused, and that nobody waits for ever."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.api.writer_client import WriterClient
from engine.config import ControlSettings, load
from engine.daemon.control import NAME, Control, Listener
from engine.daemon.supervisor import Daemon
from engine.errors import (
    InputError,
    NotFound,
    ShoalError,
    StoreFull,
    StoreLocked,
    WriterAway,
    WriterBusy,
)

Listen = Callable[..., Listener]


def echo(body: dict[str, Any], vectors: Any) -> dict[str, Any]:
    return {"body": body, "vectors": None if vectors is None else vectors.tolist()}


def refuse(body: dict[str, Any], vectors: Any) -> dict[str, Any]:
    raise {"input": InputError, "missing": NotFound, "full": StoreFull}[body["kind"]]("no: do that")


class Hold:
    """A handler that answers when it is let go."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Semaphore(0), threading.Event()

    def __call__(self, body: dict[str, Any], vectors: Any) -> dict[str, Any]:
        self.reached.release()
        assert self.go.wait(60)
        return {}


HANDLERS = {"echo": echo, "refuse": refuse, "bug": lambda body, vectors: {"x": 1 / 0}}


@pytest.fixture
def hold() -> Hold:
    return Hold()


@pytest.fixture
def listen(tmp_path: Path, hold: Hold) -> Iterator[Listen]:
    opened = []

    def listen_there(folder: Path = tmp_path, **bounds: Any) -> Listener:
        handlers = {**HANDLERS, "hold": hold}
        settings = ControlSettings(**bounds)
        opened.append(Listener(folder, handlers, settings, lambda op, problem: bugs.append((op, problem))))
        return opened[-1]

    bugs: list[Any] = []
    listen_there.bugs = bugs  # type: ignore[attr-defined]
    yield listen_there
    hold.go.set()
    for listener in opened:
        listener.close()


def test_questions_and_answers(listen: Listen, tmp_path: Path) -> None:
    listen()
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    with Control(tmp_path, 5.0) as control:
        for _ in range(3):  # over one connection
            answer = control.call("echo", {"key": "ä", "n": 2**60}, vectors)
            assert answer["vectors"] == vectors.tolist()
            assert answer["body"]["key"] == "ä"
            assert answer["body"]["n"] == 2**60
            assert 4.0 < answer["body"]["timeout_s"] <= 5.0
        assert control.call("echo")["vectors"] is None
        assert control.call("echo", vectors=np.empty((0, 4), np.float32))["vectors"] == []


@pytest.mark.parametrize(
    ("kind", "error"), [("input", InputError), ("missing", NotFound), ("full", StoreFull)]
)
def test_what_a_handler_refuses_is_refused_here(
    listen: Listen, tmp_path: Path, kind: str, error: type[ShoalError]
) -> None:
    listen()
    with Control(tmp_path) as control:
        with pytest.raises(error, match="no: do that"):
            control.call("refuse", {"kind": kind})
        assert control.call("echo")
        with pytest.raises(InputError, match="knows no operation 'dance'"):
            control.call("dance")


def test_a_mistake_of_ours_is_told_to_both_sides(listen: Listen, tmp_path: Path) -> None:
    listen()
    with Control(tmp_path) as control, pytest.raises(ShoalError, match=r"bug failed .*ZeroDivisionError"):
        control.call("bug")
    [(op, problem)] = listen.bugs  # type: ignore[attr-defined]
    assert op == "bug"
    assert isinstance(problem, ZeroDivisionError)


def test_without_a_writer(listen: Listen, tmp_path: Path) -> None:
    with Control(tmp_path) as control:
        with pytest.raises(WriterAway, match="start `shoal serve`"):
            control.call("echo")
        listener = listen()
        assert control.call("echo")
        listener.close()
        assert not (tmp_path / NAME).exists()
        with pytest.raises(WriterAway):
            control.call("echo")
        listen()
        assert control.call("echo")


def test_a_writer_that_ends_in_between(listen: Listen, tmp_path: Path, hold: Hold) -> None:
    listener = listen()

    def end() -> None:
        assert hold.reached.acquire(timeout=60)
        listener.close()

    ending = threading.Thread(target=end)
    ending.start()
    with Control(tmp_path) as control, pytest.raises(WriterAway, match="ended before it answered hold"):
        control.call("hold")
    assert not hold.go.is_set(), "it did not wait for the handler"
    ending.join()


def test_a_socket_that_a_killed_writer_left_is_replaced(listen: Listen, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / NAME))
    with Control(tmp_path) as control:
        with pytest.raises(WriterAway):
            control.call("echo")
        listen()
        assert control.call("echo")


def test_a_second_writer_is_refused(listen: Listen, tmp_path: Path) -> None:
    listen()
    with pytest.raises(StoreLocked, match="another process answers"):
        listen()


def test_a_path_longer_than_sockets_take(listen: Listen, tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["deep" * 12] * 4)
    folder.mkdir(parents=True)
    listen(folder)
    with Control(folder) as control:
        assert control.call("echo")
    assert (folder / NAME).is_socket()
    assert (folder / NAME).stat().st_mode & 0o777 == 0o600


def test_an_answer_that_does_not_come_in_time(listen: Listen, tmp_path: Path, hold: Hold) -> None:
    listen()
    with Control(tmp_path, timeout_s=0.2) as control:
        with pytest.raises(WriterBusy, match="did not answer hold in time"):
            control.call("hold")
        assert not hold.go.is_set(), "it did not wait for the handler"
    with Control(tmp_path) as control:
        assert control.call("echo", timeout_s=20.0)["body"]["timeout_s"] <= 20.0


def test_too_many_calls_of_one_kind_leave_others_alone(listen: Listen, tmp_path: Path, hold: Hold) -> None:
    listen(calls_max=2)
    with Control(tmp_path) as control:
        outcomes: list[str] = []

        def call(timeout_s: float) -> None:
            try:
                control.call("hold", timeout_s=timeout_s)
                outcomes.append("done")
            except WriterBusy:
                outcomes.append("busy")

        held = [threading.Thread(target=call, args=(60.0,)) for _ in range(2)]
        for thread in held:
            thread.start()
        for _ in held:
            assert hold.reached.acquire(timeout=60)
        late = [threading.Thread(target=call, args=(0.3,)) for _ in range(4)]
        for thread in late:
            thread.start()
        assert control.call("echo")
        for thread in late:
            thread.join()
        assert outcomes == ["busy"] * 4
        hold.go.set()
        for thread in held:
            thread.join()
        assert outcomes[4:] == ["done"] * 2


def test_more_connections_than_allowed_wait_in_vain(listen: Listen, tmp_path: Path) -> None:
    listen(connections_max=1)
    with Control(tmp_path) as first, Control(tmp_path, 0.3) as second:
        assert first.call("echo")
        with pytest.raises(WriterBusy):
            second.call("echo")
        first.close()
        assert second.call("echo", timeout_s=5.0)


def test_frames_are_bounded(listen: Listen, tmp_path: Path) -> None:
    listen(frame_max_bytes=2**16)
    large = np.zeros((200, 100), np.float32)
    with Control(tmp_path, bounds=ControlSettings(frame_max_bytes=2**16)) as control:
        with pytest.raises(InputError, match="send less at once"):
            control.call("echo", {}, large)
        with pytest.raises(InputError, match="ask for less"):
            control.call("echo", {}, np.full((120, 100), 1 / 3, np.float32))
        assert control.call("echo")
    with Control(tmp_path) as control:
        with pytest.raises(WriterAway):  # hung up on
            control.call("echo", {}, large)
        assert control.call("echo")


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack(">I", 2**31),
        struct.pack(">I", 4) + b"nope",
        struct.pack(">I", 2) + b"{}",
        struct.pack(">I", 2) + b"[]",
        struct.pack(">I", 100) + b"half",
        struct.pack(">I", 41) + b'{"op":"echo","body":{},"timeout_s":"soon"}'[:41],
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_garbage_is_hung_up_on(listen: Listen, tmp_path: Path, sent: bytes) -> None:
    listen(receive_timeout_s=0.3)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(60.0)
        stranger.connect(str(tmp_path / NAME))
        stranger.sendall(sent)
        with contextlib.suppress(ConnectionResetError):  # what was sent has not been read to its end
            assert stranger.recv(100) == b""
    with Control(tmp_path) as control:
        assert control.call("echo")


def test_a_process_with_many_open_files_keeps_connections(listen: Listen, tmp_path: Path) -> None:
    """Handles of 1,024 and more are usual where many connections are."""
    listen()
    with Control(tmp_path) as control, contextlib.ExitStack() as opened:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, hard), hard))
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        while opened.enter_context(open(os.devnull)).fileno() < 1024:
            pass
        for number in range(3):
            assert control.call("echo", {"number": number})["body"]["number"] == number
        assert control._idle[0].fileno() > 1024


def test_who_asks_the_writer_has_the_bounds_of_the_settings(tmp_path: Path) -> None:
    settings = load(None, {"store.path": str(tmp_path), "control.frame_max_bytes": 2**21})
    for control in WriterClient(settings)._control, Daemon(settings, [])._control:
        with pytest.raises(InputError, match=f"more than {2**21} bytes"):
            control.call("echo", {"text": "x" * 2**21})
