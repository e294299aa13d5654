"""Errors cross a process as they are, and as a plain ShoalError where their class is unknown."""

from __future__ import annotations

import json

import pytest

from engine import errors
from engine.errors import ShoalError, dump, load


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
