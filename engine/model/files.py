"""A model on disk: weights in a safetensors file, and a JSON card beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import InputError


def read(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the card of a model and the bytes of its weights. Raises InputError."""
    try:
        card, weights = json.loads(path.with_suffix(".json").read_text()), path.read_bytes()
    except OSError as error:
        raise InputError(f"the model {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} and its .json are not a Shoal model: {error}") from error
    if not isinstance(card, dict):
        raise InputError(f"{path} and its .json are not a Shoal model: the card is not an object")
    return card, weights


def write(path: Path, card: Mapping[str, Any], weights: bytes) -> None:
    """Write weights and card. Raises OSError."""
    path.write_bytes(weights)
    path.with_suffix(".json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n")
