"""What is forwarded to the writer: vectors to place, explanations, and, where it is on, what comes in."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from engine.api import bodies, ndjson, responses
from engine.api.context import Body, Service, reply
from engine.api.problems import Problem, documented
from engine.api.responses import AssignRequest, PutRequest
from engine.api.routes_read import Key, Level, missing
from engine.types import Float32


def router(service: Service) -> APIRouter:
    """The routes under /v1 that need the writer."""
    routes = APIRouter(prefix="/v1")
    bounds = service.bounds

    @routes.get(
        "/items/{key:path}/explain",
        response_model=responses.Explanation,
        responses=_forwarded("bad-key", "no-such-item"),
        tags=["queries"],
    )
    async def explain(request: Request, key: Key, level: Level = None) -> Response:
        """Why an item is where it is: neighbours, linkage, densities, the chain of links, level by level."""
        name = bodies.item_key(key, service.settings.bounds.key_max_bytes).decode()
        with missing("no-such-item"):
            answer = await service.call("explain", {"key": name, "level": level})
        return reply({"collection": service.view().collection, **answer})

    @routes.post(
        "/assign",
        response_model=responses.Assigned,
        responses=_forwarded("bad-json", "wrong-type"),
        openapi_extra=_body(AssignRequest, "application/json"),
        tags=["queries"],
    )
    async def assign(request: Request) -> Response:
        """Where vectors would go, were they inserted; nothing changes.

        The cluster of the most probable linkage above tau, or "new".
        """
        found = await bodies.document(request, bounds.body_max_bytes, bounds.patience_s)
        given = bodies.fields(AssignRequest, found)
        if len(given) != 1:
            raise Problem("invalid", "Give either `embedding`, one vector, or `embeddings`, a list of them.")
        rows = [given["embedding"]] if "embedding" in given else given["embeddings"]
        vectors = bodies.matrix(rows, bounds.assign_max, service.view().dim)
        answer = await service.call("assign", {}, vectors)
        return reply({"collection": service.view().collection, **answer})

    @routes.put(
        "/items/{key:path}",
        response_model=responses.Written,
        responses=_forwarded("bad-key", "bad-json", "wrong-type", "writes-off"),
        openapi_extra=_body(PutRequest, "application/json"),
        tags=["writes"],
    )
    async def put(request: Request, key: Key) -> Response:
        """Insert an item, or give it another vector; answered once it is durable."""
        _check_on(service)
        name = bodies.item_key(key, service.settings.bounds.key_max_bytes).decode()
        found = await bodies.document(request, bounds.body_max_bytes, bounds.patience_s)
        given = bodies.fields(PutRequest, found)
        vectors = bodies.matrix([given["embedding"]], 1, None)
        body = {
            "keys": [name],
            "rows": [0],
            "payloads": [given.get("payload")],
            "times": [given.get("time")],
        }
        return reply(await _submit_one(service, body, vectors))

    @routes.delete(
        "/items/{key:path}",
        response_model=responses.Written,
        responses=_forwarded("bad-key", "writes-off"),
        tags=["writes"],
    )
    async def delete(request: Request, key: Key) -> Response:
        """Remove an item, if it is there; answered once that is durable."""
        _check_on(service)
        name = bodies.item_key(key, service.settings.bounds.key_max_bytes).decode()
        return reply(await _submit_one(service, {"keys": [name], "rows": [-1]}, None))

    @routes.post(
        "/items",
        response_model=responses.BulkWritten,
        responses=_forwarded("wrong-type", "writes-off"),
        openapi_extra=_bulk_body(),
        tags=["writes"],
    )
    async def post_items(request: Request) -> Response:
        """Upserts and deletes, one JSON object a line; answered once all of them are durable.

        `{"key": "a", "embedding": [...], "payload": {...}, "time": ms}` or `{"key": "a", "delete": true}`.
        Lines that cannot be used are named in `errors`, and the rest goes on. Where the writer stops in
        between, the problem's `lines` says how many lines are dealt with; to send all of them again is safe.
        """
        _check_on(service)
        return reply(await ndjson.take(service, request))

    return routes


async def _submit_one(service: Service, body: Body, vectors: Float32 | None) -> Body:
    answer = await service.call("submit", body, vectors)
    for refused in answer["rejected"]:
        raise Problem("invalid", f"{refused['reason']}.")
    return {"collection": service.view().collection, "version": answer["version"], "written": 1}


def _check_on(service: Service) -> None:
    if not service.settings.source.http:
        raise Problem("writes-off", "This collection is not fed over HTTP ([source] http).")


def _forwarded(*kinds: str) -> dict[int | str, dict[str, Any]]:
    return documented("not-ready", "damaged", "writer-busy", "writer-away", *kinds)


def _body(model: type[BaseModel], kind: str) -> dict[str, Any]:
    """Described only: handlers read the body themselves, within bounds."""
    return {"requestBody": {"required": True, "content": {kind: {"schema": model.model_json_schema()}}}}


def _bulk_body() -> dict[str, Any]:
    example = '{"key": "a", "embedding": [0.1, 0.9]}\n{"key": "b", "delete": true}\n'
    content = {"schema": {"type": "string"}, "example": example}
    return {"requestBody": {"required": True, "content": {ndjson.MEDIA_TYPES[0]: content}}}
