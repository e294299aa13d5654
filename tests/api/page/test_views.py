"""Views of the page in a real Chromium, on a real API with a real writer behind it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.live_api import Api
from tests.support.page import AXE, HOSTILE, ODD_KEYS, STILL, VIEWS, Tab
from tests.support.waiting import until


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("tab", [STILL | {"color_scheme": "light"}], indirect=True)
def test_every_view_opens_without_a_complaint_and_for_everybody(
    tab: Tab, places: dict[str, str], view: str
) -> None:
    page = tab.open(VIEWS[view].format(**places))
    for details in page.locator("details").all():
        details.evaluate("node => { node.open = true }")
    page.evaluate(AXE)
    light = page.evaluate(BACKGROUND)
    assert not grave(page), "in the light"
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(BACKGROUND) != light
    assert not grave(page), "in the dark"
    assert not tab.complaints, tab.complaints
    assert {url for url in tab.asked if not url.startswith((tab.base, "data:"))} == set()
    assert page.evaluate("window.hacked") is None


def test_nothing_moves_while_nothing_comes(tab: Tab, places: dict[str, str]) -> None:
    """An animation without end keeps a core busy for as long as the page is open."""
    for view in ("live", "clusters", "cluster", "map", "changes"):
        page = tab.open(VIEWS[view].format(**places))
        until(lambda page=page: page.evaluate(IS_STILL), limit_s=30.0)


IS_STILL = """document.getAnimations().every(
    animation => animation.playState !== "running" || animation.effect.getTiming().iterations !== Infinity
)"""
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def grave(page: Page) -> list[tuple[str, str, str]]:
    """What axe finds serious."""
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        (rule["id"], node["html"], node["failureSummary"])
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def test_a_phone_shows_every_view_without_scrolling_sideways(
    browser: Browser, served: Api, places: dict[str, str]
) -> None:
    width = 320
    phone = {"viewport": {"width": width, "height": 640}, "is_mobile": True, "has_touch": True, **STILL}
    with browser.new_context(**phone) as context:
        tab = Tab(context, served.url)
        for view in VIEWS.values():
            page = tab.open(view.format(**places))
            tab.draw()
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
        tab.draw()
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


def test_an_address_that_is_cut_off_leads_to_no_view(tab: Tab) -> None:
    for address in ("#/items/%ff", "#/items/a%"):
        expect(tab.open(address).locator("h1")).to_have_text("There is no such view")
    assert tab.complaints == []


def test_tau_is_shown_as_other_probabilities_are(tab: Tab) -> None:
    refused = {"verdict": "below-tau", "linkage": 0.5, "key": "b", "cluster": 2, "density": 0.2}
    level = {"level": 0, "key": "a", "tau": 0.612345678, "density": 0.1, "chain_links": 0, "chain": []}
    script = """async found => {
        const module = document.querySelector("script[type=module]").src.replace("main.js", "explanation.js");
        const nodes = (await import(module)).explanation(found, new AbortController().signal);
        return nodes.map(node => node.textContent).join(" ");
    }"""
    levels = [{**level, "neighbors": [], "refused": refused}]
    told = tab.open("#/").evaluate(script, {"cluster": 1, "levels": levels})
    assert "items, τ = 0.612" in told
    assert "p 0.500 does not exceed τ = 0.612." in told


def test_a_peak_that_others_lead_to_does_not_stand_for_itself(tab: Tab) -> None:
    level = {
        "level": 0,
        "key": "a",
        "tau": 0.6,
        "density": 0.1,
        "chain_links": 0,
        "chain": [],
        "neighbors": [],
    }
    script = """async found => {
        const module = document.querySelector("script[type=module]").src.replace("main.js", "explanation.js");
        return (await import(module)).explanation(found, new AbortController().signal)[0].textContent;
    }"""
    page = tab.open("#/")
    alone = page.evaluate(script, {"cluster": 7, "levels": [{**level, "size": 1}]})
    assert alone == "It links to nothing, so it stands for itself: #7."
    led = page.evaluate(script, {"cluster": 7, "levels": [{**level, "size": 1}, {**level, "size": 9}]})
    assert led == "It is the peak of #7: others lead to it, and it links to nothing."


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
    expect(page.locator("#state-words")).to_have_text("Live")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.reload()
    tab.settle()
    expect(page.locator("#state-words")).to_have_text("Live")
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
    before = page.evaluate(BACKGROUND)
    page.locator("#theme").click()
    after = page.evaluate(BACKGROUND)
    assert before != after
    page.reload()
    assert page.evaluate(BACKGROUND) == after


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
    page.locator("button.more").click()
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.locator("button.more")).to_be_hidden()
    expect(page.locator(".members .card")).to_have_count(2)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".members .card").nth(2)).to_be_attached()
    expect(page.get_by_role("alert")).to_have_count(0)
