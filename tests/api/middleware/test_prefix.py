"""A prefix of the path: stripped by a proxy or not, told by a setting or by a header."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from engine.api.middleware.authentication import Keys
from tests.support.asgi import Client

FORWARDED = b"x-forwarded-prefix"


@pytest.mark.parametrize("raw", ["/shoal/v1/items/a%2Fb", "/v1/items/a%2Fb"])
@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({"root_path": "/shoal"}, []),
        ({"forwarded_prefix": True}, [(FORWARDED, b"/shoal")]),
        ({"forwarded_prefix": True}, [(FORWARDED, b"/shoal/, /other")]),
        ({"forwarded_prefix": True, "root_path": "/other"}, [(FORWARDED, b"/shoal")]),
    ],
)
def test_a_prefix_is_stripped_and_told(raw: str, settings: dict[str, object], headers: list) -> None:
    found = Client(settings=settings).ask(raw, headers)
    assert found.path == "/v1/items/a%2Fb"
    assert found.state["prefix"] == "/shoal"


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({}, [(FORWARDED, b"/shoal")]),
        ({"forwarded_prefix": True}, [(FORWARDED, b"https://evil.example")]),
        ({"forwarded_prefix": True}, [(FORWARDED, b"//evil.example")]),
        ({"forwarded_prefix": True}, [(FORWARDED, b"")]),
        ({"root_path": "/sho"}, []),
    ],
)
def test_nothing_else_is_a_prefix(settings: dict[str, object], headers: list) -> None:
    found = Client(settings=settings).ask("/shoal/docs", headers)
    assert found.path == "/shoal/docs"
    assert found.state.get("prefix", "") in ("", "/sho")


def test_what_is_protected_is_so_below_a_prefix_too() -> None:
    client = Client(keys=Keys([b"0123456789abcdef"]), settings={"root_path": "/shoal"})
    for path in ("/v1/levels", "/shoal/v1/levels", "/shoal/metrics"):
        assert client.ask(path).status == 401


@pytest.mark.parametrize("prefix", ["shoal", "/shoal/", "/", "/a b", "//a"])
def test_a_prefix_has_a_form(prefix: str) -> None:
    with pytest.raises(ValidationError, match="root_path"):
        Client(settings={"root_path": prefix}).ask("/")
