"""schemathesis over the whole OpenAPI document: no 5xx, no answer outside its schema, whatever is asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from engine.api.app import describe, make_routes
from engine.api.context import Context
from tests.support.live_api import Api, api, settings_of, writer
from tests.support.records import NDJSON, blobs, lines

EXAMPLES, LONG_EXAMPLES = 10, 300
SEED = 5
pytestmark = pytest.mark.usefixtures("warm")  # an export is a process
ANY_TEXT = "POST /v1/items"  # its lines are refused one by one, in an answer that is none of an error
NOTHING_TO_VIOLATE = {
    "GET /livez",
    "GET /readyz",
    "GET /metrics",
    "GET /v1/summary",
    "GET /v1/levels",
    "GET /v1/map",
    "DELETE /v1/items/{key}",
}


def document() -> dict[str, Any]:
    return describe(make_routes(Context(settings_of(Path("unused"), source__http=True))))


NAMES = [f"{method.upper()} {path}" for path, methods in document()["paths"].items() for method in methods]


@pytest.fixture(scope="module")
def operations() -> dict[str, Any]:
    """All of the document, by name. To import schemathesis takes seconds: not while tests are collected."""
    import schemathesis

    @schemathesis.serializer("application/x-ndjson")
    def ndjson(context: Any, value: Any) -> bytes:
        return value if isinstance(value, bytes) else str(value).encode()

    found = {
        one.ok().label: one.ok() for one in schemathesis.openapi.from_dict(document()).get_all_operations()
    }
    assert sorted(found) == sorted(NAMES)
    assert len(found) == 18
    return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A small collection with a real writer."""
    from tests.support.random_models import random_model

    folder = tmp_path_factory.mktemp("schema")
    random_model(7).save(folder / "model.safetensors")
    chosen = settings_of(folder / "store", model__path=str(folder / "model.safetensors"), source__http=True)
    with writer(chosen), api(chosen) as found:
        found.wait_ready()
        rows = [{"key": f"{n}", "embedding": vector.tolist()} for n, vector in enumerate(blobs(SEED, 60))]
        assert found.http.post("/v1/items", content=lines(rows), headers=NDJSON).status_code == 200
        found.wait_counted()
        yield found


@pytest.mark.parametrize("name", NAMES)
def test_what_fits_is_answered_as_documented(
    served: Api, operations: dict[str, Any], name: str, long: bool
) -> None:
    ask(served, operations[name], "POSITIVE", LONG_EXAMPLES if long else EXAMPLES)


@pytest.mark.parametrize("name", sorted(set(NAMES) - NOTHING_TO_VIOLATE))
def test_what_does_not_fit_is_refused_as_documented(
    served: Api, operations: dict[str, Any], name: str, long: bool
) -> None:
    ask(served, operations[name], "NEGATIVE", LONG_EXAMPLES if long else EXAMPLES)


def ask(served: Api, operation: Any, mode: str, examples: int) -> None:
    """So many requests, drawn from the schema, or against it."""
    from schemathesis import GenerationMode, checks

    # What fits the schema need not fit the state: a cursor, a dimension, an event that has not happened yet.
    unchecked = [checks.positive_data_acceptance]
    if operation.label == ANY_TEXT:
        unchecked.append(checks.negative_data_rejection)
    requests = operation.as_strategy(generation_mode=GenerationMode[mode])

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        data.draw(requests).call_and_validate(base_url=served.url, timeout=120, excluded_checks=unchecked)

    check()
