"""What is wrong with settings, in one sentence that names setting, value and origin."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from engine.config_documents import ENV_DELIMITER, ENV_PREFIX, new_path
from engine.errors import ConfigError

Sections = type[BaseModel]  # the model of all settings


def refuse_unknown_variables(settings: Sections) -> None:
    """Raise ConfigError where a variable sets nothing.

    Cluster managers set SHOAL_PORT and the like where a service is called so.
    """
    for variable, value in os.environ.items():
        if not variable.upper().startswith(ENV_PREFIX) or _is_of_a_service(variable, value):
            continue
        *path, key = new_path(variable[len(ENV_PREFIX) :].lower().split(ENV_DELIMITER))
        if key not in {name.lower() for name in keys_of(settings, path)}:
            raise ConfigError(
                f"The environment variable {variable} sets nothing: {_meant(settings, variable, path)}."
            )


def _is_of_a_service(variable: str, value: str) -> bool:
    """Whether Kubernetes or Docker made it: the address of a service."""
    if ENV_DELIMITER in variable:
        return False
    address = value.startswith(("tcp://", "udp://", "sctp://"))
    return address or bool(re.search(r"_SERVICE_(HOST|PORT)|_PORT_\d+_(TCP|UDP|SCTP)", variable))


def _meant(settings: Sections, variable: str, path: Sequence[str]) -> str:
    """Say what may be meant: one underscore in place of two is the likeliest slip."""
    known = {name.replace(ENV_DELIMITER, "_"): name for name in _variables(settings)}
    near = get_close_matches(variable.upper().replace(ENV_DELIMITER, "_"), known, 1, 0.9)
    return f"set {known[near[0]]} if that is meant, or unset it" if near else _known(settings, path)


def _variables(settings: Sections, path: Sequence[str] = ()) -> Iterator[str]:
    """Return the variables of all settings."""
    for name in keys_of(settings, path):
        if keys_of(settings, [*path, name]):
            yield from _variables(settings, [*path, name])
        else:
            yield _variable([*path, name])


def sentence_of(
    problem: ValidationError, origins: Mapping[str, Mapping[str, Any]], settings: Sections
) -> str:
    """Return the first error. `origins`: documents other than the environment, by name; later ones win."""
    error = problem.errors()[0]
    where = [str(part) for part in error["loc"]]
    fields = [part for part in error["loc"] if isinstance(part, str)]  # without places in lists
    name, kind = ".".join(where), error["type"]
    if kind == "extra_forbidden":
        return f"There is no setting {name} (in {_origin(fields, origins)}): {_known(settings, fields[:-1])}."
    if kind == "missing":
        origin = _origins(fields[:-1], origins)
        return f"The setting {name} is missing (in {origin}): {_known(settings, fields[:-1])}."
    told = str(error["ctx"]["error"]) if kind == "value_error" else error["msg"]
    if kind == "value_error" and keys_of(settings, fields):
        return f"The settings of [{name}] (in {_origins(fields, origins)}) do not fit: {told}."
    if kind == "model_type":
        told = "it has to be a table"
    if kind == "list_type":
        told = "it has to be a list, in brackets and with commas"
    origin = _origin(fields, origins)
    value = "..." if "password" in name else repr(error["input"])
    return f"The setting {name} = {value} (in {origin}) is refused: {told[:1].lower() + told[1:]}."


def keys_of(settings: Sections, path: Sequence[str]) -> list[str]:
    """Return the settings of a section, ["index"] or ["source", "kafka"]; none: there is no such section."""
    section: Sections | None = settings
    for name in path:
        field = section.model_fields.get(name) if section else None
        kinds = (field.annotation, *get_args(field.annotation)) if field else ()
        section = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
    return list(section.model_fields) if section else []


def _known(settings: Sections, path: Sequence[str]) -> str:
    keys = keys_of(settings, path)
    if keys and path:
        return f"[{'.'.join(path)}] has {', '.join(keys)}"
    return f"the sections are {', '.join(settings.model_fields)}"


def _origin(where: Sequence[str], origins: Mapping[str, Mapping[str, Any]]) -> str:
    """Return where a value came from."""
    *lower, last = origins
    variable = _variable(where)
    if _has(origins[last], where):
        return last
    if any(variable == present.upper() for present in os.environ):
        return f"the environment variable {variable}"
    return next((name for name in lower if _has(origins[name], where)), "the environment")


def _origins(where: Sequence[str], origins: Mapping[str, Mapping[str, Any]]) -> str:
    """Return all places that say something of a section."""
    found = [name for name, document in origins.items() if _has(document, where)]
    variable = _variable(where)
    if any(
        f"{present.upper()}{ENV_DELIMITER}".startswith(f"{variable}{ENV_DELIMITER}") for present in os.environ
    ):
        found.append("the environment")
    return " and ".join(found) or "the environment"


def _variable(where: Sequence[str]) -> str:
    return f"{ENV_PREFIX}{ENV_DELIMITER.join(where)}".upper()


def _has(given: Any, where: Sequence[str]) -> bool:
    for part in where:
        if not isinstance(given, Mapping) or part not in given:
            return False
        given = given[part]
    return True
