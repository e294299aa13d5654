"""A model on disk: weights in a safetensors file, and a JSON card next to it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from engine.errors import InputError
from engine.system.files import written


def read(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the card of a model and the bytes of its weights. Raises InputError."""
    try:
        card, weights = json.loads(path.with_suffix(".json").read_text()), path.read_bytes()
    except OSError as error:
        file = path.with_suffix(".json")
        if path.is_file() and not file.exists():
            raise foreign(path, f"there is no card {file.name} next to the weights") from None
        raise InputError(f"the model {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise foreign(path, f"the card is no JSON: {error}") from error
    if not isinstance(card, dict):
        raise foreign(path, "the card is not an object")
    return card, weights


def require_known(path: Path, card: Collection[str], known: Collection[str]) -> None:
    """Raise InputError where a card has entries that this version of Shoal does not know."""
    if unknown := sorted(set(card) - set(known)):
        raise foreign(path, f"this version of Shoal does not know {', '.join(unknown)} of the card")


def foreign(path: Path, reason: object, kind: str = "Shoal") -> InputError:
    """Return the error of files that are no model; `reason`: words, or what was raised."""
    words = f"the weights lack {reason}" if isinstance(reason, KeyError) else str(reason)
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    words = lines[min(1, len(lines) - 1)]  # torch has a heading, and a line for each tensor
    return InputError(f"{path} and its .json are not a {kind} model: {words}")


def tagged_card(raw: bytes, form: str) -> dict[str, Any]:
    """Return the card in the metadata of a safetensors file. Raises KeyError, ValueError: another format."""
    head = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    card: dict[str, Any] = json.loads(head["__metadata__"]["shoal"])
    if card["format"] != form:
        raise ValueError(f"its format is {card['format']}, not {form}")
    return card


def write(path: Path, card: Mapping[str, Any], weights: bytes) -> None:
    """Write weights and card, each whole or not at all. Raises InputError."""
    text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
    for file, content in ((path, weights), (path.with_suffix(".json"), text.encode())):
        with written(file) as out:
            out.write(content)
