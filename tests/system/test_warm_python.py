"""A process that starts warm behaves as one that does not: output, input, endings, signals, kills."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import warm_python
from tests.support.waiting import until

SLEEP = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"


def run(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [warm_python.executable(), *words]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("code", "status", "out", "err"),
    [
        ("import sys; print(sys.stdin.read(), sys.argv[1:])", 0, "given ['a', 'b']\n", ""),
        ("import sys; sys.exit('words')", 1, "", "words\n"),
        ("import sys; sys.exit(7)", 7, "", ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV, "", ""),
    ],
)
def test_it_ends_as_its_process_does(code: str, status: int, out: str, err: str) -> None:
    done = run("-c", code, "a", "b", given="given")
    assert (done.returncode, done.stdout, done.stderr) == (status, out, err)


def test_an_exception_is_told() -> None:
    done = run("-c", "1 / 0")
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_it_ends_with_its_process(number: signal.Signals) -> None:
    command = [warm_python.executable(), "-c", SLEEP]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        there = Path(f"/proc/{int(process.stdout.readline())}")
        process.send_signal(number)
        assert process.wait(120) == (1 if number == signal.SIGINT else -number)  # KeyboardInterrupt
        until(lambda: not there.exists())


def test_what_cannot_become_warm_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a kernel that does not compile; here a module that cannot be imported."""
    monkeypatch.setattr(warm_python, "START_S", 60.0)
    (tmp_path / "lmdb.py").write_text("raise RuntimeError('broken')")
    broken = warm_python.WarmPython({**os.environ, "PYTHONPATH": str(tmp_path)})
    monkeypatch.setenv("TESTS_WARM_PYTHON", broken.folder)
    with pytest.raises(AssertionError, match="no Python became warm"):
        warm_python.executable()
    broken.close()
    child = subprocess.Popen(["false"])
    with pytest.raises(ChildProcessError, match="ended before it was warm"):
        warm_python._await(str(tmp_path / "python"), child.pid)
    child.wait()


def test_open_files_are_passed_on() -> None:
    reading, writing = os.pipe()
    code = f"import os; os.write({writing}, b'here')"
    assert subprocess.run([warm_python.executable(), "-c", code], pass_fds=[writing]).returncode == 0
    assert os.read(reading, 9) == b"here"
    os.close(reading)
    os.close(writing)
