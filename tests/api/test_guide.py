"""The guides as pages: on a real API, in a real browser."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, sync_playwright

from engine.api import guide
from tests.conftest import ROOT
from tests.support.live_api import Api, api, settings_of

AXE = (ROOT / "tests/vendor/axe/axe.min.js").read_text()
KEY = "0123456789abcdef"
PATHS = ["/guide", *(f"/guide/{name}" for name in guide.names())]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API without a store, which answers only to those with its key."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "keys").write_text(f"{KEY}\n")
    with api(settings_of(folder / "store", api__key_file=str(folder / "keys"))) as running:
        yield running


@pytest.mark.parametrize("path", PATHS)
def test_a_guide_is_a_page_that_needs_no_key(served: Api, path: str) -> None:
    page = served.http.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<h1 " in page.text
    policies = page.headers.get_list("content-security-policy")
    assert len(policies) == 2, "the API's own, and a stricter one; a browser enforces both"
    assert any(policy.startswith("default-src 'none'") for policy in policies)
    head = served.http.head(path)
    assert (head.status_code, head.text) == (200, "")
    assert head.headers["content-length"] == page.headers["content-length"]
    assert served.http.get("/v1/summary").status_code == 401


@pytest.mark.parametrize("path", PATHS)
def test_links_of_a_page_lead_somewhere(served: Api, path: str) -> None:
    """Between guides, to their headings, to the page and the API; and what the page loads."""
    text = served.http.get(path).text
    for target in re.findall(r'(?:href|src)="([^"]+)"', text):
        if target.startswith("https://"):
            continue
        url = urlsplit(urljoin(path, target))
        found = served.http.get(url.path, follow_redirects=True)
        assert found.status_code == 200, target
        if url.fragment and url.path.startswith("/guide"):
            assert f'id="{url.fragment}"' in found.text, target


def test_every_guide_is_in_the_index() -> None:
    files = {file.stem for file in guide.GUIDES.glob("*.md")} - {guide.INDEX}
    assert sorted(files) == sorted(re.findall(r"\]\((\w+)\.md\)", (guide.GUIDES / "index.md").read_text()))


def test_the_page_leads_to_the_guides(served: Api) -> None:
    assert '<a href="guide">' in served.http.get("/").text
    slash = served.http.get("/guide/")
    assert urljoin(str(slash.url), slash.headers["location"]).removeprefix(served.url) == "/guide"


@pytest.mark.parametrize(
    "name", ["nothing", "index", "../../pyproject", "concepts.md", "%2e%2e%2fARCHITECTURE"]
)
def test_what_is_no_guide_is_not_found(served: Api, name: str) -> None:
    with httpx.Client(base_url=served.url) as http:
        assert http.get(f"/guide/{name}").status_code == 404


def test_html_in_a_guide_is_shown() -> None:
    shown = guide.render("# A <b>title</b>\n\n<script>alert(1)</script>\n\n[a](javascript:alert(1)) `<i>`")
    assert "<script>" not in shown
    assert "<b>" not in shown
    assert "href" not in shown
    assert "&lt;i&gt;" in shown


def test_links_and_headings() -> None:
    shown = guide.render("# Exit codes, all\n\n[b](files.md#formats) [c](https://a.org/x.md)", "guide/")
    assert 'id="exit-codes-all"' in shown
    assert 'href="guide/files#formats"' in shown
    assert 'href="https://a.org/x.md"' in shown


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium")
    if found is None:
        pytest.fail("The guides are tested in Chromium: install it (on Debian: apt-get install chromium).")
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=root)
        yield launched
        launched.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_guides_can_be_read_in_a_browser(
    served: Api, browser: Browser, scheme: str, width: int, tmp_path: Path
) -> None:
    """Nothing is refused by the policy, nothing runs off the side, and axe finds nothing serious."""
    page = browser.new_page(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        bypass_csp=False,  # type: ignore[arg-type]
    )
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    for path in ("/guide", "/guide/operations"):
        page.goto(served.url + path)
        page.evaluate("document.fonts.ready")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        page.evaluate(AXE)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        grave = [(rule["id"], node["html"]) for rule in found if rule["impact"] in ("serious", "critical")
                 for node in rule["nodes"]]  # fmt: skip
        assert not grave, grave
        if shots := os.environ.get("GUIDE_SHOTS"):
            page.screenshot(path=f"{shots}/{path.replace('/', '_')}-{scheme}-{width}.png")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(10, 19, 21)") == (scheme == "dark")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background
    assert not complaints
    page.close()
