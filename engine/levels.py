"""The level that a request asks for: one of the hierarchy's, or so many above the final clusters."""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import index
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from engine.errors import InputError

Level = TypeVar("Level")

MOST, MOST_ABOVE = 64, 8
ABOUT = (
    "0 is the finest; none, or beyond the top: final clusters. +1, +2 ...: themes, so many levels above the "
    "final clusters; in an address also as %2B1."
)
SCHEMA = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": MOST},
        {"type": "string", "pattern": rf"^\+[1-{MOST_ABOVE}]$"},
        {"type": "null"},
    ],
    "description": ABOUT,
}


def read_level(given: Any) -> int | str | None:
    """Return a level of the hierarchy as a number, one above the final clusters as "+1", "+2" ...

    A plus in an address that is not percent-encoded arrives as a space. Raises PydanticCustomError.
    """
    if given is None:
        return None
    if not isinstance(given, bool) and hasattr(given, "__index__") and 0 <= index(given) <= MOST:
        return index(given)
    if isinstance(given, str):
        if re.fullmatch(rf"[+ ][1-{MOST_ABOVE}]", given):
            return f"+{given[1]}"
        if re.fullmatch("[0-9]{1,2}", given) and int(given) <= MOST:
            return int(given)
    raise PydanticCustomError(
        "level",
        f"0 to {MOST}, 0 the finest, or +1 to +{MOST_ABOVE}, so many levels above the final clusters",
    )


def read_finer(given: Any) -> int | None:
    """Return a level of the hierarchy. Raises PydanticCustomError, also for one above the final clusters."""
    try:
        level = read_level(given)
    except PydanticCustomError:
        level = ""
    if isinstance(level, str):
        raise PydanticCustomError(
            "level", f"0 to {MOST}, 0 the finest; exports and explanations take no level of themes"
        )
    return level


def read_above(given: str | None) -> str | None:
    """Return a level above the final clusters as it came. Raises PydanticCustomError: it is none."""
    if given is not None and not re.fullmatch(rf"[+ ][1-{MOST_ABOVE}]", given):
        raise PydanticCustomError("level", f"+1 to +{MOST_ABOVE}, so many levels above the final cluster")
    return given


def checked(given: Any, read: Callable[[Any], Level], name: str = "level") -> Level:
    """Return what `read` makes of a level. Raises InputError, which calls it `name`."""
    try:
        return read(given)
    except PydanticCustomError as problem:
        raise InputError(f"{name} is {problem.message()}, not {given!r}.") from None


def step_of(level: int | str | None) -> int:
    """Return how many levels above the final clusters it is; 0: it is none of these."""
    return int(level) if isinstance(level, str) else 0


def within(level: int | str | None) -> int | None:
    """Return a level that is none above the final clusters."""
    assert not isinstance(level, str)
    return level


LevelValue = Annotated[int | str | None, BeforeValidator(read_level), WithJsonSchema(SCHEMA)]
