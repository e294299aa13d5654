"""Streams of changes: nothing missed, nothing twice, whoever restarts; and bounded."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.storage.reader import View
from engine.storage.store import Store
from tests.conftest import ROOT
from tests.support import warm_python
from tests.support.fake_collection import CONFIG, Toy
from tests.support.live_api import Api, api, settings_of
from tests.support.waiting import until

SEED = 17
STREAM = {"accept": "text/event-stream"}

_WRITE = """
import sys, time
from engine.storage.store import Store
from tests.support.fake_collection import Toy
toy = Toy(int(sys.argv[2]))
with Store.open(sys.argv[1], {"collection": "toy", "dim": None}) as store:
    for _ in range(int(sys.argv[3])):
        store.commit(toy.step(20))
        print(store.version, flush=True)
        time.sleep(float(sys.argv[4]))
"""


@contextmanager
def writing(store: Path, versions: int, pause_s: float) -> Iterator[subprocess.Popen[str]]:
    """Another process commits versions; begun when the first is there."""
    command = [warm_python.executable(), "-c", _WRITE, str(store), str(SEED), str(versions), str(pause_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        yield process
        process.stdout.read()
        assert process.wait() == 0


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Six versions; nothing writes them."""
    toy = Toy(SEED)
    with Store.open(tmp_path / "store", CONFIG) as made:
        for _ in range(6):
            made.commit(toy.step(12))
    return tmp_path / "store"


class Listening:
    """A client as browsers have them: it remembers the last id, also one that comes without data."""

    def __init__(self, last: str | None = None, kind: str | None = None) -> None:
        self.last, self.events = last, list[dict[str, Any]]()
        self.comments = 0
        self._parameters = {"kind": kind} if kind else {}

    def listen(self, url: str, enough: int) -> None:
        """Until so many more events have come, or the stream ends."""
        headers = {**STREAM, **({"last-event-id": self.last} if self.last else {})}
        wanted = len(self.events) + enough
        timeout = httpx.Timeout(60.0)
        with httpx.stream(
            "GET", f"{url}/v1/changes", headers=headers, params=self._parameters, timeout=timeout
        ) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            data, last = "", self.last
            for line in answer.iter_lines():
                if line.startswith(":"):
                    self.comments += 1
                elif line.startswith("id: "):
                    last = line[4:]
                elif line.startswith("data: "):
                    data += line[6:]
                elif line == "":
                    self.last = last
                    if data:
                        event = json.loads(data)
                        assert event["event-id"] == last
                        self.events.append(event)
                    data = ""
                    if len(self.events) >= wanted:
                        return


def whole(store: Path, kind: str | None = None) -> list[dict[str, Any]]:
    with View.open(store) as view:
        found: list[dict[str, Any]] = []
        after = None
        while True:
            page = view.changes(after, 10_000, kind)
            found += page["changes"]
            version, ordinal = page["cursor"].split("-")
            after = int(version), int(ordinal)
            if not page["more"]:
                return found


@pytest.mark.parametrize("kind", [None, "clusters", "items"])
def test_nothing_is_missed_or_repeated_across_restarts(tmp_path: Path, kind: str | None) -> None:
    """Clients leave and come back at random, and the API's process is another one each time."""
    rng = random.Random(SEED)
    path = tmp_path / "store"
    client = Listening("0-0", kind)
    with writing(path, 40, 0.02) as process:
        while process.poll() is None:
            with api(settings_of(path)) as served:
                for _ in range(3):
                    client.listen(served.url, rng.choice([1, 7, 30]))
    wanted = whole(path, kind)
    with api(settings_of(path)) as served:
        client.listen(served.url, len(wanted) - len(client.events))
    assert client.events == wanted, f"{SEED=}"
    with api(settings_of(path)) as served:
        paged, after = [], "0-0"
        while True:
            page = served.http.get(
                "/v1/changes", params={"after": after, "limit": 13, **({"kind": kind} if kind else {})}
            ).json()
            paged += page["changes"]
            after = page["cursor"]
            if not page["more"]:
                break
        assert paged == wanted


def test_a_stream_begins_now_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "store"
    late, early = Listening(), Listening("0-0")
    with writing(path, 12, 0.1), api(settings_of(path)) as served:
        served.wait_counted()
        head = served.context.reader.view().version
        late.listen(served.url, 20)
        early.listen(served.url, 20)
    wanted = whole(path)
    assert early.events == wanted[:20]
    first = wanted.index(late.events[0])
    assert late.events == wanted[first : first + 20]
    assert late.events[0]["version"] > head
    assert {one["version"] for one in wanted[:first]} <= set(range(1, late.events[0]["version"]))


def test_last_event_id_wins_over_after(store: Path) -> None:
    wanted = whole(store)
    with api(settings_of(store)) as served:
        headers = {**STREAM, "last-event-id": wanted[5]["event-id"]}
        url = f"{served.url}/v1/changes?after=0-0"
        with httpx.stream("GET", url, headers=headers, timeout=60) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    assert json.loads(line[6:]) == wanted[6]
                    break
        page = served.http.get("/v1/changes?after=0-0", headers={"last-event-id": wanted[5]["event-id"]})
        assert page.json()["changes"][0] == wanted[6], "a page goes on as a stream does"
        assert served.http.get("/v1/changes", headers={"last-event-id": "five"}).status_code == 422


def test_a_stream_without_news_lives_and_moves_on(store: Path) -> None:
    """Comments come at their interval; of a kind that nothing is of, the place still moves to the end."""
    settings = settings_of(store, api__heartbeat_s=0.1)
    with api(settings) as served:
        client = Listening("0-0", "rejects")
        thread = threading.Thread(target=client.listen, args=(served.url, 1))
        thread.start()
        until(lambda: client.comments >= 3)
        end = served.context.reader.view().head().place
        assert client.last == f"{end[0]}-{end[1]}"
    thread.join(60)
    assert not thread.is_alive(), "streams end with the process"


def test_streams_are_bounded_and_leave_queries_alone(store: Path) -> None:
    with api(settings_of(store, api__streams_max=2, api__requests_max=2)) as served:
        open_streams = [
            httpx.Client(base_url=served.url, timeout=60).stream("GET", "/v1/changes", headers=STREAM)
            for _ in range(2)
        ]
        for one in open_streams:
            assert one.__enter__().status_code == 200
        refused = served.http.get("/v1/changes", headers=STREAM)
        assert refused.status_code == 503
        assert refused.json()["type"] == "urn:shoal:problem:busy"
        assert refused.headers["retry-after"] == "1"
        assert served.http.get("/v1/clusters").status_code == 200
        open_streams[0].__exit__(None, None, None)
        until(lambda: "shoal_http_streams 1.0" in served.http.get("/metrics").text)
        open_streams[1].__exit__(None, None, None)


def test_a_stream_that_the_log_leaves_behind_says_so(tmp_path: Path) -> None:
    """Its store forgets all but the newest version; the client reads the end of the stream, then 410."""
    toy = Toy(SEED)
    with Store.open(tmp_path / "a", CONFIG, events_max_bytes=1) as made:
        for _ in range(3):
            made.commit(toy.step(12))
        shutil.copytree(tmp_path / "a", tmp_path / "b")
    with api(settings_of(tmp_path / "b")) as served:
        answer = served.http.get("/v1/changes", headers={**STREAM, "last-event-id": "1-0"})
        assert answer.status_code == 410
        assert answer.json()["cursor"].startswith("3-")


def test_many_streams_share_what_they_read(store: Path) -> None:
    with api(settings_of(store)) as served:
        clients = [Listening("0-0") for _ in range(5)]
        count = len(whole_of(served))
        threads = [threading.Thread(target=one.listen, args=(served.url, count)) for one in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for one in clients:
            assert one.events == whole_of(served)


def whole_of(served: Api) -> list[dict[str, Any]]:
    """Through the view that the API has open."""
    return list(served.context.reader.view().changes(limit=10_000)["changes"])
