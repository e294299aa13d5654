"""Every response has the security headers, refusals too."""

from __future__ import annotations

import pytest

from tests.support.asgi import Client


@pytest.mark.parametrize("host", [b"localhost", b"evil.example"])
def test_every_response_has_them(host: bytes) -> None:
    headers = Client().ask("/v1/levels", [(b"host", host)]).headers
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"referrer-policy"] == b"no-referrer"
    assert b"default-src 'self'" in headers[b"content-security-policy"]
