"""A schema registry, as Confluent's and those like it answer: `GET /schemas/ids/{id}`."""

from __future__ import annotations

import base64
import http.client
import urllib.error
import urllib.request
from typing import Any

import fastavro
import orjson

from engine.config import KafkaSettings
from engine.errors import BrokerError, Unusable
from engine.records import brief

TIMEOUT_S = 5.0
ANSWER_BYTES = 2**22  # of a schema; more is not read
FORGET_MISSING = 1000  # schemas asked for in vain that are remembered


class RegistryAway(Exception):
    """The registry is unreachable: try again."""


class Registry:
    """Schemas by number, each asked for once."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._url = (settings.registry_url or "").rstrip("/")
        self._headers = {"Accept": "application/vnd.schemaregistry.v1+json, application/json"}
        if settings.registry_username is not None:
            secret = settings.registry_password.get_secret_value() if settings.registry_password else ""
            login = base64.b64encode(f"{settings.registry_username}:{secret}".encode()).decode()
            self._headers["Authorization"] = f"Basic {login}"
        self._schemas: dict[int, Any] = {}
        self._missing: dict[int, str] = {}

    def schema(self, number: int) -> Any:
        """Return an Avro schema, parsed by fastavro.

        Raises Unusable (there is none, or it is of another kind), RegistryAway, BrokerError (refused).
        """
        if number in self._missing:
            raise Unusable(self._missing[number])
        if number not in self._schemas:
            try:
                self._schemas[number] = self._parse(number, self._ask(number))
            except Unusable as problem:
                if len(self._missing) >= FORGET_MISSING:
                    self._missing.clear()
                self._missing[number] = str(problem)
                raise
        return self._schemas[number]

    def _ask(self, number: int) -> dict[str, Any]:
        request = urllib.request.Request(f"{self._url}/schemas/ids/{number}", headers=self._headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                found = orjson.loads(answer.read(ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    raise Unusable(f"the registry has no schema {number}") from None
                if error.code in (401, 403):
                    raise BrokerError(
                        f"The registry at {self._url} refuses ({error.code}): set registry_username and"
                        " registry_password of [source.kafka]."
                    ) from None
                raise RegistryAway(f"{self._url} answers {error.code}") from None
        except (OSError, http.client.HTTPException, orjson.JSONDecodeError) as error:
            raise RegistryAway(f"{self._url}: {brief(error)}") from None
        if not isinstance(found, dict):
            raise RegistryAway(f"{self._url} answers with something else than a schema")
        return found

    def _parse(self, number: int, answer: dict[str, Any]) -> Any:
        kind = answer.get("schemaType", "AVRO")
        if kind != "AVRO":
            raise Unusable(f"schema {number} is of the kind {kind}, not AVRO")
        if answer.get("references"):
            raise Unusable(f"schema {number} refers to other schemas, which is not supported")
        try:
            return fastavro.parse_schema(orjson.loads(answer["schema"]))
        except Exception as problem:  # whatever makes fastavro raise
            raise Unusable(f"schema {number} cannot be used: {brief(problem)}") from None
