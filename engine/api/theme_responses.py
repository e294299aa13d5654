"""What the API answers about themes, as the OpenAPI document shows it."""

from __future__ import annotations

from typing import Any

from engine.api.responses import ITEM, STAMP, example
from engine.storage import answers

THEME: dict[str, Any] = {
    "cluster": 42,
    "size": 55,
    "clusters": 2,
    "largest": [42, 51],
    "peak": "articles:7",
    "parent": None,
}


@example(**STAMP, clusters=[THEME], cursor=None, grouped=17)
class ThemePage(answers.ThemePage):
    """A page of themes: clusters that links join at a lower tau."""


@example(**STAMP, **THEME, children=[42, 51], grouped=17)
class Theme(answers.ThemeDetail):
    """A theme, and what it is made of."""


@example(**STAMP, **ITEM, grouped=17)
class ThemeItem(answers.ThemeItem):
    """An item, and the theme that it is in."""


@example(**STAMP, items=[ITEM, None], missing=["articles:8"], grouped=17)
class ThemeLookup(answers.ThemeLookup):
    """Many items of one version, and the themes that they are in."""
