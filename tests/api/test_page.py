"""The page in a real Chromium, on a real API with a real writer behind it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from engine.config import Settings, freeze
from tests.conftest import ROOT, environment
from tests.support import warm_python
from tests.support.large_store import fill
from tests.support.live_api import Api, api, settings_of, writer
from tests.support.proxy import stripping_proxy
from tests.support.waiting import until

expect.set_options(timeout=20_000)  # a busy machine is slow
SEED = 23
DIM = 8
AXE = (ROOT / "tests/vendor/axe/axe.min.js").read_text()
POLICY = (  # stricter than the API's own
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; font-src 'self'; "
    "img-src 'self' data: http: https:; form-action 'self'; base-uri 'none'"
)
VIEWS = {
    "live": "#/",
    "clusters": "#/clusters",
    "growing": "#/clusters/by/growth",
    "newest": "#/clusters/by/newest",
    "cluster": "#/clusters/{cluster}",
    "ended": "#/clusters/{ended}",
    "item": "#/items/{key}",
    "map": "#/map",
    "changes": "#/changes",
    "births": "#/changes/of/emerge",
    "no such item": "#/items/nobody",
    "no such view": "#/nowhere",
}
STILL = {"reduced_motion": "reduce"}
HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
SCRIPT = "javascript:window.hacked=1"
ODD_KEYS = ["a/b", "%2F", "Gr\u00fc\u00dfe \u2603", "q?a=b#c", HOSTILE]


def picture(shade: int) -> str:
    """An 8 x 8 PNG as a data URL."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + bytes((shade + 16 * x) % 256 for x in range(8)) for _ in range(8))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    body = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(body).decode()


def payload(number: int) -> Any:
    """Of all the kinds there are, hostile ones too."""
    return [
        {"title": f"Picture {number}", "image": picture(number), "link": "https://example.com/a?b=c"},
        {"title": f"Article {number}", "text": "Words, words, words. " * 20},
        {"title": HOSTILE, "text": HOSTILE, "image": SCRIPT, "link": SCRIPT},
        {"title": "", "image": "data:image/svg+xml,<svg onload='hacked=1'/>", "url": "data:text/html,x"},
        "only text",
        ["a", "list"],
        None,
    ][number % 7]  # fmt: skip


def records(seed: int, count: int, prefix: str) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(SEED).normal(size=(7, DIM))
    vectors = centres[rng.integers(0, 7, count)] + 0.15 * rng.normal(size=(count, DIM))
    return [
        {"key": f"{prefix}{row}", "embedding": vector.tolist(), "payload": payload(row)}
        for row, vector in enumerate(vectors)
    ]


def post(served: Api, rows: list[dict[str, Any]]) -> None:
    body = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    kind = {"content-type": "application/x-ndjson"}
    answer = served.http.post("/v1/items", content=body, headers=kind, timeout=120.0)  # it may compile first
    assert answer.status_code == 200, answer.text
    assert answer.json()["refused"] == 0, answer.text


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A store whose writer runs, with items of all kinds; and the flags it is opened with."""
    from engine.model.linkage import random_model

    folder = tmp_path_factory.mktemp("page")
    random_model(7).save(folder / "model.safetensors")
    flags = {"model__path": str(folder / "model.safetensors"), "source__http": True}
    with writer(settings_of(folder / "store", **flags)):
        yield folder / "store", flags


@pytest.fixture(scope="module")
def served(store: tuple[Path, dict[str, Any]]) -> Iterator[Api]:
    path, flags = store
    with api(settings_of(path, **flags)) as found:
        found.wait_ready()
        for version in range(8):
            post(found, records(SEED + version, 40, f"item-{version}-"))
        odd = records(SEED, len(ODD_KEYS), "odd")
        post(found, [{**row, "key": key} for row, key in zip(odd, ODD_KEYS, strict=True)])
        newest = found.http.get("/v1/clusters", params={"order": "newest"}).json()["clusters"]
        for cluster in newest:  # one of them ends, without an odd key
            members = found.http.get(f"/v1/clusters/{cluster['cluster']}/items").json()["items"]
            if not {member["key"] for member in members} & set(ODD_KEYS):
                break
        post(found, [{"key": member["key"], "delete": True} for member in members])
        found.wait_counted()
        yield found


@pytest.fixture(scope="module")
def places(served: Api) -> dict[str, str]:
    """What the addresses of views name."""
    largest = served.http.get("/v1/clusters").json()["clusters"][0]
    told = served.http.get("/v1/changes", params={"kind": "clusters", "limit": 1000}).json()["changes"]
    ended = [event["cluster"] for event in told if event["event"] == "vanish"]
    assert ended, "no cluster ended"
    return {"cluster": largest["cluster"], "ended": str(ended[-1]), "key": largest["peak"]}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium")
    if found is None:
        pytest.fail("The page is tested in Chromium: install it (on Debian: apt-get install chromium).")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


API = """
import sys
from engine import config
from engine.api import server
from engine.daemon import supervisor
settings = config.thaw(sys.stdin.read())
with supervisor.listen(settings.api) as listening:
    print(supervisor.url_of(listening), flush=True)
    server.serve(settings, listening)
"""


@contextmanager
def elsewhere(settings: Settings) -> Iterator[str]:
    """The address of another API on the store, in a process of its own: LMDB is opened once in a process."""
    with subprocess.Popen(
        [warm_python.executable(), "-c", API],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin as stdin:
            stdin.write(freeze(settings))
        url = process.stdout.readline().strip()
        try:
            yield url
        finally:
            process.terminate()
            process.wait(20)


class Tab:
    """A page of a browser that remembers what it complained about and whom it asked."""

    def __init__(self, context: BrowserContext, base: str) -> None:
        self.base, self.page = base, context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open(self, address: str) -> Page:
        self.page.goto(f"{self.base}/{address}")
        self.settle()
        return self.page

    def settle(self) -> None:
        """Until nothing is being waited for; what lies below the window is not asked for yet."""
        expect(self.page.locator("h1")).not_to_have_count(0)
        expect(self.page.locator("main .skeleton:not(.tile)")).to_have_count(0)

    def _hear(self, message: Any) -> None:
        if message.type not in ("error", "warning"):
            return
        if "404" in message.text and "/nobody" in message.location["url"]:
            return  # Chromium tells of every 404; this one is asked for
        self.complaints.append(f"{message.text} {message.location['url']}")


@pytest.fixture
def tab(browser: Browser, served: Api, request: pytest.FixtureRequest) -> Iterator[Tab]:
    """Parametrized with options of the browser's context."""
    with browser.new_context(**getattr(request, "param", {})) as context:
        context.route(served.url + "/", _with_strict_policy)
        yield Tab(context, served.url)


def _with_strict_policy(route: Any) -> None:
    answer = route.fetch()
    route.fulfill(response=answer, headers={**answer.headers, "content-security-policy": POLICY})


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    "tab", [STILL | {"color_scheme": "light"}, STILL | {"color_scheme": "dark"}], indirect=True
)
def test_every_view_opens_without_a_complaint_and_for_everybody(
    tab: Tab, places: dict[str, str], view: str
) -> None:
    page = tab.open(VIEWS[view].format(**places))
    for details in page.locator("details").all():
        details.evaluate("node => { node.open = true }")
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    grave = [
        (rule["id"], node["html"], node["failureSummary"])
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]
    assert not grave, grave
    assert not tab.complaints, tab.complaints
    assert {url for url in tab.asked if not url.startswith((tab.base, "data:"))} == set()
    assert page.evaluate("window.hacked") is None


def test_a_phone_shows_every_view_without_scrolling_sideways(
    browser: Browser, served: Api, places: dict[str, str]
) -> None:
    width = 320
    phone = {"viewport": {"width": width, "height": 640}, "is_mobile": True, "has_touch": True, **STILL}
    with browser.new_context(**phone) as context:
        tab = Tab(context, served.url)
        for view in VIEWS.values():
            page = tab.open(view.format(**places))
            page.wait_for_timeout(150)
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{view}: {wide} pixels"
        assert not tab.complaints, tab.complaints


def test_payloads_are_shown_as_they_are_and_never_run(tab: Tab, served: Api) -> None:
    key = "item-0-2"  # a hostile one
    page = tab.open("#/items/" + quote(key, safe=""))
    expect(page.locator("h1")).to_have_text(HOSTILE)
    cluster = served.http.get(f"/v1/items/{key}").json()["cluster"]
    tab.open(f"#/clusters/{cluster}")
    expect(page.get_by_role("link", name=HOSTILE).first).to_be_visible()
    for view in ("#/clusters", "#/map", "#/", "#/items/" + quote(HOSTILE, safe="")):
        tab.open(view)
        page.wait_for_timeout(300)
        assert page.evaluate("window.hacked") is None
    for selector, attribute in (("a", "href"), ("img", "src")):
        for value in page.locator(selector).evaluate_all(
            f"all => all.map(a => a.getAttribute('{attribute}'))"
        ):
            assert not value.lower().startswith(("javascript:", "data:text", "data:image/svg")), value
    assert not tab.complaints, tab.complaints


@pytest.mark.parametrize("key", ODD_KEYS)
def test_an_address_leads_to_an_item_whatever_its_key(tab: Tab, served: Api, key: str) -> None:
    page = tab.open("#/items/" + quote(key, safe=""))
    cluster = served.http.get("/v1/items/" + quote(key, safe="")).json()["cluster"]
    expect(page.locator(".path .final")).to_contain_text(f"#{cluster}")
    expect(page.locator(".level").first).to_be_visible()


def test_search_leads_to_items_and_clusters(tab: Tab, places: dict[str, str]) -> None:
    page = tab.open("#/")
    page.keyboard.press("/")
    expect(page.locator("#query")).to_be_focused()
    page.keyboard.type(places["key"])
    page.keyboard.press("Enter")
    expect(page.locator(".path .final")).to_contain_text("#")
    page.locator("#query").fill(f"#{places['cluster']}")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text(f"Cluster {places['cluster']}")


def test_an_ended_cluster_says_where_its_members_went(tab: Tab, places: dict[str, str]) -> None:
    page = tab.open(VIEWS["ended"].format(**places))
    expect(page.locator(".ended")).to_contain_text("This cluster ended in version")


def test_the_keyboard_reaches_everything(tab: Tab) -> None:
    page = tab.open("#/")
    page.wait_for_timeout(500)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.reload()
    tab.settle()
    page.wait_for_timeout(500)
    seen: list[str] = []
    for _ in range(80):
        page.keyboard.press("Tab")
        told = page.evaluate(FOCUSED)
        if told is None:
            break
        assert told["visible"], f"nothing shows that {told['name']!r} has the focus"
        seen.append(told["name"])
    wanted = (
        "Skip to the content",
        "Live",
        "Clusters",
        "Map",
        "Changes",
        "query",
        "theme",
        "Larger map",
        "API",
    )
    assert [name for name in wanted if name in seen] == list(wanted), seen
    assert sum("disc" in name for name in seen) == 1, seen  # one stop; arrows do the rest


FOCUSED = """() => {
  const node = document.activeElement;
  if (!node || node === document.body) return null;
  const box = node.matches('.stretched') ? getComputedStyle(node, '::after') : getComputedStyle(node);
  const name = node.matches('.disc') ? 'disc' : node.id || node.textContent.trim();
  return { name, visible: box.outlineStyle !== 'none' && parseFloat(box.outlineWidth) >= 2 };
}"""


def test_arrows_walk_over_the_map_and_enter_opens_a_cluster(tab: Tab) -> None:
    page = tab.open("#/map")
    page.locator(".disc[tabindex='0']").focus()
    here = page.evaluate("document.activeElement.dataset.cluster")
    for key in ("ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
        expect(page.locator(".disc:focus")).to_have_count(1)
        if page.evaluate("document.activeElement.dataset.cluster") != here:
            break
    there = page.evaluate("document.activeElement.dataset.cluster")
    assert there != here
    expect(page.locator(".tip")).to_contain_text(f"#{there}")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text(f"Cluster {there}")


def test_the_theme_is_the_systems_until_one_is_chosen(tab: Tab) -> None:
    page = tab.open("#/")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    after = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert before != after
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == after


def test_more_members_come_page_by_page(tab: Tab, places: dict[str, str], served: Api) -> None:
    size = served.http.get(f"/v1/clusters/{places['cluster']}").json()["size"]
    page = tab.open(VIEWS["cluster"].format(**places))
    while (more := page.locator("button.more")).is_visible():
        shown = page.locator(".members .card").count()
        more.click()
        expect(page.locator(".members .card").nth(shown)).to_be_attached()
    expect(page.locator(".members .card")).to_have_count(size)


def test_members_shown_stay_when_more_of_them_fail_to_come(tab: Tab, places: dict[str, str]) -> None:
    away = [True]

    def two_at_a_time(route: Any) -> None:
        if "cursor=" in route.request.url and away:
            away.clear()
            route.abort()
        else:
            route.continue_(url=route.request.url.replace("limit=48", "limit=2"))

    tab.page.route("**/items?*", two_at_a_time)
    page = tab.open(VIEWS["cluster"].format(**places))
    page.locator("button.more").click(timeout=5000)
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.locator("button.more")).to_be_hidden()
    expect(page.locator(".members .card")).to_have_count(2)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".members .card").nth(2)).to_be_attached()
    expect(page.get_by_role("alert")).to_have_count(0)


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
        expect(page.locator(".why .failed")).to_be_visible(timeout=20_000)


def test_before_there_is_a_store_the_page_says_what_to_do(browser: Browser, tmp_path: Path) -> None:
    with browser.new_context() as context, api(settings_of(tmp_path / "none")) as nothing:
        page = context.new_page()
        page.goto(nothing.url)
        expect(page.locator("#state-words")).to_have_text("No data yet")
        expect(page.locator(".map-panel")).to_contain_text("Nothing here yet")


FIRST = (".numbers .items dd", ".disc", ".story", ".cluster-card")  # figures, map, feed, cards
MOVED = "performance.getEntriesByType('resource').reduce((sum, one) => sum + one.transferSize, 0)"


def test_a_large_collection_loads_no_more_than_a_small_one(browser: Browser, tmp_path: Path) -> None:
    """How soon it shows something is measured by `benchmarks.bench_page`."""
    fill(tmp_path / "store", 200_000)
    with browser.new_context(**STILL) as context, elsewhere(settings_of(tmp_path / "store")) as url:
        until(lambda: httpx.get(f"{url}/v1/clusters?order=growth").is_success)  # it has counted growth
        tab = Tab(context, url)
        tab.open("")
        for selector in FIRST:
            expect(tab.page.locator(selector).first).to_be_visible()
        expect(tab.page.locator(".numbers .items dd")).to_have_text("200,000")
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
