"""Levels above the final clusters over HTTP, from a real writer, and on the command line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import ROOT, environment, warm_command
from tests.support.live_api import Api, api, settings_of, writer
from tests.support.records import NDJSON, blobs, lines
from tests.support.waiting import until

SEED = 12


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    from tests.support.random_models import random_model

    folder = tmp_path_factory.mktemp("themes")
    random_model(7).save(folder / "model.safetensors")
    settings = settings_of(
        folder / "store", model__path=str(folder / "model.safetensors"), source__http=True, model__tau=0.8
    )
    with writer(settings), api(settings) as found:
        found.wait_ready()
        post(found, 0, 150)
        yield found


def post(served: Api, first: int, last: int) -> None:
    vectors = blobs(SEED, last)
    rows = [{"key": f"i{row}", "embedding": vectors[row].tolist()} for row in range(first, last)]
    assert served.http.post("/v1/items", content=lines(rows), headers=NDJSON).status_code == 200


def get(served: Api, path: str, **parameters: Any) -> Any:
    answer = served.http.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def current(served: Api) -> None:
    """Wait until the themes are of the newest version: a grouping may be of an earlier one for a moment."""

    def holds() -> bool:
        page = get(served, "/v1/clusters", level="+1")
        return bool(page["grouped"] == page["version"])

    until(holds)


def test_themes_join_clusters_and_are_nested(served: Api) -> None:
    current(served)
    finals = {row["cluster"]: row["size"] for row in get(served, "/v1/clusters", limit=1000)["clusters"]}
    assert get(served, "/v1/levels")["coarser"] == [{"level": "+1", "tau": 0.35}, {"level": "+2", "tau": 0.2}]
    finer, most = {cluster: {cluster} for cluster in finals}, len(finals)
    for level in ("+1", "+2"):
        page = get(served, "/v1/clusters", level=level, limit=1000)
        assert page["grouped"] == page["version"]
        inside = {}
        for row in page["clusters"]:
            detail = get(served, f"/v1/clusters/{row['largest'][-1]}", level=level)
            assert {name: detail[name] for name in row} == row
            inside[row["cluster"]] = set().union(*(finer[child] for child in detail["children"]))
            assert row["size"] == sum(finals[cluster] for cluster in inside[row["cluster"]])
            assert row["cluster"] == min(inside[row["cluster"]])
        assert sorted(cluster for own in inside.values() for cluster in own) == sorted(finals)
        assert len(inside) <= most
        finer, most = inside, len(inside)
    assert most < len(finals), "nothing is joined"


def test_items_say_their_theme_in_every_way(served: Api) -> None:
    current(served)
    for level in ("+1", "+2"):
        for key in ("i3", "i77"):
            item = get(served, f"/v1/items/{key}", level=level)
            theme = get(served, f"/v1/clusters/{item['path'][0]}", level=level)
            assert item["cluster"] == theme["cluster"]
            looked = served.http.post("/v1/items:lookup", json={"keys": [key], "level": level}).json()
            assert looked["items"][0]["cluster"] == item["cluster"]
    plain = served.http.get("/v1/items/i3?level=+1")  # a plus that is not encoded
    assert plain.json()["cluster"] == get(served, "/v1/items/i3", level="+1")["cluster"]


def test_an_etag_holds_until_the_next_version(served: Api) -> None:
    asked = {"level": "+1", "limit": "1000"}
    first = served.http.get("/v1/clusters", params=asked)
    known = {"if-none-match": first.headers["etag"]}
    assert served.http.get("/v1/clusters", params=asked, headers=known).status_code == 304
    post(served, 150, 170)
    other = served.http.get("/v1/clusters", params=asked, headers=known)
    assert other.status_code == 200
    assert other.json()["version"] > first.json()["version"]
    assert sum(row["size"] for row in other.json()["clusters"]) == 170


@pytest.mark.parametrize("level", ["-1", "65", "1.5", "x", "+0", "+9", "++1", "+11", "", "1e1"])
def test_a_level_that_is_none_is_refused_with_a_sentence(served: Api, level: str) -> None:
    for path in ("/v1/clusters", "/v1/items/i3"):
        answer = served.http.get(path, params={"level": level})
        assert answer.status_code == 422, answer.text
        assert "0 to 64, 0 the finest, or +1 to +8" in answer.json()["detail"]
    answer = served.http.post("/v1/items:lookup", json={"keys": ["i3"], "level": level})
    assert answer.status_code == 422
    assert "level" in answer.json()["detail"]


def test_levels_that_there_are_not_are_refused_with_a_sentence(served: Api) -> None:
    for path in ("/v1/clusters", "/v1/items/i3", "/v1/clusters/1"):
        answer = served.http.get(path, params={"level": "+3"})
        assert answer.status_code == 422, answer.text
        assert "level +3: above the final clusters there are levels +1 to +2" in answer.json()["detail"]
    assert served.http.get("/v1/clusters", params={"level": "+1", "order": "growth"}).status_code == 422
    assert served.http.get("/v1/clusters/999999", params={"level": "+1"}).status_code == 404
    for path in ("/v1/assignments", "/v1/items/i3/explain"):
        answer = served.http.get(path, params={"level": "+1"})
        assert answer.status_code == 422, path
        assert "0 to 64, 0 the finest" in answer.json()["detail"]
    for level in (True, 1.5, [1]):
        assert served.http.post("/v1/items:lookup", json={"keys": ["i3"], "level": level}).status_code == 422


def shoal(served: Api, *words: str) -> subprocess.CompletedProcess[str]:
    settings = served.settings
    given = {"SHOAL_MODEL__PATH": str(settings.model.path), "SHOAL_MODEL__TAU": str(settings.model.tau)}
    told = warm_command(*words, "--store", settings.store.path)
    return subprocess.run(told, cwd=ROOT, env=environment(given), capture_output=True, text=True, check=False)


def test_the_command_line_asks_the_writer(served: Api) -> None:
    current(served)
    told = shoal(served, "clusters", "--level", "+1", "--limit", "1000", "--json")
    assert told.returncode == 0, told.stderr
    assert (
        json.loads(told.stdout)["clusters"] == get(served, "/v1/clusters", level="+1", limit=1000)["clusters"]
    )
    assert "themes of shoal, 2 above the final clusters" in shoal(served, "clusters", "--level", "+2").stdout
    item = shoal(served, "query", "i3", "--level", "+1")
    theme = get(served, "/v1/items/i3", level="+1")["cluster"]
    assert f"i3 is in theme {theme} of level +1 with" in item.stdout
    for words in (
        ("clusters", "--level", "x"),
        ("clusters", "--level", "+3"),
        ("query", "i3", "--level", "+0"),
    ):
        refused = shoal(served, *words)
        assert refused.returncode == 3
        assert "level" in refused.stderr
