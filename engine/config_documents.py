"""Documents of settings, section -> name -> value: nested, merged, and with new names for old ones."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

ENV_PREFIX = "SHOAL_"
ENV_DELIMITER = "__"

# Old names of sections and settings. They are understood for one release, with a line in the log.
RENAMED = {
    "bounds": "limits",
    "batch.least": "batch.min",
    "batch.most": "batch.max",
    "limits.probe_together": "limits.assign_together",
    "limits.probe_waiting": "limits.assign_waiting",
}


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return `{"index": {"kind": "exact"}}` for `{"index.kind": "exact"}`."""
    found: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, key = name.split(".")
        inner = found
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = value
    return found


def merged(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Return two documents as one; where both have a value, the upper one's."""
    found = dict(lower)
    for name, value in upper.items():
        both = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
        found[name] = merged(found[name], value) if both else value
    return found


def renamed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with new names in place of old ones, which are logged as deprecated."""
    found = {name: dict(value) if isinstance(value, Mapping) else value for name, value in document.items()}
    for old, new in RENAMED.items():
        section, _, key = old.partition(".")
        holder = found.get(section) if key else found
        name = key or section
        if not isinstance(holder, dict) or name not in holder:
            continue
        _log_old_name(old, new)
        name = new.rpartition(".")[2]
        value = {name: holder.pop(old.rpartition(".")[2])}
        holder[name] = merged(value, {name: holder[name]} if name in holder else {})[name]
    return found


@lru_cache
def _log_old_name(old: str, new: str) -> None:
    """Once in a process. Python's own logging: this module imports nothing of ours that is above it."""
    logging.getLogger("shoal").warning(
        f"the setting {old} is called {new} now; the next release does not know the old name"
    )


def old_variables() -> dict[str, Any]:
    """Return what environment variables with old names set, under the new names."""
    found = {}
    for variable, value in os.environ.items():
        path = variable[len(ENV_PREFIX) :].lower().split(ENV_DELIMITER)
        if variable.upper().startswith(ENV_PREFIX) and new_path(path) != path:
            found[".".join(path)] = value
    return renamed(nested(found))


def new_path(path: Sequence[str]) -> list[str]:
    """Return the names of section and setting as they are now."""
    section = RENAMED.get(path[0], path[0])
    return RENAMED.get(".".join([section, *path[1:]]), ".".join([section, *path[1:]])).split(".")
