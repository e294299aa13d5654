"""A browser for all tests of the page, and an API with a writer behind it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from tests.support.live_api import Api, api, settings_of, writer
from tests.support.page import ODD_KEYS, SEED, Tab, post, records

POLICY = (  # stricter than the API's own
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; font-src 'self'; "
    "img-src 'self' data: http: https:; form-action 'self'; base-uri 'none'"
)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A store whose writer runs, with items of all kinds; and the flags it is opened with."""
    from tests.support.random_models import random_model

    folder = tmp_path_factory.mktemp("page")
    random_model(7).save(folder / "model.safetensors")
    flags = {"model__path": str(folder / "model.safetensors"), "source__http": True}
    with writer(settings_of(folder / "store", **flags)):
        yield folder / "store", flags


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="module")
def contexts(browser: Browser) -> Iterator[dict[str, BrowserContext]]:
    """Contexts of the browser, by their options: each new one costs a second of processor time."""
    found: dict[str, BrowserContext] = {}
    yield found
    for context in found.values():
        context.close()


@pytest.fixture
def tab(
    browser: Browser, served: Api, contexts: dict[str, BrowserContext], request: pytest.FixtureRequest
) -> Iterator[Tab]:
    """Parametrized with options of the browser's context."""
    options = getattr(request, "param", {})
    if repr(options) not in contexts:
        contexts[repr(options)] = browser.new_context(**options)
        contexts[repr(options)].route(served.url + "/", _with_strict_policy)
    found = Tab(contexts[repr(options)], served.url)
    yield found
    found.page.evaluate("localStorage.clear()")
    found.page.close()


def _with_strict_policy(route: Any) -> None:
    answer = route.fetch()
    route.fulfill(response=answer, headers={**answer.headers, "content-security-policy": POLICY})
