"""`shoal serve` as a process: what it starts, what it survives, how it ends, what it says."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine import config, config_transfer
from engine.cli.serve import TEMPLATE
from engine.config import Settings
from engine.daemon import supervisor
from engine.daemon.control import Control
from engine.daemon.supervisor import Child, Part, listen, url_of
from engine.errors import ConfigError, ShoalError, StoreFull, StoreLocked, WriterAway, WriterBusy
from engine.system.systemd import Notifier
from tests.conftest import Run, command, environment
from tests.support import waiting
from tests.support.live_api import plain_http

DEADLINE_S = 300.0  # on a busy machine; a quiet one needs a tenth


until = partial(waiting.until, limit_s=DEADLINE_S)
HTTP = plain_http(limits=httpx.Limits(max_keepalive_connections=0))


class Daemon:
    """`shoal serve` in a folder of its own; its log is read as it comes."""

    def __init__(self, folder: Path, model: Path, **env: str) -> None:
        self.store = folder / "store"
        config_file = folder / "shoal.toml"
        config_file.write_text(
            f'[collection]\nname = "tests"\n[store]\npath = "{self.store}"\n[model]\npath = "{model}"\n'
            '[index]\nkind = "exact"\n[source]\nhttp = true\n[api]\nport = 0\nbulk_timeout_s = 280\n'
        )
        self.process = subprocess.Popen(
            command("serve", "-c", config_file),
            cwd=folder,
            env=environment(env),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[dict[str, Any]] = []
        self.other: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("{"):
                self.log.append(json.loads(line))
            else:
                self.other.append(line)

    def told(self, event: str, count: int = 1, **fields: Any) -> dict[str, Any]:
        """Waits for the count-th event of this kind."""

        def found() -> dict[str, Any] | None:
            hits = [e for e in self.log if e["event"] == event and fields.items() <= e.items()]
            assert self.process.poll() is None or len(hits) >= count, (self.log, self.other)
            return hits[count - 1] if len(hits) >= count else None

        return until(found)

    @property
    def url(self) -> str:
        return str(self.told("serving")["url"])

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(DEADLINE_S)
        self._reader.join(60)
        return code


Serve = Callable[..., Daemon]


@pytest.fixture
def serve(tmp_path: Path, model: Path) -> Iterator[Serve]:
    started: list[Daemon] = []

    def start(**env: str) -> Daemon:
        started.append(Daemon(tmp_path, model, **env))
        return started[-1]

    yield start
    for daemon in started:
        if daemon.process.poll() is None:
            daemon.process.kill()
        daemon.process.wait()
        daemon._reader.join(60)
        if daemon.process.stderr:
            daemon.process.stderr.close()


def gone(pid: int) -> bool:
    try:
        return f"/proc/{pid}" and Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z"
    except OSError:
        return True


def ready(url: str) -> bool:
    return HTTP.get(f"{url}/readyz", timeout=DEADLINE_S).status_code == 200


def put(url: str, key: str, *vector: float) -> int:
    answer = HTTP.put(f"{url}/v1/items/{key}", json={"embedding": vector}, timeout=DEADLINE_S)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["version"])


@pytest.fixture
def notices(tmp_path: Path) -> Iterator[list[str]]:
    """What systemd hears."""
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notices"))

        def hear() -> None:
            while words := listening.recv(100).decode():
                heard.append(words)

        listener = threading.Thread(target=hear)
        listener.start()
        yield heard
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(tmp_path / "notices"))
        listener.join()


def test_who_does_not_listen_does_not_hold_up_the_daemon(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "notices"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notices")})
        for _ in range(15):  # the socket takes some ten
            notifier.tell("WATCHDOG=1")


def test_no_part_imports_from_the_current_folder(serve: Serve, tmp_path: Path) -> None:
    """Whatever lies there, and wherever the package was found."""
    for name in ("lmdb", "queue", "random", "uvicorn", "orjson"):
        (tmp_path / f"{name}.py").write_text('raise SystemExit("planted code ran")\n')
    daemon = serve()
    until(lambda: ready(daemon.url))
    assert put(daemon.url, "key", 1.0, 0.0) == 1
    assert daemon.end() == 0
    assert not daemon.other, daemon.other


def test_a_life_of_a_daemon(serve: Serve, shoal: Run, tmp_path: Path, notices: list[str]) -> None:
    """Answers before its writer does, survives its writer and its API, and stops when asked."""
    daemon = serve(NOTIFY_SOCKET=str(tmp_path / "notices"), WATCHDOG_USEC="900000")
    api = daemon.told("started", part="api")
    assert until(lambda: HTTP.get(f"{daemon.url}/livez", timeout=DEADLINE_S).status_code == 200)
    assert not [e for e in daemon.log if e["event"] == "ready"], "the API was to answer first"
    assert HTTP.get(f"{daemon.url}/readyz", timeout=DEADLINE_S).status_code == 503
    until(lambda: ready(daemon.url))
    until(lambda: "READY=1\nSTATUS=version 0" in notices)
    assert set(notices) <= {"WATCHDOG=1", "READY=1\nSTATUS=version 0"}

    assert [put(daemon.url, f"k{row}", 1.0, row) for row in range(3)] == [1, 2, 3]

    second = shoal("serve", "--store", str(daemon.store), "-c", "shoal.toml")
    assert second.returncode == 6, second.stderr
    assert re.search(r"shoal: .*store is being written by process \d+ .*stop it", second.stderr)

    os.kill(daemon.told("started", part="writer")["pid"], signal.SIGKILL)
    with Control(daemon.store) as control, pytest.raises((WriterAway, WriterBusy)):
        until(lambda: control.call("status", timeout_s=0.5) and False)
    item = HTTP.get(f"{daemon.url}/v1/items/k1", timeout=DEADLINE_S)
    assert (item.status_code, item.json()["version"]) == (200, 3)
    refused = HTTP.put(f"{daemon.url}/v1/items/k9", json={"embedding": [1, 9]}, timeout=DEADLINE_S)
    assert refused.status_code == 503
    assert daemon.told("failed", part="writer")["cause"] == "signal SIGKILL"
    daemon.told("ready", process="writer", items=3, version=3)
    assert put(daemon.url, "k3", 1.0, 3.0) == 4

    os.kill(api["pid"], signal.SIGKILL)
    daemon.told("started", count=2, part="api")
    until(lambda: answers(f"{daemon.url}/livez"))
    assert put(daemon.url, "k4", 1.0, 4.0) == 5

    pids = [e["pid"] for e in daemon.log if e["event"] == "started"]
    assert daemon.end() == 0, daemon.other
    assert daemon.other == []
    assert all(gone(pid) for pid in pids)
    assert {"stopped"} == {e["event"] for e in daemon.log[-2:]}
    assert {"process", "event", "level", "timestamp"} <= set(daemon.log[-1])
    until(lambda: notices[-1] == "STOPPING=1")
    assert notices.count("WATCHDOG=1") > 2
    assert not (daemon.store / "control").exists()
    assert not (daemon.store / "unclean").exists()
    assert len(json.loads(shoal("clusters", "--store", "store", "--json").stdout)["clusters"]) > 0


def answers(url: str) -> bool:
    try:
        return HTTP.get(url, timeout=DEADLINE_S).status_code == 200
    except httpx.HTTPError:
        return False


def test_no_part_outlives_a_killed_daemon(serve: Serve) -> None:
    daemon = serve()
    until(lambda: answers(f"{daemon.url}/readyz"))
    pids = [e["pid"] for e in daemon.log if e["event"] == "started"]
    assert len(pids) == 2
    assert daemon.end(signal.SIGKILL) == -signal.SIGKILL
    until(lambda: all(gone(pid) for pid in pids))
    assert not (daemon.store / "unclean").exists()  # the writer had time to close the store


def test_a_writer_that_fails_again_and_again_is_given_up(serve: Serve) -> None:
    daemon = serve(SHOAL_LIMITS__RESTARTS_MAX="0")
    os.kill(daemon.told("started", part="writer")["pid"], signal.SIGKILL)
    assert daemon.process.wait(DEADLINE_S) == 1
    daemon._reader.join(60)
    [sentence] = daemon.other
    assert sentence.startswith("shoal: the writer failed 1 times within 600 s, the last time with signal SIG")


def test_a_port_in_use_is_told_at_once(shoal: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments in ["serve"], ["serve", "--check"]:
            done = shoal(*arguments, env={"SHOAL_API__PORT": port})
            assert done.returncode == 2
            assert f"port {port}" in done.stderr
            assert "choose others with [api] host and port" in done.stderr
    assert not (tmp_path / "shoal-store").exists()


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[source]\nhttp = true\n[source.kafka]\nbootstrap = 'b:1'\ntopic = 't'\n", "one source at a time"),
        ("[batch]\nmin = 9\nmax = 8\n", "min = 9 is more than max = 8"),
        ("[api]\nports = 1\n", "There is no setting api.ports"),
        ("[api]\nhost = '0.0.0.0'\n", "key_file"),
        ("[serve]\nx = 1\n", "There is no setting serve"),
    ],
)
def test_contradictory_and_unknown_settings(shoal: Run, tmp_path: Path, toml: str, words: str) -> None:
    (tmp_path / "bad.toml").write_text(toml)
    done = shoal("serve", "-c", "bad.toml", "--check", env={"SHOAL_API__PORT": "0"})
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_key_is_told_before_anything_starts(shoal: Run) -> None:
    done = shoal("serve", env={"SHOAL_API__PORT": "0", "SHOAL_API__HOST": "0.0.0.0"})
    assert done.returncode == 2
    assert "key_file" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_check_says_what_would_happen(shoal: Run, tmp_path: Path) -> None:
    env = {"SHOAL_API__PORT": "0"}
    done = shoal("serve", "--check", "--store", "s", env={**env, "SHOAL_SOURCE__HTTP": "true"})
    assert done.returncode == 0, done.stderr
    store, source, api = done.stdout.splitlines()
    assert store == "It would make a store for the collection shoal in s."
    assert source == "It would take records over HTTP."
    assert re.fullmatch(r"It would answer, and serve the page, at http://127.0.0.1:\d+\.", api)
    assert not (tmp_path / "s").exists()

    (tmp_path / "a.jsonl").write_text('{"key": "a", "embedding": [1, 2]}\n')
    assert shoal("ingest", "a.jsonl", "--store", "s").returncode == 0
    done = shoal("serve", "--check", "--store", "s", env=env)
    store, source, _ = done.stdout.splitlines()
    assert store == "It would open the store in s: collection shoal, 1 item in 1 cluster, version 1."
    assert source.startswith("It would take no records")
    other = shoal("serve", "--check", "--store", "s", env={**env, "SHOAL_MODEL__TAU": "0.123"})
    assert other.returncode == 9
    assert "shoal rebuild" in other.stderr


@pytest.mark.parametrize("command", [("serve",), ("serve", "--check")])
def test_a_store_that_cannot_be_written_is_told_before_anything_starts(
    shoal: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "file").touch()
    for path in ("file", "file/below"):
        done = shoal(*command, "--store", path, env={"SHOAL_API__PORT": "0"})
        assert (done.returncode, done.stdout) == (4, "")
        assert done.stderr.endswith(f"shoal: {path} is not a folder; name another store\n"), done.stderr
        assert "started" not in done.stderr


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_of_another_user_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    """Also for a superuser, who may write everywhere."""

    def refuse(*arguments: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(supervisor, "hold", refuse)
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    if made:
        (tmp_path / "writer").touch()
    with pytest.raises(StoreFull, match=r"cannot be written .*; make it writable"):
        supervisor.need_folder(tmp_path)
    with pytest.raises(StoreFull, match=r"cannot be written .*; make it writable"):
        supervisor.need_folder(tmp_path / "none" / "yet")


def test_init_writes_the_defaults_with_comments(shoal: Run, tmp_path: Path) -> None:
    done = shoal("init")
    assert done.returncode == 0
    assert "shoal serve -c shoal.toml --check" in done.stdout
    written = (tmp_path / "shoal.toml").read_text()
    assert written == TEMPLATE.read_text()
    defaults = config.load()
    made = config.load(tmp_path / "shoal.toml")
    assert made.source.http
    assert made.model_copy(update={"source": defaults.source}) == defaults
    again = shoal("init")
    assert again.returncode == 3
    assert "exists already" in again.stderr


def test_what_the_template_comments_out_can_be_set(tmp_path: Path) -> None:
    """Each section with all its comments taken away; the values shown are the defaults."""
    sections = re.split(r"\n(?=(?:# )?\[)", TEMPLATE.read_text())
    assert len(sections) >= 9
    for section in sections[1:]:
        lines = [re.sub(r"^# (?=\[|\w+ = )", "", line) for line in section.splitlines()]
        text = "\n".join(line for line in lines if not line.startswith("# "))
        (tmp_path / "shoal.toml").write_text(text.replace('security = "PLAINTEXT"', 'security = "SASL_SSL"'))
        found = config.load(tmp_path / "shoal.toml")
        shown = {line.partition(" =")[0] for line in text.splitlines() if " = " in line}
        name = re.match(r"\[([a-z.]+)\]", text)
        assert name, text
        known = found
        for part in name[1].split("."):
            known = getattr(known, part)
        assert shown <= set(type(known).model_fields), name[1]


def test_settings_pass_to_a_part_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "shoal.toml"
    file.write_text(
        "[source.kafka]\nbootstrap = 'b:1'\ntopic = 't'\nsecurity = 'SASL_SSL'\nsasl_mechanism = 'PLAIN'\n"
        "username = 'u'\npassword = 'hidden'\n[store]\npath = 'x'\n"
    )
    chosen = config.load(file, {"api.port": 7})
    assert "hidden" not in repr(chosen)
    assert config_transfer.thaw(config_transfer.freeze(chosen)) == chosen
    monkeypatch.setenv("SHOAL_API__PORT", "8")
    monkeypatch.setenv("SHOAL_HOME", "stays")
    left = config_transfer.without_settings(os.environ)
    assert "SHOAL_API__PORT" not in left
    assert left["SHOAL_HOME"] == "stays"


def test_addresses() -> None:
    settings = Settings()
    with listen(settings.api.model_copy(update={"port": 0})) as free:
        port = free.getsockname()[1]
        assert url_of(free) == f"http://127.0.0.1:{port}"
        with pytest.raises(ConfigError, match=f"port {port}"):
            listen(settings.api.model_copy(update={"port": port}))
    with pytest.raises(ConfigError, match=r"nowhere\.invalid"):
        listen(settings.api.model_copy(update={"host": "nowhere.invalid"}))
    with listen(settings.api.model_copy(update={"host": "::1", "port": 0})) as six:
        assert url_of(six).startswith("http://[::1]:")


def test_notices_without_systemd_go_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = Notifier({})
    quiet.tell("READY=1")
    quiet.beat()
    deaf = Notifier({"NOTIFY_SOCKET": "@shoal-test-nobody", "WATCHDOG_USEC": "30", "WATCHDOG_PID": "1"})
    deaf.tell("READY=1")
    deaf.beat()


class Log:
    """Remembers events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def bind(self, **_: Any) -> Log:
        return self

    def info(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    error = info


def keep_looking(child: Child) -> None:
    while True:
        child.look()
        time.sleep(0.05)


@pytest.mark.usefixtures("warm")
def test_a_part_of_no_known_name_fails_with_a_status(tmp_path: Path) -> None:
    """Backs off longer each time."""

    log = Log()
    settings = Settings.model_validate({"limits": {"restarts_max": 1}, "store": {"path": tmp_path}})
    child = Child(Part("nothing"), settings, log)
    child.start()
    with pytest.raises(ShoalError, match=r"the nothing failed 2 times .* with status 1"):
        keep_looking(child)
    assert [event for event, _ in log.events] == ["started", "failed", "started"]
    assert log.events[1][1]["again_in_s"] == 1.0
    child.stop()


@pytest.mark.usefixtures("warm")
def test_a_sentence_of_a_part_is_the_daemons(tmp_path: Path) -> None:
    """The error comes back as it was raised there, with its class."""
    from engine.storage.store import hold

    lock = hold(tmp_path)
    settings = Settings.model_validate({"store": {"path": tmp_path}})

    child = Child(Part("writer"), settings, Log())
    child.start()
    try:
        with pytest.raises(StoreLocked, match="is being written by process"):
            keep_looking(child)
    finally:
        os.close(lock)
        child.stop()
