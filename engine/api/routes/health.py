"""/livez, /readyz and /metrics: for what supervises the daemon."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from engine.api import responses
from engine.api.context import Config, Metrics, Reader, Writer, Writes
from engine.api.problems import documented
from engine.api.replies import reply
from engine.api.store_reader import StoreReader
from engine.api.writer_client import Status
from engine.config import Settings
from engine.errors import ShoalError, StoreError

METRICS_TIMEOUT_S = 5.0
TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

router = APIRouter(tags=["operation"])


@router.get(
    "/livez",
    response_model=responses.Live,
    responses={503: {"model": responses.Live, "description": "The writer makes no progress"}},
)
async def livez(settings: Config, writer: Writer) -> Response:
    """This process answers, and a writer that runs makes progress. (Whether all is well: /readyz.)"""
    told = writer.status.told
    stalled_s = told["stalled_s"] if told else writer.status.silent_s
    live = stalled_s < settings.limits.progress_timeout_s
    return reply({"live": live}, status=200 if live else 503)


@router.get(
    "/readyz",
    response_model=responses.Ready,
    responses={503: {"model": responses.Ready, "description": "Not ready, and why"}},
)
async def readyz(settings: Config, reader: Reader, writer: Writer, writes: Writes) -> Response:
    """The store can be read, the writer runs and has loaded, and its lag is within bounds.

    `rejected` counts the records that could not be used; they make nothing unready.
    """
    reasons = why_not_ready(settings, reader, writer.status)
    told = writer.status.told or {}
    answer: responses.Ready = {
        "ready": not reasons,
        "reasons": reasons,
        "rejected": {
            "source": told.get("rejected"),
            "last": told.get("last_reject") or None,
            "http": writes.rejected,
        },
    }
    return reply(answer, status=503 if reasons else 200)


@router.get("/metrics", response_class=Response, responses=TEXT | documented())
async def metrics(meters: Metrics, writer: Writer) -> Response:
    """For Prometheus: the metrics of this process, and the writer's where it runs."""
    own = generate_latest(meters.registry)
    try:
        told = (await writer.call("metrics", timeout_s=METRICS_TIMEOUT_S))["text"]
    except ShoalError:
        told = ""
    return Response(own + told.encode(), media_type=CONTENT_TYPE_LATEST)


def why_not_ready(settings: Settings, reader: StoreReader, status: Status) -> list[str]:
    """Return why the daemon is not ready, as sentences; none: it is."""
    try:
        reader.view()
    except StoreError as error:
        return [str(error)]
    told = status.told
    if told is None:
        return [status.reason]
    found = []
    if told["state"] != "running":
        found.append(f"the writer is {told['state']}: {told['reason'] or 'it restarts, or the daemon ends'}")
    if told["stalled_s"] > settings.limits.progress_timeout_s:
        found.append(f"the writer has been applying one batch for {told['stalled_s']:.0f} s")
    if told["oldest_unread_s"] > settings.api.lag_max_s:
        found.append(f"the oldest waiting record is {told['oldest_unread_s']:.0f} s old")
    return found
