"""Serialise settings for a child process."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from engine.config import Settings
from engine.config_documents import ENV_DELIMITER, ENV_PREFIX


def freeze(settings: Settings) -> str:
    """Return settings as JSON, secrets included."""
    return json.dumps(settings.model_dump(), default=_plain)


def thaw(text: str) -> Settings:
    """Return the settings in `text`; the environment must hold none, see `without_settings`."""
    return Settings(**json.loads(text))


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without variables that set settings."""
    return {
        name: value
        for name, value in environment.items()
        if not (name.upper().startswith(ENV_PREFIX) and ENV_DELIMITER in name)
    }


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Path):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} is no setting")
