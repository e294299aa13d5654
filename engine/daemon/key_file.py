"""The file of API keys. It imports no web framework: the daemon's small process reads it before all else."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from pathlib import Path

from engine.config import ApiSettings
from engine.errors import ConfigError

KEY_MIN_CHARS = 16


def read(settings: ApiSettings) -> list[bytes]:
    """Return the keys; none: none is needed. Raises ConfigError: one is needed and missing, or unusable."""
    path = settings.key_file
    if path is None:
        if not is_loopback(settings.host):
            raise ConfigError(
                f"[api] host = {settings.host!r} can be reached from elsewhere: name a file with the "
                "API key in [api] key_file, or set the host to 127.0.0.1."
            )
        return []
    keys = _lines(path)
    if not keys or min(map(len, keys)) < KEY_MIN_CHARS:
        raise ConfigError(
            f"{path} must hold an API key of {KEY_MIN_CHARS} characters or more, one a line: "
            f"`openssl rand -hex 32 > {path}` makes one."
        )
    return keys


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host."""
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _lines(path: Path) -> list[bytes]:
    try:
        lines = [line.strip() for line in path.read_bytes().splitlines()]
    except OSError as error:
        raise ConfigError(f"The API key in {path} cannot be read: {error.strerror}.") from None
    return [line for line in lines if line and not line.startswith(b"#")]
