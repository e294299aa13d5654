"""The page while data comes, behind a proxy, and without its writer, its store, its key, or the API."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from engine.storage.store import Store
from tests.support.large_store import fill
from tests.support.live_api import Api, api, settings_of
from tests.support.page import DIM, STILL, VIEWS, Tab, elsewhere, payload, post
from tests.support.proxy import stripping_proxy
from tests.support.waiting import until


def test_news_appear_by_themselves_and_go_on_after_the_api_was_away(
    browser: Browser, store: tuple[Path, dict[str, Any]], served: Api
) -> None:
    """Nothing is missed or told twice."""
    path, flags = store
    with browser.new_context() as context:
        with elsewhere(settings_of(path, **flags)) as url:
            tab = Tab(context, url)
            page = tab.open("#/changes")
            expect(page.locator("#state-words")).to_have_text("Live")
            _bear(served, 1)
            expect(page.locator(f".story[data-id='{_lineage(served)[0]}']")).to_have_count(1)
        expect(page.locator("#state-words")).to_have_text("No connection")
        expect(page.locator("#notice")).to_be_visible()
        _bear(served, 2)
        with elsewhere(settings_of(path, **flags, api__port=httpx.URL(url).port)):
            expect(page.locator("#state-words")).to_have_text("Live")
            _bear(served, 3)
            told = _lineage(served)
            expect(page.locator(f".story[data-id='{told[0]}']")).to_have_count(1)
            shown = page.locator(".story").evaluate_all("all => all.map(one => one.dataset.id)")
            assert shown == told[: len(shown)]
            assert len(shown) >= min(40, len(told))


def test_the_first_view_says_how_long_a_batch_takes(tab: Tab, served: Api) -> None:
    page = tab.open("#/")
    _bear(served, 4)
    expect(page.locator(".numbers .latency dd")).to_have_text(re.compile(r"^\d+ (ms|s)$"))


def _bear(served: Api, number: int) -> None:
    """A new cluster: an item far from all others."""
    vector = (-np.eye(DIM)[number] + 1e-3).tolist()
    post(served, [{"key": f"lonely-{number}", "embedding": vector, "payload": payload(0)}])


def _lineage(served: Api) -> list[str]:
    """Ids of what happened to clusters, newest first."""
    told = served.http.get("/v1/changes", params={"kind": "clusters", "limit": 1000}).json()["changes"]
    return [event["event-id"] for event in reversed(told)]


def test_a_key_is_asked_for_and_kept_for_the_tab_alone(
    browser: Browser, store: tuple[Path, dict[str, Any]], served: Api, tmp_path: Path
) -> None:
    path, flags = store
    key = "0123456789abcdef0123"
    (tmp_path / "key").write_text(key)
    settings = settings_of(path, **flags, api__key_file=str(tmp_path / "key"))
    with browser.new_context() as context, elsewhere(settings) as url:
        page = context.new_page()
        page.goto(url)
        dialog = page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        page.locator("#key-value").fill("not the key at all")
        page.keyboard.press("Enter")
        expect(page.locator("#key-refused")).to_be_visible()
        page.locator("#key-value").fill(key)
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        expect(page.locator(".disc").first).to_be_visible()
        assert page.evaluate("Object.values(localStorage)") == []
        page.reload()
        expect(page.locator(".disc").first).to_be_visible()
        expect(dialog).to_be_hidden()


def test_without_a_writer_the_page_says_so_and_still_answers(
    browser: Browser, served: Api, tmp_path: Path
) -> None:
    """On a copy of the store that nobody writes."""
    shutil.copytree(
        served.settings.store.path, tmp_path / "copy", ignore=shutil.ignore_patterns("control", "writer")
    )
    with browser.new_context() as context, api(settings_of(tmp_path / "copy")) as alone:
        tab = Tab(context, alone.url)
        page = tab.open("#/clusters")
        expect(page.locator("#state-words")).to_have_text("Writer away")
        expect(page.locator("#notice")).to_contain_text("writer does not run")
        expect(page.locator(".cluster-card").first).to_be_visible()
        tab.open("#/items/item-0-0")
        expect(page.locator(".path .final")).to_be_visible()
        expect(page.locator(".why .failed")).to_be_visible()


def test_without_a_writer_a_store_without_versions_has_no_age(browser: Browser, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", {"collection": "toy", "dim": None}):
        pass
    with browser.new_context() as context, api(settings_of(tmp_path / "store")) as alone:
        page = context.new_page()
        page.goto(alone.url)
        expect(page.locator("#notice")).to_have_text(re.compile(r"All answers are of version 0\.$"))


def test_before_there_is_a_store_the_page_says_what_to_do(browser: Browser, tmp_path: Path) -> None:
    with browser.new_context() as context, api(settings_of(tmp_path / "none")) as nothing:
        page = context.new_page()
        page.goto(nothing.url)
        expect(page.locator("#state-words")).to_have_text("No data yet")
        expect(page.locator(".map-panel")).to_contain_text("Nothing here yet")


FIRST = (".numbers .items dd", ".disc", ".story", ".cluster-card")  # figures, map, feed, cards
MOVED = "performance.getEntriesByType('resource').reduce((sum, one) => sum + one.transferSize, 0)"


def test_a_large_collection_loads_no_more_than_a_small_one(
    browser: Browser, tmp_path: Path, long: bool
) -> None:
    """How soon it shows something is measured by `benchmarks.bench_page`."""
    fill(tmp_path / "store", count := 200_000 if long else 40_000)
    with browser.new_context(**STILL) as context, elsewhere(settings_of(tmp_path / "store")) as url:
        until(lambda: httpx.get(f"{url}/v1/clusters?order=growth").is_success)  # it has counted growth
        tab = Tab(context, url)
        tab.open("")
        for selector in FIRST:
            expect(tab.page.locator(selector).first).to_be_visible()
        expect(tab.page.locator(".numbers .items dd")).to_have_text(f"{count:,}")
        assert tab.page.evaluate(MOVED) < 500_000
        assert not tab.complaints, tab.complaints


@pytest.mark.parametrize("setting", [{"api__root_path": "/shoal"}, {"api__forwarded_prefix": True}])
def test_page_docs_and_guides_work_behind_a_proxy_that_strips_a_prefix(
    browser: Browser,
    store: tuple[Path, dict[str, Any]],
    served: Api,
    places: dict[str, str],
    setting: dict[str, Any],
) -> None:
    path, flags = store
    with (
        browser.new_context(**STILL) as context,
        elsewhere(settings_of(path, **flags, **setting)) as url,
        stripping_proxy(url, "/shoal") as prefixed,
    ):
        tab = Tab(context, prefixed)
        page = tab.open(VIEWS["cluster"].format(**places))
        expect(page.locator("#state-words")).to_have_text("Live")
        expect(page.locator(".members .card").first).to_be_visible()
        page.goto(f"{prefixed}/guide/http")
        expect(page.locator("h1")).to_have_text("HTTP API")
        page.goto(f"{prefixed}/docs")
        page.locator("[id$='levels_v1_levels_get'] button").first.click()
        page.get_by_role("button", name="Execute").click()
        expect(page.locator(".live-responses-table tbody .response-col_status").first).to_contain_text("200")
        assert f"{prefixed}/v1/levels" in tab.asked
        assert {one for one in tab.asked if not one.startswith((f"{prefixed}/", "data:"))} == set()
        assert not tab.complaints, tab.complaints
