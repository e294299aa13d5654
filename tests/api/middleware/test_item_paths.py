"""Paths of items are routed as they came; others decoded."""

from __future__ import annotations

import pytest

from tests.support.asgi import Client


@pytest.mark.parametrize(
    ("raw", "routed"),
    [
        (b"/v1/items/a%2Fb", "/v1/items/a%2Fb"),
        (b"/v1/items/%252F", "/v1/items/%252F"),
        (b"/v1/items/a/explain", "/v1/items/a/explain"),
        (b"/v1/clusters/%34", "/v1/clusters/4"),
    ],
)
def test_the_path_that_is_routed(raw: bytes, routed: str) -> None:
    assert Client().ask(raw.decode()).path == routed
