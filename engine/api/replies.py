"""JSON responses, and their validation by ETag."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from zlib import crc32

import orjson
from fastapi import Depends, Header, Request, Response

from engine.api.context import context_of
from engine.storage.reader import View

Known = Annotated[str | None, Header(alias="If-None-Match", description="An ETag; 304 if it still holds.")]


def reply(body: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    """Return a JSON response, not cacheable unless `headers` say otherwise."""
    return Response(
        orjson.dumps(body), status, {"cache-control": "no-store", **(headers or {})}, "application/json"
    )


@dataclass(frozen=True, slots=True)
class Conditional:
    """Answers a request with an ETag, or with 304 where the client has the answer already."""

    request: Request
    known: str | None  # If-None-Match

    async def answer(self, query: Callable[[View], Any], *, inline: bool = False) -> Response:
        """`inline`: the query takes microseconds, so it runs in the event loop and not in a thread."""
        context, scope = context_of(self.request), self.request.scope
        view = context.reader.view()
        state = view.state
        address = crc32(scope["raw_path"] + b"?" + scope["query_string"], context.stamp)
        tag = f'"{state.version}-{state.time_ms:x}-{context.follower.version}-{address:x}"'
        if _matches(self.known, tag):
            return Response(None, 304, {"etag": tag, "cache-control": "no-cache"})
        body = query(view) if inline else await context.reader.read(query)
        fresh = body["version"] == state.version == body.get("grouped", state.version)
        return reply(body, {"cache-control": "no-cache", **({"etag": tag} if fresh else {})})


async def _conditional(request: Request, known: Known = None) -> Conditional:
    return Conditional(request, known)


IfChanged = Annotated[Conditional, Depends(_conditional)]


def _matches(known: str | None, tag: str) -> bool:
    return known is not None and tag in (one.strip().removeprefix("W/") for one in known.split(","))
