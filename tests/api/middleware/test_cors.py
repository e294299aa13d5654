"""Pages of other origins may ask where a setting names them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from engine.api.middleware.authentication import Keys
from tests.support.asgi import Client

ORIGIN = "https://app.example"
PREFLIGHT = [
    (b"origin", ORIGIN.encode()),
    (b"access-control-request-method", b"PUT"),
    (b"access-control-request-headers", b"authorization, content-type, content-encoding"),
]


def test_a_named_origin_is_let_in_before_any_key_is_asked_for() -> None:
    client = Client(keys=Keys([b"0123456789abcdef"]), settings={"cors_origins": [ORIGIN]})
    preflight = client.ask("/v1/items/a", PREFLIGHT, method="OPTIONS")
    assert preflight.status == 200
    assert preflight.headers[b"access-control-allow-origin"] == ORIGIN.encode()
    assert b"PUT" in preflight.headers[b"access-control-allow-methods"]
    refused = client.ask("/v1/levels", [(b"origin", ORIGIN.encode())])
    assert refused.status == 401
    assert refused.headers[b"access-control-allow-origin"] == ORIGIN.encode(), "a page may read why"
    assert b"Shoal-Version" in refused.headers[b"access-control-expose-headers"], "the version of an export"


@pytest.mark.parametrize("settings", [{}, {"cors_origins": ["https://other.example"]}])
def test_others_are_not(settings: dict[str, object]) -> None:
    found = Client(settings=settings).ask("/v1/levels", [(b"origin", ORIGIN.encode())])
    assert b"access-control-allow-origin" not in found.headers


def test_everybody_is_let_in_only_with_a_key() -> None:
    with pytest.raises(ValidationError, match="key_file"):
        Client(settings={"cors_origins": ["*"]}).ask("/")
    client = Client(
        keys=Keys([b"0123456789abcdef"]), settings={"cors_origins": ["*"], "key_file": Path("keys")}
    )
    assert client.ask("/", [(b"origin", ORIGIN.encode())]).headers[b"access-control-allow-origin"] == b"*"
