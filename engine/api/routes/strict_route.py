"""The routes under /v1 take the query parameters that they document, each once."""

from __future__ import annotations

from typing import Any

from fastapi import params
from fastapi.dependencies.utils import get_flat_params
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send


class StrictRoute(APIRoute):
    """Refuse a parameter that is unknown or repeated: a misspelled one would be ignored."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        fields = get_flat_params(self.dependant)
        self._known = [field.alias for field in fields if isinstance(field.field_info, params.Query)]

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen = set[str]()
        for name, _ in QueryParams(scope["query_string"]).multi_items():
            if name not in self._known:
                known = ", ".join(self._known) or "none"
                raise _invalid(name, f"there is no such parameter; this path takes {known}")
            if name in seen:
                raise _invalid(name, "it is there more than once; give one value")
            seen.add(name)
        await super().handle(scope, receive, send)


def _invalid(name: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("query", name), "msg": message}])
