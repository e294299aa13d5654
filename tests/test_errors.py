"""Errors cross a process as they are, and as a plain ShoalError where their class is unknown."""

from __future__ import annotations

import json

import pytest

from engine import errors
from engine.errors import ShoalError, counted, dump, load


def every_error() -> list[type[ShoalError]]:
    found = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [kind for kind in found if issubclass(kind, ShoalError)]


@pytest.mark.parametrize("kind", every_error())
def test_an_error_comes_out_as_it_went_in(kind: type[ShoalError]) -> None:
    error = load(json.loads(json.dumps(dump(kind("a sentence: with a colon")))))
    assert type(error) is kind
    assert str(error) == "a sentence: with a colon"


@pytest.mark.parametrize("name", ["OfALaterRelease", "Mapping", "dump", "Unusable", "__builtins__"])
def test_another_name_is_no_way_to_another_class(name: str) -> None:
    error = load({"error": name, "sentence": "why"})
    assert type(error) is ShoalError
    assert str(error) == "why"


def test_what_is_counted_is_plural_unless_it_is_one() -> None:
    assert [counted(number, "item") for number in (0, 1, 2, 1200)] == [
        "0 items", "1 item", "2 items", "1,200 items",
    ]  # fmt: skip
    assert [counted(number, "class", "classes") for number in (1, 2)] == ["1 class", "2 classes"]
