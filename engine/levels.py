"""Parse the `level` parameter: a hierarchy level (0, 1, ...) or a theme level (+1, +2, ...)."""

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
    "Hierarchy level, 0 is the finest; omitted or above the top: the final clusters. +1, +2, ... select "
    "themes that many levels above them (encode the plus as %2B in URLs)."
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
    """Return a hierarchy level as an int, a theme level as "+1", "+2", ..., and None unchanged.

    A plus in a URL that is not percent-encoded arrives as a space. Raises PydanticCustomError.
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
    """Return a hierarchy level or None. Raises PydanticCustomError, also for a theme level."""
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
    """Return a theme level as given, or None. Raises PydanticCustomError for anything else."""
    if given is not None and not re.fullmatch(rf"[+ ][1-{MOST_ABOVE}]", given):
        raise PydanticCustomError("level", f"+1 to +{MOST_ABOVE}, so many levels above the final cluster")
    return given


def checked(given: Any, read: Callable[[Any], Level], name: str = "level") -> Level:
    """Return `read(given)`. Raises InputError instead of PydanticCustomError; `name`: the parameter's."""
    try:
        return read(given)
    except PydanticCustomError as problem:
        raise InputError(f"{name} is {problem.message()}, not {given!r}.") from None


def step_of(level: int | str | None) -> int:
    """Return how many levels above the final clusters a theme level is; 0 for any other level."""
    return int(level) if isinstance(level, str) else 0


def within(level: int | str | None) -> int | None:
    """Return a level that the caller knows to be no theme level."""
    assert not isinstance(level, str)
    return level


LevelValue = Annotated[int | str | None, BeforeValidator(read_level), WithJsonSchema(SCHEMA)]
