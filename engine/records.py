"""JSON documents that come with records: kept only where an answer that holds them can be written."""

from __future__ import annotations

from typing import Any

import orjson


def dump(document: Any) -> bytes:
    """As JSON. Raises TypeError, saying why not.

    Reading takes deeper nesting than writing: room is left for the objects and lists around it.
    """
    try:
        return orjson.dumps([[[[[[[[document]]]]]]]], option=orjson.OPT_SERIALIZE_NUMPY)[8:-8]
    except TypeError as error:
        if "Recursion limit" in str(error):
            raise TypeError("it nests too deep, at most 200 levels are safe") from None
        raise


def fault(document: Any) -> str | None:
    """Why it cannot be kept."""
    try:
        dump(document)
    except TypeError as error:
        return str(error)
    return None
