"""Kinds of values that settings have: paths, addresses, numbers. Each refuses with what it has to be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

PREFIX = r"(/[A-Za-z0-9._~-]+)+"  # of a path
SECONDS_MAX = 4e9  # a century; more than this, and clocks and time limits overflow
NUMBER_MAX = 2**62
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")  # control characters

_SERVER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\],]+)(:[0-9]{1,5})?|[0-9A-Fa-f]*(:[0-9A-Fa-f]*){2,}")


def expanded(path: str | Path) -> Path:
    """Return the path with ~ replaced by the home folder. Raises ValueError: there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as problem:
        raise ValueError(str(problem).rstrip(".")) from None


def need_number(value: Any, annotation: Any) -> Any:
    """Raise PydanticCustomError where a truth value is given for a number; Python would take 0 or 1."""
    if isinstance(value, bool) and {int, float} & {annotation, *get_args(annotation)}:
        raise PydanticCustomError("number", "it has to be a number")
    return value


def need_finite(value: Any, name: str) -> Any:
    """Raise PydanticCustomError where a number is larger than clocks, or counters of 64 bits, can take."""
    most = SECONDS_MAX if name.endswith("_s") else NUMBER_MAX
    if isinstance(value, int | float) and value > most:
        raise PydanticCustomError("most", "input should be at most {most}", {"most": f"{most:.0f}"})
    return value


def _need_path(value: Any) -> Any:
    if value == "":
        raise PydanticCustomError("no_path", "it has to be a path; leave it out for the default")
    return value


def _read_name(text: str) -> str:
    if CONTROL.search(text):
        raise PydanticCustomError("name", "it has a control character; leave it out")
    return text


def _read_servers(text: str) -> str:
    for each in text.split(","):
        match = _SERVER.fullmatch(each.strip())
        if not match or not 0 < int((match[2] or ":9092")[1:]) < 2**16:
            raise PydanticCustomError("servers", "it has to be host:port, more of them with commas")
    return text


def _read_topic(text: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9._-]+", text) or text in (".", ".."):
        raise PydanticCustomError(
            "topic",
            "a name has letters, digits, dots, underscores and hyphens, and more than one or two dots",
        )
    return text


def _read_url(text: str) -> str:
    if not re.fullmatch(r"https?://[^/\s]+\S*", text):
        raise PydanticCustomError("url", "it has to be an address like http://localhost:8081")
    return text


def _read_prefix(text: str) -> str:
    if text and not re.fullmatch(PREFIX, text):
        raise PydanticCustomError(
            "prefix", "it has to be a path like /shoal, without a slash at the end; or empty"
        )
    return text


def _read_origin(text: str) -> str:
    if text not in ("*", "null") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", text):
        raise PydanticCustomError(
            "origin", "it has to be an origin like https://example.com, without a path or a slash at the end"
        )
    return text


HomePath = Annotated[Path, BeforeValidator(_need_path), AfterValidator(expanded)]
MaybePath = Annotated[HomePath | None, BeforeValidator(lambda value: None if value == "" else value)]
Name = Annotated[str, AfterValidator(_read_name)]  # it is shown on terminals
Servers = Annotated[str, AfterValidator(_read_servers)]
Topic = Annotated[str, Field(max_length=230), AfterValidator(_read_topic)]
RegistryUrl = Annotated[str, AfterValidator(_read_url)]
Prefix = Annotated[str, AfterValidator(_read_prefix)]
CorsOrigins = list[Annotated[str, AfterValidator(_read_origin)]]
