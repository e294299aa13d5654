"""What the API is not meant for: each is answered by a problem document that says what to do, and in time."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.api.app import make_routes
from engine.api.context import Context
from engine.api.problems import KINDS
from engine.api.writer_client import Status, WriterClient
from engine.config import Settings, load
from engine.daemon.control import Listener
from engine.daemon.supervisor import listen
from engine.errors import ConfigError, InputError, ShoalError, WriterAway, WriterBusy
from engine.storage.store import Store
from tests.support.fake_collection import CONFIG, Toy
from tests.support.live_api import Api, api, settings_of
from tests.support.records import NDJSON
from tests.support.waiting import until

KEY = "0123456789abcdef0123"
VECTOR = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


@pytest.fixture(scope="module")
def toy_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some versions of a collection of six dimensions; nothing writes it."""
    path = tmp_path_factory.mktemp("toy") / "store"
    toy = Toy(21)
    with Store.open(path, CONFIG) as store:
        for _ in range(6):
            store.commit(toy.step(12))
    return path


@pytest.fixture(scope="module")
def quiet(toy_store: Path) -> Iterator[Api]:
    """The API of that store, writes on, with no writer."""
    with api(settings_of(toy_store, source__http=True)) as served:
        served.wait_counted()
        yield served


@pytest.fixture
def store(toy_store: Path, tmp_path: Path) -> Path:
    """A copy: LMDB must not be opened twice in one process."""
    return Path(shutil.copytree(toy_store, tmp_path / "store"))


def problem(answer: httpx.Response, kind: str) -> dict[str, Any]:
    """The document, which must be whole."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    found: dict[str, Any] = answer.json()
    wanted = KINDS[kind]
    assert (found["type"], answer.status_code, found["status"]) == (
        wanted.type,
        wanted.status,
        wanted.status,
    ), found
    assert found["title"] == wanted.title
    assert found["detail"]
    assert found["do"]
    assert "Traceback" not in answer.text
    if wanted.status == 503:
        assert int(answer.headers["retry-after"]) >= 1
    return found


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/items/nobody", "no-such-item"),
        ("/v1/items/%E2%98%83", "no-such-item"),
        ("/v1/items/", "bad-key"),
        ("/v1/items/%ff%fe", "bad-key"),
        ("/v1/items/" + "x" * 512, "bad-key"),
        ("/v1/items/" + "%C3%A4" * 256, "bad-key"),
        ("/v1/items/a?level=-1", "invalid"),
        ("/v1/items/a?level=x", "invalid"),
        ("/v1/clusters/999999", "no-such-cluster"),
        ("/v1/clusters/999999/items", "no-such-cluster"),
        ("/v1/clusters/0", "invalid"),
        ("/v1/clusters/x", "invalid"),
        ("/v1/clusters/99999999999999999999", "invalid"),
        ("/v1/clusters?order=age", "invalid"),
        ("/v1/clusters?limit=0", "invalid"),
        ("/v1/clusters?limit=1e9", "invalid"),
        ("/v1/clusters?cursor=x", "invalid"),
        ("/v1/clusters?cursor=1:2", "invalid"),
        ("/v1/clusters?order=growth&cursor=1-2", "invalid"),
        ("/v1/clusters?order=growth&level=0", "invalid"),
        ("/v1/clusters?order=newest&cursor=1-2", "invalid"),
        ("/v1/clusters/1/items?cursor=7", "invalid"),
        ("/v1/changes?after=x", "invalid"),
        ("/v1/changes?after=1--1", "invalid"),
        ("/v1/changes?kind=all", "invalid"),
        ("/v1/changes?after=99-0", "stale-cursor"),
        ("/v1/nothing", "not-found"),
        ("/nothing.html", "not-found"),
        ("/v1", "not-found"),
    ],
)
def test_a_question_that_has_no_answer(quiet: Api, path: str, kind: str) -> None:
    assert "pattern" not in problem(quiet.http.get(path), kind)["detail"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/changes?after=x", "query.after: 'x' is no event's id; one looks like 12-0."),
        ("/v1/clusters/1?level=3", "query.level: +1 to +8, so many levels above the final cluster"),
        ("/v1/items/a?levl=0", "query.levl: there is no such parameter; this path takes level"),
        ("/v1/levels?x=", "query.x: there is no such parameter; this path takes none"),
        ("/v1/clusters?limit=1&limit=2", "query.limit: it is there more than once; give one value"),
    ],
)
def test_what_has_to_look_otherwise_is_said_by_example(quiet: Api, path: str, words: str) -> None:
    assert problem(quiet.http.get(path), "invalid")["detail"] == words
    assert quiet.http.head(path).status_code == 422


@pytest.mark.parametrize(
    "path",
    [
        "/../engine/api.py",
        "/%2e%2e/api.py",
        "/..%2fapi.py",
        "/docs/../api.py",
        "/docs/%2e%2e/api.py",
        "/docs/..%2f..%2fpyproject.toml",
        "//etc/passwd",
        "/%2fetc%2fpasswd",
        "/css/..%5c..%5capi.py",
        "/index.html%00",
    ],
)
def test_a_path_leads_nowhere_else(quiet: Api, path: str) -> None:
    """Sent as it stands: clients tidy such paths up."""
    with socket.create_connection(("127.0.0.1", quiet.port), 5) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")), answer[:200]
    assert b"application/problem+json" in answer
    assert b"def " not in answer
    assert b"root:" not in answer


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ({"embedding": VECTOR[:5]}, "invalid", "5 dimensions, not the collection's 6"),
        ({"embedding": [0.0] * 6}, "invalid", "is zero"),
        ({"embedding": [*VECTOR[:5], "x"]}, "invalid", "'x'"),
        ({"embedding": [*VECTOR[:5], True]}, "invalid", "True"),
        ({"embedding": [*VECTOR[:5], None]}, "invalid", "None"),
        ({"embedding": []}, "invalid", "1 to 16384"),
        ({"embedding": {}}, "invalid", "list of numbers"),
        ({"embeddings": []}, "invalid", "not an empty one"),
        ({"embeddings": [VECTOR, VECTOR[:5]]}, "invalid", "vector 1"),
        ({"embeddings": [VECTOR] * 257}, "too-large", "257 vectors"),
        ({"embedding": VECTOR, "embeddings": [VECTOR]}, "invalid", "Give either"),
        ({"embedding": VECTOR, "foo": 1}, "invalid", "'foo' is no field"),
        ({"vector": VECTOR}, "invalid", "'vector' is no field"),
        ({"vector": VECTOR}, "invalid", "`embedding`"),
        ({}, "invalid", "Give either"),
        ([VECTOR], "invalid", "object"),
    ],
)
def test_a_vector_that_cannot_be_placed(quiet: Api, body: Any, kind: str, words: str) -> None:
    assert words in problem(quiet.http.post("/v1/assign", json=body), kind)["detail"]


@pytest.mark.parametrize(
    "text", [b"", b"{", b'{"embedding": [NaN]}', b'{"embedding": [1, Infinity]}', b"\xff"]
)
def test_a_body_that_is_not_json(quiet: Api, text: bytes) -> None:
    headers = {"content-type": "application/json"}
    problem(quiet.http.post("/v1/assign", content=text, headers=headers), "bad-json")
    problem(quiet.http.put("/v1/items/a", content=text, headers=headers), "bad-json")


def test_a_body_of_another_kind(quiet: Api) -> None:
    """A page elsewhere may send plain text without asking; JSON it may not."""
    problem(quiet.http.post("/v1/assign", content=b"{}"), "wrong-type")
    problem(
        quiet.http.put("/v1/items/a", content=b"{}", headers={"content-type": "text/plain"}), "wrong-type"
    )
    problem(quiet.http.post("/v1/items", json={"key": "a"}), "wrong-type")


def test_an_item_that_cannot_be_put(quiet: Api) -> None:
    for body, words in (
        ({"embedding": [0.0, 0.0]}, "is zero"),
        ({"payload": {}}, "embedding"),
        ({"embedding": VECTOR, "time": "now"}, "time"),
        ([VECTOR], "object"),
    ):
        assert words in problem(quiet.http.put("/v1/items/a", json=body), "invalid")["detail"]
    problem(quiet.http.put("/v1/items/" + "x" * 512, json={"embedding": VECTOR}), "bad-key")
    problem(quiet.http.delete("/v1/items/%ff"), "bad-key")


def test_another_method_is_told_which_there_are(quiet: Api) -> None:
    answer = quiet.http.post("/v1/clusters")
    problem(answer, "wrong-method")
    assert "GET" in answer.headers["allow"]
    problem(quiet.http.delete("/v1/items"), "wrong-method")
    for path in ("/v1/items", "/v1/assign"):  # a page that is asked for is no file either
        answer = quiet.http.get(path)
        assert problem(answer, "wrong-method")["detail"] == "This path takes POST."
        assert answer.headers["allow"] == "POST"
    answer = quiet.http.patch("/v1/items/a")
    assert problem(answer, "wrong-method")["detail"] == "This path takes DELETE, GET, HEAD, PUT."
    assert answer.headers["allow"] == "DELETE, GET, HEAD, PUT"
    problem(quiet.http.get("/v1/nothing"), "not-found")


def test_without_a_writer_queries_answer_and_the_rest_says_so(quiet: Api) -> None:
    assert quiet.http.get("/v1/clusters").status_code == 200
    assert quiet.http.get("/v1/summary").json()["writer"] is None
    assert quiet.http.get("/livez").status_code == 200
    ready = quiet.http.get("/readyz")
    assert ready.status_code == 503
    assert "the writer does not run" in ready.json()["reasons"][0]
    key = quiet.context.reader.view().changes(kind="items")["changes"][0]["key"]
    for answer in (
        quiet.http.get(f"/v1/items/{key}/explain"),
        quiet.http.post("/v1/assign", json={"embedding": VECTOR}),
        quiet.http.put("/v1/items/a", json={"embedding": VECTOR}),
        quiet.http.delete("/v1/items/a"),
    ):
        problem(answer, "writer-away")
    bulk = quiet.http.post("/v1/items", content=b'{"key": "a", "delete": true}', headers=NDJSON)
    assert problem(bulk, "writer-away")["lines"] == 0
    assert "shoal_http_requests_total" in quiet.http.get("/metrics").text


def test_a_writer_that_is_busy_or_refuses(store: Path) -> None:
    """A real socket whose handlers wait, or refuse: no answer takes longer than its bound."""
    release = threading.Event()

    def busy(body: dict[str, Any], vectors: Any) -> dict[str, Any]:
        release.wait(60)
        raise WriterBusy("the writer is busy with a large batch; try again")

    def refuse(body: dict[str, Any], vectors: Any) -> dict[str, Any]:
        raise InputError("there is no such level")

    bounds = {"source__http": True, "api__forwards_max": 2}
    with Listener(store, {"assign": busy, "explain": refuse}):
        with api(settings_of(store, **bounds)) as patient:
            assert "level" in problem(patient.http.get("/v1/items/a/explain"), "invalid")["detail"]
        hasty(settings_of(store, **bounds, api__forward_timeout_s=0.5))
        assert not release.is_set(), "it did not wait for the writer"
        release.set()


def hasty(settings: Settings) -> None:
    """Ask one after another, then side by side, an API that waits for less long than the writer takes."""
    with api(settings) as served:
        problem(served.http.post("/v1/assign", json={"embedding": VECTOR}), "writer-busy")
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(served.http.post("/v1/assign", json={"embedding": VECTOR}))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for answer in answers:
            problem(answer, "writer-busy")
        assert any("wait for the writer already" in answer.json()["detail"] for answer in answers)


def test_writes_are_off_unless_they_are_on(store: Path) -> None:
    with api(settings_of(store)) as served:
        problem(served.http.put("/v1/items/a", json={"embedding": VECTOR}), "writes-off")
        problem(served.http.delete("/v1/items/a"), "writes-off")
        problem(served.http.post("/v1/items", content=b"", headers=NDJSON), "writes-off")


def test_a_body_over_the_limit(store: Path) -> None:
    settings = settings_of(store, source__http=True, api__body_max_bytes=2048, api__bulk_max_bytes=4096)
    with api(settings) as served:
        large = {"content-type": "application/json"}
        problem(served.http.post("/v1/assign", content=b" " * 2049, headers=large), "too-large")
        pieces = (b" " * 100 for _ in range(100))  # of a length that nobody declares
        problem(served.http.post("/v1/assign", content=pieces, headers=large), "too-large")
        problem(served.http.put("/v1/items/a", content=b" " * 5000, headers=large), "too-large")
        lines = b"\n" * 5000
        problem(served.http.post("/v1/items", content=lines, headers=NDJSON), "too-large")


def test_a_line_over_the_limit_is_named_and_the_rest_goes_on(store: Path) -> None:
    with api(settings_of(store, source__http=True, limits__record_max_bytes=1024)) as served:
        body = b"[" + b" " * 3000 + b"]\n[]\n" + b" " * 2000
        told = served.http.post("/v1/items", content=body, headers=NDJSON).json()
        assert [one["line"] for one in told["errors"]] == [1, 2, 3]
        assert "record_max_bytes" in told["errors"][0]["reason"]
        assert told["lines"] == 3


def held(served: Api, count: int) -> list[socket.socket]:
    """Requests that are at work: their bodies do not come."""
    clients = []
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", served.port), 60)
        client.sendall(
            b"POST /v1/assign HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        clients.append(client)
    return clients


def test_too_many_requests_at_once_are_told_to_come_again(store: Path) -> None:
    with api(settings_of(store, api__requests_max=3, api__patience_s=3.0)) as served:
        assert served.http.get("/v1/clusters").status_code == 200
        clients = held(served, 3)
        working = "shoal_http_requests_now"
        until(lambda: served.context.meters.registry.get_sample_value(working) == 3.0)
        assert "requests_max" in problem(served.http.get("/v1/clusters"), "busy")["detail"]
        assert served.http.get("/livez").status_code == 200
        for client in clients:  # patience with them ends
            answer = client.recv(4096)
            assert answer.startswith(b"HTTP/1.1 408"), answer
            client.close()
        until(lambda: served.context.meters.registry.get_sample_value(working) == 0.0)
        assert served.http.get("/v1/clusters").status_code == 200


def test_an_api_key_is_asked_for(store: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"# the first is the old one\nold-old-old-old-old\n{KEY}\n")
    with api(settings_of(store, api__key_file=str(tmp_path / "keys"))) as served:
        for headers in (
            {},
            {"authorization": f"Bearer {KEY}x"},
            {"authorization": f"Bearer {KEY[:-1]}"},
            {"authorization": f"Basic {KEY}"},
            {"authorization": "Bearer"},
            {"authorization": "Bearer \u00e4".encode("latin-1")},
            {"x-api-key": ""},
        ):
            for path in ("/v1/clusters", "/metrics", "/v1/nothing", "/v1/items/a"):
                answer = served.http.get(path, headers=headers)
                problem(answer, "no-key")
                assert answer.headers["www-authenticate"].startswith("Bearer")
                assert KEY not in answer.text
        for headers in (
            {"authorization": f"Bearer {KEY}"},
            {"authorization": "bearer old-old-old-old-old"},
            {"x-api-key": KEY},
        ):
            assert served.http.get("/v1/clusters", headers=headers).status_code == 200
        for path in ("/livez", "/docs", "/openapi.json"):
            assert served.http.get(path).status_code == 200, "nothing of the collection is in there"
        # With a key it may be asked under any name.
        named = {"authorization": f"Bearer {KEY}", "host": "shoal.example"}
        assert served.http.get("/v1/clusters", headers=named).status_code == 200


def test_without_a_key_it_answers_to_no_foreign_name(quiet: Api) -> None:
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", ""):
        problem(quiet.http.get("/v1/clusters", headers={"host": host}), "wrong-host")
    for host in ("localhost", "127.0.0.1:1", "[::1]:8000", "shoal.localhost", "10.0.0.7", "LocalHost.:8000"):
        assert quiet.http.get("/v1/clusters", headers={"host": host}).status_code == 200


def test_a_writer_that_is_stuck_is_not_alive(store: Path) -> None:
    context = Context(settings_of(store, limits__progress_timeout_s=9.0))

    async def ask(told: dict[str, Any] | None, silent_s: float = 0.0) -> tuple[int, dict[str, Any]]:
        context.writer.status = Status(told, silent_s=silent_s)
        transport = httpx.ASGITransport(app=make_routes(context))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            answer = await http.get("/livez")
        return answer.status_code, answer.json()

    assert asyncio.run(ask(None)) == (200, {"live": True})
    assert asyncio.run(ask({"stalled_s": 8.9})) == (200, {"live": True})
    assert asyncio.run(ask({"stalled_s": 9.0})) == (503, {"live": False})
    assert asyncio.run(ask(None, 8.9)) == (200, {"live": True})
    assert asyncio.run(ask(None, 9.0)) == (503, {"live": False}), "it does not even say that it is stuck"
    context.close()


def test_a_writer_that_does_not_answer_is_silent_and_one_that_is_away_is_not(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = WriterClient(settings_of(store))
    for error, grows in ((WriterBusy("no answer in time"), True), (WriterAway("nobody is there"), False)):

        def call(op: str, *, timeout_s: float, error: ShoalError = error) -> Any:
            raise error

        monkeypatch.setattr(client._control, "call", call)
        first, second = client._read_status(), client._read_status()
        assert (second.silent_s > first.silent_s) == grows
    client.close()


def test_a_port_in_use_is_said(quiet: Api) -> None:
    with pytest.raises(ConfigError, match=f"{quiet.port}"):
        listen(load(None, {"api.port": quiet.port}).api)


def test_a_stale_cursor_says_where_to_go_on(tmp_path: Path) -> None:
    toy = Toy(3)
    with Store.open(tmp_path / "store", CONFIG, events_max_bytes=1) as store:
        for _ in range(5):
            store.commit(toy.step())
    with api(settings_of(tmp_path / "store")) as served:
        for headers in ({}, {"accept": "text/event-stream"}):
            found = problem(served.http.get("/v1/changes?after=2-0", headers=headers), "stale-cursor")
            assert "begins with version 5" in found["detail"]
            onward = served.http.get("/v1/changes", params={"after": found["cursor"]})
            assert onward.json()["changes"] == []
            ahead = problem(served.http.get("/v1/changes?after=6-0", headers=headers), "stale-cursor")
            assert "ahead" in ahead["detail"]
        last = {"accept": "text/event-stream", "last-event-id": "3-1"}
        problem(served.http.get("/v1/changes", headers=last), "stale-cursor")
        problem(served.http.get("/v1/changes?after=4-0"), "stale-cursor")
        assert served.http.get("/v1/changes?after=4-99999").json()["changes"][0]["version"] == 5


def test_before_the_writer_has_made_a_store_it_says_so(tmp_path: Path) -> None:
    with api(settings_of(tmp_path / "store", source__http=True)) as served:
        for path in ("/v1/clusters", "/v1/items/a", "/v1/assignments"):
            answer = served.http.get(path)
            problem(answer, "not-ready")
            assert answer.json()["detail"].startswith("there is no store yet: the daemon makes one when")


def test_before_there_is_a_store_it_says_not_ready(tmp_path: Path) -> None:
    with api(settings_of(tmp_path / "store")) as served:
        assert served.http.get("/livez").status_code == 200
        problem(served.http.get("/v1/clusters"), "not-ready")
        assert "there is no store" in served.http.get("/readyz").json()["reasons"][0]
        with Store.open(tmp_path / "made", CONFIG) as store:
            store.commit(Toy(1).step())
        shutil.copytree(tmp_path / "made", tmp_path / "store")
        assert served.http.get("/v1/clusters").status_code == 200


def test_damage_is_a_problem_and_never_an_answer(tmp_path: Path) -> None:
    toy = Toy(21)
    with Store.open(tmp_path / "store", CONFIG) as store:
        for _ in range(3):
            store.commit(toy.step(12))
    data = bytearray((tmp_path / "store" / "data.mdb").read_bytes())
    damaged = [(key, payload) for key, _, _, payload, _ in toy.rows.values() if payload]
    assert damaged
    for _, payload in damaged:
        at = data.find(payload)
        while at >= 0:
            data[at + 1] ^= 1
            at = data.find(payload, at + 1)
    (tmp_path / "store" / "data.mdb").write_bytes(data)
    (tmp_path / "store" / "closed").unlink()  # as if a writer had it open; else it would not be opened
    with api(settings_of(tmp_path / "store")) as served:
        for key, _ in damaged:
            answer = served.http.get(f"/v1/items/{key.decode()}")
            assert "the checksum does not match" in problem(answer, "damaged")["detail"]


def test_a_mistake_of_ours_shows_no_traceback(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with api(settings_of(store)) as served:
        until(lambda: served.context.follower.ready)  # it has its view: without it the process would end
        monkeypatch.setattr(served.context.reader, "view", lambda: json.loads("{"))
        problem(served.http.get("/v1/levels"), "bug")
