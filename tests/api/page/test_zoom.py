"""The zoom: from the finest groups over the clusters to themes, by keyboard, and into a theme."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.support.live_api import Api
from tests.support.page import Tab


def test_the_keyboard_zooms_from_the_finest_groups_to_themes(tab: Tab, served: Api) -> None:
    levels = served.http.get("/v1/levels").json()
    page = tab.open("#/clusters")
    links = page.locator(".zoom a")
    expect(links).to_have_count(len(levels["levels"]) + len(levels["coarser"]))
    expect(page.locator(".zoom a[aria-current=page]")).to_have_text("Clusters")
    for name, level in (("Finest", "0"), ("Themes", "+1"), ("Wider themes", "+2")):
        link = page.locator(".zoom").get_by_role("link", name=name, exact=True)
        link.focus()
        page.keyboard.press("Enter")
        expect(page.locator(".zoom a[aria-current=page]")).to_have_text(name)
        rows = served.http.get("/v1/clusters", params={"level": level, "limit": "1000"}).json()["clusters"]
        expect(page.locator(".cluster-card")).to_have_count(min(24, len(rows)))
        what = "Theme" if level.startswith("+") else "Cluster"
        expect(page.locator(".cluster-card h3").first).to_have_text(f"{what} {rows[0]['cluster']}")
    assert not tab.complaints, tab.complaints


def test_a_theme_leads_to_its_clusters(tab: Tab, served: Api) -> None:
    theme = served.http.get("/v1/clusters", params={"level": "+1"}).json()["clusters"][0]
    parts = served.http.get(f"/v1/clusters/{theme['cluster']}", params={"level": "+1"}).json()["children"]
    page = tab.open("#/clusters/at/+1")
    page.get_by_role("link", name=f"Theme {theme['cluster']}", exact=True).click()
    expect(page.locator("h1")).to_have_text(f"Theme {theme['cluster']}")
    expect(page.locator(".cluster-card h3")).to_have_text([f"Cluster {part}" for part in parts[:24]])
    assert not tab.complaints, tab.complaints
