"""Parameters that several routes take, validated and documented once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import Depends, Path, Query
from pydantic import AfterValidator, BaseModel, BeforeValidator
from pydantic_core import PydanticCustomError

from engine.api import bodies
from engine.api.context import Config
from engine.api.problems import Problem, documented, of_error
from engine.errors import NotFound
from engine.events import read_event_id
from engine.levels import ABOUT, MOST_ABOVE, LevelValue, read_above, read_finer

MAX_ID = 2**63 - 1


def read_place(text: str | None) -> str | None:
    """Return an event's id as it came. Raises PydanticCustomError: it is none."""
    try:
        if text is not None:
            read_event_id(text)
    except ValueError as problem:
        raise PydanticCustomError("place", "{sentence}", {"sentence": str(problem)}) from None
    return text


Id = Annotated[int, Path(ge=1, le=MAX_ID, openapi_examples={"one": {"value": 42}})]
Level = Annotated[
    int | None,
    BeforeValidator(read_finer),
    Query(ge=0, le=64, description="0 is the finest; none, or beyond the top: final clusters."),
]
AnyLevel = Annotated[LevelValue, Query(description=ABOUT)]
ThemeLevel = Annotated[
    str | None,
    AfterValidator(read_above),
    Query(
        json_schema_extra={"pattern": rf"^[+ ][1-{MOST_ABOVE}]$"},
        description="+1, +2 ...: the theme that this final cluster is in, as many levels above; none: it.",
    ),
]
Cursor = Annotated[str | None, Query(max_length=64, description="Of the page before.")]
Place = Annotated[
    str | None,
    AfterValidator(read_place),
    Query(
        description="An event's id, or the cursor of the page before.",
        json_schema_extra={"pattern": r"^\d{1,18}-\d{1,9}$"},
    ),
]
ItemKey = Annotated[
    str,
    Path(
        description="Percent-encoded; a slash in it as %2F.",
        openapi_examples={"plain": {"value": "articles:7"}, "slash": {"value": "shop%2Fshoes%2F7"}},
    ),
]


async def _key(settings: Config, key: ItemKey) -> str:
    return bodies.item_key(key, settings.limits.key_max_bytes)


async def _page_size(
    settings: Config,
    limit: Annotated[
        int, Query(ge=1, le=10_000, description="Entries on a page; [api] page_max caps it.")
    ] = 100,
) -> int:
    return min(limit, settings.api.page_max)


async def _check_writes_on(settings: Config) -> None:
    if not settings.source.http:
        raise Problem("writes-off", "This collection is not fed over HTTP ([source] http).")


Key = Annotated[str, Depends(_key)]
PageSize = Annotated[int, Depends(_page_size)]
WRITES = [Depends(_check_writes_on)]


def body_of(kind: str, content: dict[str, Any]) -> dict[str, Any]:
    """Document a body that the handler reads itself, within bounds."""
    return {"requestBody": {"required": True, "content": {kind: content}}}


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """The same of a JSON body."""
    return body_of("application/json", {"schema": model.model_json_schema()})


@contextmanager
def missing(kind: str) -> Iterator[None]:
    """Report what is not found as this kind of problem."""
    try:
        yield
    except NotFound as error:
        raise of_error(error, kind) from None


def forwarded(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """Document what a route answers that asks the writer."""
    return documented("not-ready", "damaged", "writer-busy", "writer-away", *kinds)


def of_store(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """Document what a route answers that reads the store."""
    unchanged: dict[int | str, dict[str, Any]] = {304: {"description": "As the ETag given"}}
    return unchanged | documented("not-ready", "damaged", *kinds)
