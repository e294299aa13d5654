"""Request bodies that cannot be used: refused with a sentence, whatever is in them and however they come."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from connectors.records import Unusable, checked_payload
from engine import bodies
from engine.answers import PutRequest
from engine.bulk import Piece
from engine.config import BoundsSettings
from engine.problems import Problem


def nested(levels: int) -> Any:
    return orjson.loads(b"[" * levels + b"1" + b"]" * levels)


@pytest.mark.parametrize("levels", [250, 252, 254, 300, 1000])
def test_a_payload_that_no_answer_could_hold_is_refused(levels: int) -> None:
    with pytest.raises(Unusable, match="the payload is not JSON: it nests too deep"):
        checked_payload(nested(levels), BoundsSettings())
    with pytest.raises(Problem, match="payload: it nests too deep"):
        bodies.fields(PutRequest, {"embedding": [1.0], "payload": nested(levels)})
    for name in "payload", "time":
        piece = Piece(1)
        piece.take(b'{"key": "a", "embedding": [1.0], "%b": %b}' % (name.encode(), deep(levels)))
        ((line, reason),) = piece.refused
        assert line == 1
        assert reason.startswith(f"the {name} ")


def deep(levels: int) -> bytes:
    return b"[" * levels + b"1" + b"]" * levels


def test_a_deep_payload_is_kept_as_it_is() -> None:
    assert checked_payload(nested(245), BoundsSettings()) == deep(245)
    given = bodies.fields(PutRequest, {"embedding": [1.0], "payload": nested(245)})
    assert given["payload"] == nested(245)


@pytest.mark.parametrize("value", ["99999999999999999999", "5", True, 5.5, 2**62, 1e30])
def test_a_time_is_a_number_of_milliseconds(value: object) -> None:
    with pytest.raises(Problem, match="time: "):
        bodies.fields(PutRequest, {"embedding": [1.0], "time": value})
    assert bodies.fields(PutRequest, {"embedding": [1.0], "time": -5})["time"] == -5
