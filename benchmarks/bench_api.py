"""How long the API takes to answer while the daemon clusters at full speed.

Starts `shoal serve`, keeps its writer busy with NDJSON, and asks at a fixed rate over one connection that is
kept alive. A request's time counts from when it was due, so that one that waits behind another is not lost.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks.mixture import mixture
from benchmarks.report import arguments, finish, print_table
from tests.support.ports import free_ports

PIECE = 512  # records in a request of the feeder
FEEDERS = 2  # one sends while the other's records are clustered
SETTINGS = """[store]
path = "{store}"
[source]
http = true
[api]
port = {port}
"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--items", type=int, default=20_000, help="in the store before it is measured")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each measurement")
    parser.add_argument("--gets", type=float, default=100.0, help="GET items/{key} a second")
    parser.add_argument("--assigns", type=float, default=50.0, help="POST assign a second")
    parser.add_argument("--idle", action="store_true", help="nothing comes in meanwhile")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    rows = mixture(chosen.items, chosen.dim, chosen.seed)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (port, started_s):
        figures = measure(port, rows, chosen) | {"first_answer_s": started_s}
    _print(figures)
    finish(figures, chosen.json)


def measure(port: int, rows: Any, chosen: Any) -> dict[str, Any]:
    pieces = [_lines(rows, start) for start in range(0, len(rows), PIECE)]
    for piece in pieces:
        _ask(port, "POST", "/v1/items", piece, "application/x-ndjson")
    keys = np.random.default_rng(chosen.seed).integers(0, len(rows), 4096)
    asked = [orjson.dumps({"embedding": rows[row].tolist()}) for row in keys[:256].tolist()]
    fresh = mixture(chosen.items, chosen.dim, chosen.seed + 1)
    with feeding(port, fresh, 0 if chosen.idle else FEEDERS) as fed:
        start, before = time.monotonic(), fed()
        gets = pace(
            port,
            chosen.gets,
            chosen.seconds,
            ((("GET", f"/v1/items/{k}", None)) for k in cycle(keys.tolist())),
        )
        assigns = pace(
            port, chosen.assigns, chosen.seconds, ((("POST", "/v1/assign", body)) for body in cycle(asked))
        )
        rate = (fed() - before) / (time.monotonic() - start)
    return {
        "items": chosen.items,
        "dim": chosen.dim,
        "ingest_per_s": rate,
        "get": _summary(gets, chosen.gets),
        "assign": _summary(assigns, chosen.assigns),
    }


class Served:
    """`shoal serve` with the HTTP source on a store in `folder`, as often as it is started."""

    def __init__(self, folder: Path) -> None:
        [self.port] = free_ports(1)
        self._config = folder / "shoal.toml"
        self._config.write_text(SETTINGS.format(store=folder / "store", port=self.port))
        self._daemon: subprocess.Popen[bytes] | None = None

    def start(self, asked: str = "/livez") -> tuple[float, float]:
        """Seconds until the API answered what it is asked, and until all was ready."""
        begun = time.monotonic()
        command = [sys.executable, "-m", "engine", "serve", "-c", str(self._config)]
        self._daemon = subprocess.Popen(command, start_new_session=True)
        _wait(self.port, asked, self._daemon)
        answered_s = time.monotonic() - begun
        _wait(self.port, "/readyz", self._daemon)
        return answered_s, time.monotonic() - begun

    def end(self, number: int) -> None:
        """SIGTERM, to which it stops; or SIGKILL, to all its processes at once."""
        daemon = self._daemon
        if daemon is None:
            return
        if number == signal.SIGKILL:
            os.killpg(daemon.pid, number)
        else:
            daemon.send_signal(number)
        daemon.wait(60)
        self._daemon = None


@contextmanager
def serving(folder: Path) -> Iterator[tuple[int, float]]:
    """The daemon: its port, and the seconds until the API answered."""
    served = Served(folder)
    try:
        answered_s, _ = served.start()
        yield served.port, answered_s
    finally:
        served.end(signal.SIGTERM)


@contextmanager
def feeding(port: int, rows: Any, feeders: int) -> Iterator[Callable[[], int]]:
    """Processes that send records as fast as they are taken; gives how many were taken so far."""
    processes, counts = [], [0] * feeders
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.npy"
        np.save(file, rows)

        def read(at: int, stream: Any) -> None:
            for line in stream:
                counts[at] = int(line)

        for at in range(feeders):
            command = [sys.executable, "-m", "benchmarks.bench_api_feed", str(port), str(file), str(at)]
            process = subprocess.Popen([*command, str(feeders)], stdout=subprocess.PIPE, text=True)
            processes.append(process)
            threading.Thread(target=read, args=(at, process.stdout), daemon=True).start()
        try:
            deadline = time.monotonic() + 120
            while not all(counts):
                assert time.monotonic() < deadline, "nothing is taken"
                time.sleep(0.1)
            yield lambda: sum(counts)
        finally:
            for process in processes:
                process.kill()
                process.wait()


def pace(
    port: int, per_s: float, seconds: float, requests: Iterator[tuple[str, str, bytes | None]]
) -> list[float]:
    """Seconds from when each request was due to its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    taken, start = [], time.perf_counter()
    for number in range(int(per_s * seconds)):
        due = start + number / per_s
        time.sleep(max(0.0, due - time.perf_counter()))
        method, path, body = next(requests)
        connection.request(method, path, body, {"content-type": "application/json"} if body else {})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, f"{method} {path}: {answer.status}"
        taken.append(time.perf_counter() - due)
    connection.close()
    return taken


def _summary(taken: Sequence[float], per_s: float) -> dict[str, Any]:
    at = {
        name: float(np.percentile(taken, q) * 1000) for name, q in (("p50", 50), ("p99", 99), ("p999", 99.9))
    }
    return {
        "per_s": per_s,
        "requests": len(taken),
        **{f"{k}_ms": v for k, v in at.items()},
        "max_ms": max(taken) * 1000,
    }


def _lines(rows: Any, start: int) -> bytes:
    part = rows[start : start + PIECE]
    return b"".join(
        orjson.dumps({"key": str(start + at), "embedding": row.tolist()}) + b"\n"
        for at, row in enumerate(part)
    )


def _ask(port: int, method: str, path: str, body: bytes | None = None, kind: str = "") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body, {"content-type": kind} if body else {})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def _wait(port: int, path: str, daemon: subprocess.Popen[bytes]) -> None:
    while True:
        assert daemon.poll() is None, f"the daemon ended with status {daemon.returncode}"
        try:
            if _ask(port, "GET", path) == 200:
                return
        except OSError:
            pass
        time.sleep(0.02)


def _print(figures: dict[str, Any]) -> None:
    print_table(
        ["asked", "a second", "requests", "p50 ms", "p99 ms", "p99.9 ms", "max ms"],
        [[name, f["per_s"], f["requests"], f["p50_ms"], f["p99_ms"], f["p999_ms"], f["max_ms"]]
         for name, f in (("GET items/{key}", figures["get"]), ("POST assign", figures["assign"]))],
    )  # fmt: skip
    print(
        f"\n{figures['items']:,} x {figures['dim']} at the start, {figures['ingest_per_s']:,.0f} items/s "
        f"came in; first answer {figures['first_answer_s']:.2f} s after the start"
    )


if __name__ == "__main__":
    main()
