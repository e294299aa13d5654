"""The API with a real writer behind it: what it answers is what the store holds, and how it answers."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import zstandard

from tests.conftest import ROOT
from tests.support.live_api import Api, api, settings_of, writer
from tests.support.records import DIM, NDJSON, blobs, lines

SEED = 11
START_MS = 1_700_000_000_000
ODD_KEYS = [
    "a/b",
    "a/b/explain",
    "explain",
    "/",
    "//",
    "%2F",
    "sp ace",
    "q?a=b#c",
    "Gr\u00fc\u00dfe \u2603 \U0001f41f",
    "a+b&c",
    "x" * 511,
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A collection of 240 items that came in several versions."""
    from tests.support.random_models import random_model

    folder = tmp_path_factory.mktemp("api")
    random_model(7).save(folder / "model.safetensors")
    settings = settings_of(folder / "store", model__path=str(folder / "model.safetensors"), source__http=True)
    with writer(settings), api(settings) as found:
        found.wait_ready()
        vectors = blobs(SEED, 240)
        for start in range(0, 240, 24):
            rows = [
                {
                    "key": f"item:{row}",
                    "embedding": vectors[row].tolist(),
                    "payload": {"n": row},
                    "time": START_MS + row,
                }
                for row in range(start, start + 24)
            ]
            answer = found.http.post("/v1/items", content=lines(rows), headers=NDJSON)
            assert answer.status_code == 200, answer.text
            assert answer.json()["written"] == 24
        found.wait_counted()
        yield found


def pages(served: Api, path: str, field: str, **parameters: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    cursor = None
    while True:
        given = {**parameters, **({"cursor": cursor} if cursor else {})}
        answer = served.http.get(path, params=given)
        assert answer.status_code == 200, answer.text
        rows += answer.json()[field]
        cursor = answer.json()["cursor"]
        if cursor is None:
            return rows


def test_items_clusters_and_members_agree(served: Api) -> None:
    clusters = pages(served, "/v1/clusters", "clusters", limit=3)
    assert [row["size"] for row in clusters] == sorted((row["size"] for row in clusters), reverse=True)
    assert sum(row["size"] for row in clusters) == 240
    for row in clusters:
        members = pages(served, f"/v1/clusters/{row['cluster']}/items", "items", limit=7)
        assert len(members) == row["size"]
        assert row["peak"] in {member["key"] for member in members}
        for member in members:
            item = served.http.get(f"/v1/items/{member['key']}").json()
            assert item["cluster"] == row["cluster"] == item["path"][0]
            assert item["payload"] == member["payload"] == {"n": item["time"] - START_MS}
            assert (item["collection"], item["key"]) == ("shoal", member["key"])


def test_levels_are_those_that_can_be_asked_for(served: Api) -> None:
    levels = served.http.get("/v1/levels").json()["levels"]
    assert [level["level"] for level in levels] == list(range(len(levels)))
    for level in levels:
        clusters = pages(served, "/v1/clusters", "clusters", level=level["level"], limit=50)
        assert len(clusters) == level["clusters"]
        assert sum(row["size"] == 1 for row in clusters) == level["singletons"]
        for row in clusters[:3]:
            member = pages(served, f"/v1/clusters/{row['cluster']}/items", "items")[0]
            item = served.http.get(f"/v1/items/{member['key']}", params={"level": level["level"]}).json()
            assert item["cluster"] == row["cluster"]


def test_clusters_by_growth_and_by_age(served: Api) -> None:
    by_size = {row["cluster"]: row for row in pages(served, "/v1/clusters", "clusters")}
    grown = pages(served, "/v1/clusters", "clusters", order="growth", limit=2)
    # The whole log lies in the window, so a cluster has grown by all that is in it.
    assert {row["cluster"]: row["growth"] for row in grown} == {c: row["size"] for c, row in by_size.items()}
    assert [row["growth"] for row in grown] == sorted((row["growth"] for row in grown), reverse=True)
    newest = pages(served, "/v1/clusters", "clusters", order="newest", limit=2)
    assert [row["cluster"] for row in newest] == sorted(by_size, reverse=True)
    assert {row["cluster"]: row["growth"] for row in newest} == {
        row["cluster"]: row["growth"] for row in grown
    }


def test_a_cluster_has_its_history_and_an_ended_one_says_where_it_went(served: Api) -> None:
    log = served.http.get("/v1/changes", params={"limit": 1000, "kind": "clusters"}).json()["changes"]
    mentioned: dict[int, list[dict[str, Any]]] = {}
    for event in log:
        for cluster in {event["cluster"], *event["from"], *event["into"]}:
            mentioned.setdefault(cluster, []).append(event)
    living = {row["cluster"] for row in pages(served, "/v1/clusters", "clusters")}
    ended = 0
    for cluster, events in mentioned.items():
        found = served.http.get(f"/v1/clusters/{cluster}").json()
        assert found["history"] == events[-100:]
        assert found["history_from"] == 1
        if found["ended"]:
            ended += 1
            assert found["now"]
            assert set(found["now"]) <= living
            assert served.http.get(f"/v1/clusters/{cluster}/items").json()["items"] == []
        else:
            assert found["now"] == []
    assert ended, "the data should make some clusters end"


@pytest.mark.parametrize("key", ODD_KEYS)
def test_any_key_comes_in_is_found_and_goes(served: Api, key: str) -> None:
    path = f"/v1/items/{quote(key, safe='')}"
    vector = blobs(sum(key.encode()), 1)[0].tolist()
    put = served.http.put(
        path, json={"embedding": vector, "payload": {"odd": key}, "time": 1_700_000_000_123}
    )
    assert put.status_code == 200, put.text
    assert put.json()["written"] == 1
    item = served.http.get(path).json()
    assert (item["key"], item["payload"], item["time"]) == (key, {"odd": key}, 1_700_000_000_123)
    assert item["version"] >= put.json()["version"]
    gone = served.http.delete(path)
    assert gone.status_code == 200
    assert served.http.get(path).status_code == 404


def test_a_key_with_plain_slashes_is_found_too(served: Api) -> None:
    vector = blobs(1, 1)[0].tolist()
    assert served.http.put("/v1/items/shop/shoes/7", json={"embedding": vector}).status_code == 200
    assert served.http.get("/v1/items/shop%2Fshoes%2F7").json()["key"] == "shop/shoes/7"
    assert served.http.delete("/v1/items/shop/shoes/7").status_code == 200


def test_what_was_answered_is_durable(served: Api) -> None:
    """Each answer's version is at least the one before, and what it says is there at that version."""
    before = 0
    for number in range(5):
        answer = served.http.put("/v1/items/again", json={"embedding": blobs(number, 1)[0].tolist()}).json()
        assert answer["version"] > before
        before = answer["version"]
        assert served.http.get("/v1/items/again").json()["updated"] == before
    assert served.http.delete("/v1/items/again").json()["version"] > before
    unknown = served.http.delete("/v1/items/again")
    assert (unknown.status_code, unknown.json()["written"]) == (200, 0)


def test_assign_says_where_vectors_would_go_and_changes_nothing(served: Api) -> None:
    version = served.http.get("/v1/summary").json()["version"]
    vectors = blobs(SEED, 240)[:6]
    many = served.http.post("/v1/assign", json={"embeddings": vectors.tolist()}).json()
    assert len(many["answers"]) == 6
    for vector, answer in zip(vectors, many["answers"], strict=True):
        one = served.http.post("/v1/assign", json={"embedding": vector.tolist()}).json()
        assert one["answers"] == [answer]
        assert answer["cluster"] == "new" or served.http.get(f"/v1/clusters/{answer['cluster']}").is_success
    assert {answer["cluster"] for answer in many["answers"]} != {"new"}
    assert served.http.get("/v1/summary").json()["version"] == version == many["version"]


def test_an_explanation_leads_from_the_item_to_its_cluster(served: Api) -> None:
    for number in range(0, 240, 31):
        item = served.http.get(f"/v1/items/item:{number}").json()
        why = served.http.get(f"/v1/items/item:{number}/explain").json()
        assert (why["collection"], why["key"]) == ("shoal", item["key"])
        assert why["path"] == item["path"]
        for level in why["levels"]:
            at = served.http.get(f"/v1/items/item:{number}", params={"level": level["level"]}).json()
            assert level["cluster"] == at["cluster"]
        finest = served.http.get(f"/v1/items/item:{number}/explain", params={"level": 0}).json()
        assert finest["levels"] == why["levels"][:1]
    unknown = served.http.get("/v1/items/nobody/explain")
    assert (unknown.status_code, unknown.json()["type"]) == (404, "urn:shoal:problem:no-such-item")


def test_an_etag_holds_as_long_as_the_version(served: Api) -> None:
    served.wait_counted()
    for path in ("/v1/items/item:3", "/v1/clusters", "/v1/levels", "/v1/clusters?order=growth"):
        first = served.http.get(path)
        tag = first.headers["etag"].removeprefix("W/")  # weak where the answer was compressed
        again = served.http.get(path, headers={"if-none-match": f'"x", W/{tag}'})
        assert (again.status_code, again.content) == (304, b"")
        assert served.http.get(path, headers={"if-none-match": '"x"'}).status_code == 200
        assert served.http.get("/v1/items/item:4", headers={"if-none-match": tag}).status_code == 200
        served.http.put("/v1/items/other", json={"embedding": blobs(9, 1)[0].tolist()})
        served.http.delete("/v1/items/other")
        served.wait_counted()
        changed = served.http.get(path, headers={"if-none-match": tag})
        assert changed.status_code == 200
        assert changed.json()["version"] > first.json()["version"]


def test_a_bulk_names_broken_lines_and_takes_the_rest(served: Api) -> None:
    vector = blobs(2, 1)[0].tolist()
    cases: list[tuple[Any, str]] = [
        ({"key": "bulk:1", "embedding": vector}, ""),
        ({"key": "bulk:2", "embedding": vector[:-1]}, "7 dimensions, not the collection's 8"),
        ({"key": "", "embedding": vector}, "key is empty"),
        ({"key": "x" * 512, "embedding": vector}, "512 bytes"),
        ({"embedding": vector}, "key is missing"),
        ({"key": "bulk:3"}, "embedding is missing"),
        ({"key": "bulk:4", "embedding": [0.0] * DIM}, "is zero"),
        ({"key": "bulk:5", "embedding": [*vector[:-1], True]}, "True"),
        ({"key": "bulk:6", "embedding": [*vector[:-1], "x"]}, "'x'"),
        ({"key": "bulk:7", "embedding": vector, "time": "now"}, "time"),
        (b'{"key": "bulk:8", "embedding": [NaN]}', "broken JSON"),
        (b"[1]", "JSON object"),
        (b"", ""),
        (b'{"key": "bulk:9"', "broken JSON"),
        ({"key": "bulk:1", "delete": True}, ""),
        ({"key": "bulk:1", "delete": True}, ""),  # nothing is left to delete
        ({"key": 10, "embedding": vector, "time": 5.5, "colour": "red", "size": 3}, ""),
        ({"key": "10", "embedding": vector, "delete": True, "colour": "blue"}, ""),
    ]
    body = b"\n".join(one if isinstance(one, bytes) else json.dumps(one).encode() for one, _ in cases)
    answer = served.http.post("/v1/items", content=body, headers=NDJSON)
    assert answer.status_code == 200
    told = answer.json()
    wanted = {line: words for line, (_, words) in enumerate(cases, 1) if words}
    assert (told["lines"], told["written"], told["refused"]) == (18, 4, len(wanted))
    reasons = {one["line"]: one["reason"] for one in told["errors"]}
    assert reasons.keys() == wanted.keys()
    for line, words in wanted.items():
        assert words in reasons[line], reasons[line]
    assert [one["line"] for one in told["doubts"]] == [17], told["doubts"]
    assert told["ignored"] == {"colour": 2, "size": 1}
    for key in ("bulk:1", "10"):
        assert served.http.get(f"/v1/items/{key}").status_code == 404


def test_a_put_takes_the_usual_names_and_tells_what_it_did_not_use(served: Api) -> None:
    body = {"vector": blobs(3, 1)[0].tolist(), "metadata": {"n": 1}, "timestamp": "1971-01-01", "colour": 1}
    told = served.http.put("/v1/items/usual", json=body).json()
    assert (told["written"], told["ignored"]) == (1, ["colour"])
    assert "1971" in told["doubts"][0]
    item = served.http.get("/v1/items/usual").json()
    assert (item["payload"], item["time"]) == ({"n": 1}, 365 * 86_400_000)
    told = served.http.put("/v1/items/usual", json={**body, "delete": True}).json()
    assert told["written"] == 1
    assert served.http.get("/v1/items/usual").status_code == 404


@pytest.mark.parametrize(
    "text",
    [b'{ "n" : 1.50, "big": 123456789012345678901234567890 }', b'"\\u00e9\\u0000"', b"[1e2, 1E+2]", b"0"],
)
def test_a_payload_is_kept_as_it_was_written(served: Api, text: bytes) -> None:
    """To the byte: it is parsed to be checked, and not written anew."""
    line = b'{"key": "raw", "payload": %b, "embedding": %b}' % (
        text,
        json.dumps(blobs(4, 1)[0].tolist()).encode(),
    )
    assert served.http.post("/v1/items", content=line, headers=NDJSON).json()["written"] == 1
    view = served.context.reader.view()
    with view.snapshot() as found:
        stored = found.tables.items.need(found.tables.keys.need(b"raw")).payload
    assert stored == text
    assert served.http.delete("/v1/items/raw").json()["written"] == 1


def test_many_clients_that_put_at_once_are_all_served(served: Api) -> None:
    """Their records share commits: fewer versions than writes."""
    before = served.http.get("/v1/summary").json()["version"]
    vectors = blobs(6, 64)

    async def put() -> list[httpx.Response]:
        bounds = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=served.url, timeout=300.0, limits=bounds) as http:
            puts = (
                http.put(f"/v1/items/at-once:{n}", json={"embedding": v.tolist()})
                for n, v in enumerate(vectors)
            )
            return await asyncio.gather(*puts)

    answers = asyncio.run(put())
    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
    versions = {answer.json()["version"] for answer in answers}
    assert min(versions) > before
    assert len(versions) < 32
    gone = lines([{"key": f"at-once:{n}", "delete": True} for n in range(64)])
    assert served.http.post("/v1/items", content=gone, headers=NDJSON).json()["written"] == 64


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_bulk_may_be_compressed(served: Api, coding: str) -> None:
    compress = gzip.compress if coding == "gzip" else zstandard.ZstdCompressor().compress
    rows = [{"key": f"{coding}:{n}", "embedding": v.tolist()} for n, v in enumerate(blobs(7, 200))]
    headers = {**NDJSON, "content-encoding": coding}
    answer = served.http.post("/v1/items", content=compress(lines(rows)), headers=headers)
    assert (answer.status_code, answer.json()["written"]) == (200, 200)
    put = compress(json.dumps({"embedding": blobs(8, 1)[0].tolist()}).encode())
    kind = {"content-type": "application/json", "content-encoding": coding}
    assert served.http.put(f"/v1/items/{coding}:0", content=put, headers=kind).status_code == 200
    other = served.http.post("/v1/items", content=b"x", headers={**NDJSON, "content-encoding": "br"})
    assert (other.status_code, other.headers["accept-encoding"]) == (415, "zstd, gzip")
    gone = lines([{"key": row["key"], "delete": True} for row in rows])
    assert served.http.post("/v1/items", content=gone, headers=NDJSON).json()["written"] == 200


def test_readyz_counts_what_could_not_be_used(served: Api) -> None:
    before = served.http.get("/readyz").json()["rejected"]["http"]
    body = lines([{"key": "", "embedding": [1.0] * DIM}, {"key": "a", "embedding": [1.0]}])
    assert served.http.post("/v1/items", content=body, headers=NDJSON).json()["refused"] == 2
    assert served.http.put("/v1/items/a", json={"embedding": ["x"]}).status_code == 422
    told = served.http.get("/readyz").json()
    assert told["rejected"]["http"] == before + 3
    assert told["rejected"]["source"] == 0
    assert told["ready"]


def test_a_bulk_of_several_pieces_keeps_order(served: Api) -> None:
    """The last line of a key counts, whether it is in the same piece or not."""
    vectors = blobs(5, 3000)
    rows = [{"key": f"p:{n % 50}", "embedding": vectors[n].tolist(), "payload": n} for n in range(3000)]
    answer = served.http.post("/v1/items", content=lines(rows), headers=NDJSON)
    assert answer.json()["written"] == 3000
    for n in range(0, 50, 7):
        assert served.http.get(f"/v1/items/p:{n}").json()["payload"] == 2950 + n
    gone = lines([{"key": f"p:{n}", "delete": True} for n in range(50)])
    assert served.http.post("/v1/items", content=gone, headers=NDJSON).json()["refused"] == 0


def test_the_map_the_summary_and_the_metrics(served: Api) -> None:
    served.wait_counted()
    summary = served.http.get("/v1/summary").json()
    assert (summary["items"], summary["dim"], summary["writes"]) == (240, DIM, True)
    assert summary["writer"]["source"] == "http"
    drawn = served.http.get("/v1/map").json()
    assert len(drawn["clusters"]) == min(summary["clusters"], 200)
    text = served.http.get("/metrics").text
    assert 'shoal_http_requests_total{method="GET",route="/v1/summary",status="200"}' in text
    assert "shoal_items 240" in text, "the writer's figures are there too"


def test_files_of_the_page_are_asked_for_anew_after_an_upgrade(served: Api) -> None:
    for path in ("/", "/js/dom.js", "/css/base.css", "/docs", "/docs/start.js"):
        first = served.http.get(path)
        assert (first.status_code, first.headers["cache-control"]) == (200, "no-cache"), path
    again = served.http.get(path, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.headers["cache-control"]) == (304, "no-cache")


def test_documents_need_no_other_host(served: Api) -> None:
    document = served.http.get("/openapi.json").json()
    assert {
        "/v1/items/{key}",
        "/v1/items/{key}/explain",
        "/v1/items",
        "/v1/items:lookup",
        "/v1/assignments",
        "/v1/clusters",
        "/v1/clusters/{cluster}",
        "/v1/clusters/{cluster}/items",
        "/v1/levels",
        "/v1/assign",
        "/v1/changes",
        "/v1/map",
        "/v1/summary",
        "/livez",
        "/readyz",
        "/metrics",
    } == document["paths"].keys()
    for name in (
        "Item",
        "Cluster",
        "ClusterPage",
        "Changes",
        "Assigned",
        "BulkWritten",
        "ProblemDocument",
        "Lookup",
    ):
        assert document["components"]["schemas"][name]["examples"]
    for path in ("/docs", "/"):
        page = served.http.get(path)
        assert page.status_code == 200
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert "http://" not in page.text.replace("http://www.w3.org", "")
        assert "https://" not in page.text
    for path in ("/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/docs/start.js"):
        assert served.http.get(path).status_code == 200


def test_the_api_needs_no_torch() -> None:
    script = (
        "import sys, engine.api.server; "
        "sys.exit(bool({'torch', 'dgl', 'numba', 'sklearn'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, cwd=ROOT).returncode == 0


def test_httpx_reads_a_page_as_the_readme_says(served: Api) -> None:
    with httpx.Client(base_url=served.url) as shoal:
        item = shoal.get("/v1/items/item:7").raise_for_status().json()
        page = shoal.get(f"/v1/clusters/{item['cluster']}/items", params={"limit": 5}).json()
        assert page["items"]
