"""Many items in one request: looked up by their keys, or all of them exported."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard
from pyarrow import parquet

from engine.storage.store import Store
from tests.support.fake_collection import Toy
from tests.support.live_api import Api, api, settings_of
from tests.support.waiting import until

CONFIG = {"collection": "t\u00f6y", "dim": None}


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy(41)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, toy: Toy) -> Iterator[Api]:
    path = tmp_path_factory.mktemp("many") / "store"
    with Store.open(path, CONFIG) as store:
        for _ in range(6):
            store.commit(toy.step(30))
    with api(settings_of(path, api__lookup_max=50, api__exports_max=1)) as found:
        yield found


@pytest.fixture(scope="module")
def keys(toy: Toy) -> list[str]:
    return [row[0].decode() for row in toy.rows.values()]


def test_a_lookup_answers_in_the_order_of_the_keys_and_names_what_is_missing(
    served: Api, keys: list[str]
) -> None:
    asked = [keys[3], "nobody", keys[0], "x" * 600, "", keys[3], "nobody"]
    told = served.http.post("/v1/items:lookup", json={"keys": asked}).json()
    assert (told["collection"], told["version"]) == (CONFIG["collection"], 6)
    assert told["missing"] == ["nobody", "x" * 600, "", "nobody"]
    for key, item in zip(asked, told["items"], strict=True):
        alone = served.http.get(f"/v1/items/{key}")
        assert item == ({n: alone.json()[n] for n in item} if alone.is_success else None)
    finest = served.http.post("/v1/items:lookup", json={"keys": keys[:5], "level": 0}).json()["items"]
    for key, item in zip(keys[:5], finest, strict=True):
        assert item["cluster"] == served.http.get(f"/v1/items/{key}?level=0").json()["cluster"]


def test_a_lookup_takes_integer_keys_as_records_do(served: Api) -> None:
    assert served.http.post("/v1/items:lookup", json={"keys": [7]}).json()["missing"] == ["7"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"keys": []}, 422, "keys"),
        ({"keys": "a"}, 422, "keys"),
        ({"keys": [True]}, 422, "keys"),
        ({"keys": [1.5]}, 422, "keys"),
        ({"keys": ["a"], "level": -1}, 422, "level"),
        ({"keys": ["a"], "more": 1}, 422, "more"),
        ({"keys": ["a"] * 51}, 413, "lookup_max"),
        (["a"], 422, "object"),
    ],
)
def test_a_lookup_that_cannot_be_answered(served: Api, body: Any, status: int, words: str) -> None:
    answer = served.http.post("/v1/items:lookup", json=body)
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text


def test_payloads_of_a_lookup_are_bounded(tmp_path: Path, toy: Toy) -> None:
    toy = Toy(42)
    with Store.open(tmp_path / "store", CONFIG) as store:
        for _ in range(60):
            store.commit(toy.step(30))
    keys = [row[0].decode() for row in toy.rows.values() if row[3]]
    with api(
        settings_of(tmp_path / "store", api__lookup_payload_bytes=1024, api__lookup_max=10_000)
    ) as served:
        assert served.http.post("/v1/items:lookup", json={"keys": keys[:5]}).is_success
        refused = served.http.post("/v1/items:lookup", json={"keys": keys * 40})
        assert (refused.status_code, "ask for fewer" in refused.json()["detail"]) == (422, True)


def test_an_export_has_every_item_once_and_in_both_forms(served: Api, keys: list[str]) -> None:
    answer = served.http.get("/v1/assignments")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["shoal-version"] == "6"
    assert answer.headers["shoal-collection"] == "t%C3%B6y"
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert [row["key"] for row in rows] == sorted(keys)
    for row in rows[:5]:
        item = served.http.get(f"/v1/items/{row['key']}").json()
        assert row == {name: item[name] for name in ("key", "cluster", "path", "version")}
    table = parquet.read_table(io.BytesIO(served.http.get("/v1/assignments?format=parquet").content))
    assert table.to_pylist() == rows
    finest = served.http.get("/v1/assignments?level=0").text.splitlines()
    assert (
        json.loads(finest[0])["cluster"]
        == served.http.get(f"/v1/items/{rows[0]['key']}?level=0").json()["cluster"]
    )
    assert served.http.get("/v1/assignments?format=csv").status_code == 422


def test_exports_are_bounded_and_end_with_their_client(tmp_path: Path) -> None:
    from tests.support.large_store import fill

    fill(tmp_path / "store", 60_000, prefix="more than sockets hold " * 10)
    with api(settings_of(tmp_path / "store", api__exports_max=1)) as served:
        plain = {"accept-encoding": "identity"}
        with httpx.stream("GET", f"{served.url}/v1/assignments", headers=plain, timeout=60.0) as held:
            assert held.status_code == 200
            refused = served.http.get("/v1/assignments")
            assert (refused.status_code, "exports_max" in refused.json()["detail"]) == (503, True)
            assert served.http.get("/v1/levels").is_success, "queries go on"
        until(lambda: served.http.get("/v1/assignments?level=0").is_success)
        assert served.http.head("/v1/assignments").headers["shoal-version"] == "6"
        assert len(until(lambda: served.http.get("/v1/assignments")).text.splitlines()) == 60_000


def test_an_export_of_no_store_says_so(tmp_path: Path) -> None:
    with api(settings_of(tmp_path / "none")) as served:
        answer = served.http.get("/v1/assignments")
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:shoal:problem:not-ready")
        assert "there is no store" in answer.json()["detail"]


def test_head_is_answered_wherever_get_is(served: Api, keys: list[str]) -> None:
    paths = served.http.get("/openapi.json").json()["paths"]
    for path in [*(path for path, methods in paths.items() if "get" in methods), "/", "/docs", "/guide"]:
        asked = path.replace("{key}", keys[0]).replace("{cluster}", "1")
        get, head = served.http.get(asked), served.http.head(asked)
        assert head.status_code == get.status_code, path
        assert head.content == b""
        assert head.headers["content-type"] == get.headers["content-type"]
    stream = served.http.head("/v1/changes", headers={"accept": "text/event-stream"})
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert served.http.head("/v1/items/nobody").status_code == 404


def test_answers_are_compressed_when_asked_but_never_a_stream(served: Api) -> None:
    plain = served.http.get("/v1/assignments", headers={"accept-encoding": "identity"})
    for coding, decompress in (
        ("gzip", gzip.decompress),
        ("zstd", lambda raw: zstandard.ZstdDecompressor().decompressobj().decompress(raw)),
    ):
        with httpx.stream(
            "GET", f"{served.url}/v1/assignments", headers={"accept-encoding": coding}
        ) as answer:
            raw = b"".join(answer.iter_raw())
        assert answer.headers["content-encoding"] == coding
        assert decompress(raw) == plain.content
    headers = {"accept": "text/event-stream", "accept-encoding": "gzip"}
    with httpx.stream("GET", f"{served.url}/v1/changes?after=0-0", headers=headers) as stream:
        assert "content-encoding" not in stream.headers


def test_the_etag_of_a_compressed_answer_still_matches(served: Api) -> None:
    asked = {"accept-encoding": "gzip"}
    first = served.http.get("/v1/clusters?limit=1000", headers=asked)
    again = served.http.get(
        "/v1/clusters?limit=1000", headers={**asked, "if-none-match": first.headers["etag"]}
    )
    assert again.status_code == 304
