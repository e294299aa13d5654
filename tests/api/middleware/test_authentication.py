"""API keys: who is let in, and how the file of keys is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.api.middleware.authentication import Keys, read_keys
from engine.config import load
from engine.errors import ConfigError
from tests.support.asgi import Client

KEY = b"0123456789abcdef0123"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 401),
        ([(b"authorization", b"Bearer " + KEY)], 200),
        ([(b"authorization", b"bearer  " + KEY)], 200),
        ([(b"x-api-key", KEY)], 200),
        ([(b"x-api-key", KEY + b"x")], 401),
        ([(b"x-api-key", b"")], 401),
        ([(b"authorization", b"Bearer")], 401),
        ([(b"authorization", b"Basic " + KEY)], 401),
        ([(b"authorization", b"Bearer \xe4")], 401),
        ([(b"authorization", b"Bearer x"), (b"x-api-key", KEY)], 401),
    ],
)
def test_a_protected_path_needs_a_key(headers: list[tuple[bytes, bytes]], status: int) -> None:
    keys = Keys([b"another-another-another", KEY])
    for path in ("/v1/clusters", "/metrics", "/v1/nothing"):
        assert Client(keys=keys).ask(path, headers).status == status
    for path in ("/", "/livez", "/docs"):
        assert Client(keys=keys).ask(path, headers).status == 200


def test_an_address_that_others_reach_needs_a_key(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "10.1.2.3", "shoal.example"):
        with pytest.raises(ConfigError, match="key_file"):
            read_keys(load(None, {"api.host": host}).api)
    for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3"):
        assert not read_keys(load(None, {"api.host": host}).api)
    for text in ("", "short\n", "# only a comment\n"):
        (tmp_path / "key").write_text(text)
        with pytest.raises(ConfigError, match="16 characters"):
            read_keys(load(None, {"api.key_file": str(tmp_path / "key")}).api)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(load(None, {"api.key_file": str(tmp_path / "none")}).api)
