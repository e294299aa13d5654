"""A Python that starts warm: its processes are forked from one that has imported and compiled what they need.

`WarmPython.executable` takes a command line as `python` does (`-c CODE`, `-m MODULE`, or a file, with or
without `-I` and `-u`) and stands for the process in every respect: it passes its open files and signals on
and ends as that ends; when it is killed, so is that. Importing torch and loading kernels takes 3 s otherwise.

The process that they are forked from has run numba on a threading layer that survives a fork, on one thread,
and only one thread may compute then. Parts of a daemon, and what asks for `threads`, are forked from one that
has imported everything and computed nothing: kernels are loaded once more, but several threads may use them.
What `engine.system.isolation` starts reads a store and no more: it is forked from one without torch, whose
memory is a tenth, in a tenth of the time. What Python does before it is warm (imports, the path, the
environment's pins) is tested with processes of its own.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import importlib
import io
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from tests.faults import zygote
from tests.faults.zygote import ENVIRONMENT
from tests.support.waiting import until

_PRELOADED = (
    "pyarrow.parquet",
    "sklearn.datasets",
    "torch._dynamo",  # an optimizer's first step imports it
    "connectors.files.source",
    "connectors.http",
    "connectors.kafka.sink",
    "connectors.kafka.source",
    "engine.api.server",
    "engine.cli.adapt",
    "engine.cli.demo",
    "engine.cli.digits",
    "engine.cli.encode",
    "engine.cli.evaluate",
    "engine.cli.export",
    "engine.cli.ingest",
    "engine.cli.learn",
    "engine.cli.main",
    "engine.cli.operate",
    "engine.cli.serve",
    "engine.cli.show",
    "engine.cli.tune",
    "engine.collection.sweep",
    "engine.daemon.publisher",
    "engine.daemon.supervisor",
    "engine.daemon.writer",
    "engine.evaluation.evaluate",
    "engine.evaluation.proposal",
    "engine.evaluation.tuning",
    "engine.learning.adapt",
    "engine.learning.encoder",
    "engine.learning.judge",
    "engine.learning.labelled",
    "engine.learning.plots",
    "engine.storage.verify",
    "engine.training.lander.train",
    "engine.training.train",
    "engine.training.training_report",
)
_ROOT = Path(__file__).resolve().parents[2]
_READS = "engine.index.graph_file", "engine.storage.backup", "engine.storage.export", "engine.storage.verify"
_NAMES = "python", "threads", "reader"
_FAILED = "failed"  # a file beside them: one of these processes could not become warm
_SHARED = "TESTS_WARM_PYTHON"  # variable: the folder of the processes that a session's workers share
START_S = 600.0
_MOST_FILES = 64
_HIGH = 512  # file numbers from here on are free

# Runs without `site`: it starts in a few milliseconds.
_EXECUTABLE = r"""#!{interpreter} -ISE
import os, signal, socket, sys
words = sys.argv[1:]
address = {python!r}
if "engine.system.isolation" in words[:4]:
    address = {reader!r}
if "--parent" in words:  # a part of a daemon, which it does not outlive
    address = {threads!r}
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(words[words.index("--parent") + 1]):
        sys.exit(1)
files = []
for name in os.listdir("/proc/self/fd"):
    try:
        os.fstat(int(name))
    except OSError:
        continue  # the folder's own
    if int(name) < 3 or os.get_inheritable(int(name)):
        files.append(int(name))
warm = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
warm.connect(address)
leads = int(os.getsid(0) == os.getpid())
told = [leads, len(words), *words, os.getcwd(), *("%s=%s" % pair for pair in os.environ.items())]
body = b"\0".join(os.fsencode(str(each)) for each in [",".join(map(str, files)), *told])
socket.send_fds(warm, [len(body).to_bytes(8, "big")], files)
warm.sendall(body)
def pass_on(number):
    try:
        os.kill(process, number)
    except ProcessLookupError:
        pass
answers = warm.makefile("rb")
process = int(answers.readline() or 0)
if not process:
    sys.exit("the warm process is away")
for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGCONT:
    signal.signal(number, lambda number, frame: pass_on(number))
status = int(answers.readline() or 1)
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if status not in (-9, -19) else None
    os.kill(os.getpid(), -status)
os._exit(status)
"""


class WarmPython:
    """The processes that others are forked from, in a folder with the executables that ask for one."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="shoal-warm-")
        self.folder = self._folder.name
        executables = {name: f"{self.folder}/{name}" for name in _NAMES}
        sockets = {name: f"{executable}.socket" for name, executable in executables.items()}
        for name in ("python", "threads"):
            places = {**sockets, "python": sockets[name]}
            Path(executables[name]).write_text(_EXECUTABLE.format(interpreter=sys.executable, **places))
            Path(executables[name]).chmod(0o755)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *executables.values()],
            cwd=_ROOT,  # not the test's folder, which may have modules of the same names
            env=env,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def close(self) -> None:
        """End what was started and still runs, too."""
        self._process.communicate()
        self._folder.cleanup()


_running: list[WarmPython] = []


def share() -> None:
    """Start the processes for all workers of this run; they become warm while these collect tests."""
    os.environ[_SHARED] = _start().folder


def wait() -> None:
    """Until the processes that a session's workers share are warm, if it has any."""
    if _SHARED in os.environ:
        executable()


def executable(threads: bool = False) -> str:
    """The path of a Python that starts warm; the processes behind it start with the first call."""
    folder = os.environ.get(_SHARED) or (_running[0] if _running else _start()).folder
    path, failed = f"{folder}/{_NAMES[threads]}", f"{folder}/{_FAILED}"
    until(lambda: os.path.exists(f"{path}.socket") or os.path.exists(failed), START_S)
    assert os.path.exists(f"{path}.socket"), "no Python became warm; its traceback is on standard error"
    return path


def _start() -> WarmPython:
    from tests.conftest import environment

    _running.append(WarmPython(environment()))
    return _running[0]


def close() -> None:
    """End the processes behind `executable`, if this process started them."""
    while _running:
        os.environ.pop(_SHARED, None)
        _running.pop().close()


def main(python: str, threads: str, reader: str) -> None:
    """Fork a process for each connection, until standard input ends."""
    try:
        _fork_all(python, threads, reader)
    except BaseException:  # also in a process that was forked
        with contextlib.suppress(OSError):
            Path(python).with_name(_FAILED).touch()
        raise


def _fork_all(python: str, threads: str, reader: str) -> None:
    for module in _READS:
        importlib.import_module(module)
    if not (child := os.fork()):
        zygote.freeze()
        _serve(reader, {}, python)
        return
    _await(reader, child)
    for module in _PRELOADED:
        importlib.import_module(module)
    zygote.freeze()
    if not (child := os.fork()):
        import numba.core.config

        os.environ.update(ENVIRONMENT)
        numba.core.config.reload_config()
        zygote.warm()
        _serve(python, ENVIRONMENT)
        return
    _await(python, child)  # then the kernels are compiled
    _serve(threads, {})
    with contextlib.suppress(ChildProcessError):
        while os.wait()[0]:  # so that their time counts as this process's
            pass


def _await(executable: str, child: int) -> None:
    """Until a child listens. Raises ChildProcessError where it ends before."""
    is_there = Path(f"{executable}.socket").exists
    until(lambda: is_there() or os.waitpid(child, os.WNOHANG)[0], START_S)
    if not is_there():
        raise ChildProcessError(f"the process behind {executable} ended before it was warm")


class _Started(NamedTuple):
    """A process that was asked for, and who asked."""

    client: socket.socket
    child: int
    leads: bool  # a session of its own


def _serve(executable: str, fixed: Mapping[str, str], python: str | None = None) -> None:
    """`fixed`: variables that stay as they are; numba refuses another number of threads than it has.

    `python`: what the processes take for their own executable, if it is another.
    """
    sys.executable = python or executable
    running: dict[int, _Started] = {}  # by the number of the child's pidfd
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{executable}.new")
        listening.listen(64)
        os.rename(f"{executable}.new", f"{executable}.socket")  # who finds it can connect
        while True:
            clients = {started.client: pidfd for pidfd, started in running.items()}
            ready, _, _ = select.select([listening, 0, *running, *clients], [], [])
            for each in ready:
                if each in running:
                    _tell(running.pop(each), each)
            for each in ready:
                if clients.get(each) in running:  # it was killed
                    _kill(running[clients[each]])
            if 0 in ready:
                break
            if listening in ready:
                client, _ = listening.accept()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # killed already
                    running.update(_start_for(client, fixed))
    for pidfd, started in running.items():
        _kill(started)
        _tell(started, pidfd)


def _start_for(client: socket.socket, fixed: Mapping[str, str]) -> dict[int, _Started]:
    """Start what the client asks for, in a child."""
    (leads, *request), files = _receive(client)
    child = os.fork()
    if not child:
        if leads == "1":
            os.setsid()
        _become(request, files, fixed)
    for number in files.values():
        os.close(number)
    started = {os.pidfd_open(child): _Started(client, child, leads == "1")}
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(b"%d\n" % child)
    return started


def _kill(started: _Started) -> None:
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if started.leads else os.kill)(started.child, signal.SIGKILL)


def _tell(started: _Started, pidfd: int) -> None:
    """Tell the client how what it asked for ended, or ends now."""
    code = os.waitstatus_to_exitcode(os.waitpid(started.child, 0)[1])
    os.close(pidfd)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError), started.client:
        started.client.sendall(b"%d\n" % code)


def _receive(client: socket.socket) -> tuple[list[str], dict[int, int]]:
    """The command line, folder and environment; and its files, by the numbers that the client has."""
    head, ancillary, _, _ = client.recvmsg(8, socket.CMSG_SPACE(4 * _MOST_FILES))
    if not head:
        raise ConnectionResetError
    got = array.array("i")
    for _, _, data in ancillary:
        got.frombytes(data[: len(data) - len(data) % got.itemsize])
    size, body = int.from_bytes(head, "big"), bytearray()
    while len(body) < size:
        more = client.recv(size - len(body))
        if not more:
            raise ConnectionResetError
        body += more
    numbers, *request = map(os.fsdecode, bytes(body).split(b"\0"))
    return request, dict(zip(map(int, numbers.split(",")), got, strict=True))


def _become(request: list[str], files: Mapping[int, int], fixed: Mapping[str, str]) -> NoReturn:
    """Be the process that was asked for."""
    count = int(request[0])
    words, folder, variables = request[1 : count + 1], request[count + 1], request[count + 2 :]
    status = 1
    try:
        _take(files)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(each.partition("=")[::2] for each in variables)
        os.environ.update(fixed)
        _open_streams(unbuffered="-u" in words or "PYTHONUNBUFFERED" in os.environ)
        status = _run(words)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            threading._shutdown()  # type: ignore[attr-defined]
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _take(files: Mapping[int, int]) -> None:
    """These files under their numbers, and no others."""
    high = {number: fcntl.fcntl(had, fcntl.F_DUPFD, _HIGH) for number, had in files.items()}
    os.closerange(0, _HIGH)
    for number, had in high.items():
        os.dup2(had, number)
    os.closerange(_HIGH, _HIGH + _MOST_FILES)


def _open_streams(unbuffered: bool) -> None:
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    for name, number, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
        buffer = open(number, "wb", 0 if unbuffered else -1, closefd=False)  # noqa: SIM115
        stream = io.TextIOWrapper(
            buffer, "utf-8", errors, line_buffering=number == 2 or buffer.isatty(), write_through=unbuffered
        )
        setattr(sys, name, stream)


def _run(words: Sequence[str]) -> int:
    """As Python does with its command line."""
    rest = list(words)
    while rest[0] in ("-I", "-u", "-W"):
        del rest[: 2 if rest[0] == "-W" else 1]
    main_module = types.ModuleType("__main__")
    sys.modules["__main__"] = main_module
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")  # imported already: yes
    if "--parent" in rest:  # the process that started this one, as a part of a daemon has to know
        rest[rest.index("--parent") + 1] = str(os.getppid())
    kind = rest.pop(0)
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), vars(main_module))
    elif kind == "-m":
        sys.argv = rest
        if rest[0] == "engine":
            from engine.cli.main import main as shoal

            shoal()
        else:
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")
    return 0


if __name__ == "__main__":
    main(*sys.argv[1:])
