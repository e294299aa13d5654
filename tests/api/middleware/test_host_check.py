"""Without keys the API answers under this machine's own names only."""

from __future__ import annotations

import pytest

from tests.support.asgi import Client


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", ""])
def test_another_name_is_refused(host: str) -> None:
    assert Client().ask("/v1/clusters", [(b"host", host.encode())]).status == 403
    assert Client().ask("/livez", [(b"host", host.encode())]).status == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8000", "shoal.localhost", "10.0.0.7"])
def test_an_address_or_an_own_name_is_answered(host: str) -> None:
    assert Client().ask("/v1/clusters", [(b"host", host.encode())]).status == 200


def test_of_two_headers_the_first_counts() -> None:
    assert Client().ask("/", [(b"host", b"localhost"), (b"host", b"evil.example")]).status == 200
    assert Client().ask("/", [(b"host", b"evil.example"), (b"host", b"localhost")]).status == 403
