"""`query`, `clusters`, `members`, `changes`: read a store, also while another process writes it."""

from __future__ import annotations

import re
from typing import Any

from engine.cli.console import moment, print_json, print_table, printable
from engine.config import Settings
from engine.errors import InputError
from engine.events import EventRow
from engine.storage.answers import ClusterPage, MemberPage
from engine.storage.reader import View


def query(settings: Settings, key: str, level: int | None, as_json: bool) -> None:
    """Where an item is."""
    with View.open(settings.store.path) as view:
        answer = view.item(key, level)
        cluster = None if as_json else view.cluster(answer["cluster"])
    if cluster is None:
        print_json(answer)
        return
    path = " > ".join(map(str, answer["path"]))
    print(f"{printable(answer['key'])} is in cluster {answer['cluster']} with {_items(cluster['size'])}.")
    print(f"path     {path}  (final > finest)")
    print(f"peak     {printable(str(cluster['peak']))}")
    print(f"time     {moment(answer['time'])}")
    if answer["payload"] is not None:
        print(f"payload  {printable(_shortened(answer['payload']))}")
    print(f"version  {answer['version']} (the vector came with {answer['updated']})")


def clusters(
    settings: Settings, level: int | None, order: str, cursor: str | None, limit: int, as_json: bool
) -> None:
    """A page of clusters."""
    with View.open(settings.store.path) as view:
        answer = view.clusters(level, order, cursor, limit)
        summary = None if as_json else view.summary()
    if summary is None:
        print_json(answer)
        return
    where = "final clusters" if level is None else f"clusters of level {level}"
    total = f", {summary['clusters']} final clusters" if level is None else ""
    rows = [(c["cluster"], c["size"], c["peak"], c["born"], c["changed"]) for c in answer["clusters"]]
    print_table(
        f"{where} of {answer['collection']}, version {answer['version']}: {_items(summary['items'])}{total}",
        {"cluster": "right", "size": "right", "peak": "left", "born": "right", "changed": "right"},
        rows,
    )
    _print_cursor(answer)


def members(settings: Settings, cluster: int, cursor: str | None, limit: int, as_json: bool) -> None:
    """A page of a cluster's items."""
    with View.open(settings.store.path) as view:
        answer = view.members(cluster, cursor, limit)
    if as_json:
        print_json(answer)
        return
    print_table(
        f"cluster {cluster} of {answer['collection']}, version {answer['version']}: {_items(answer['size'])}",
        {"key": "left", "time": "left", "tree": "right"},
        [(item["key"], moment(item["time"]), item["tree"]) for item in answer["items"]],
    )
    _print_cursor(answer)


def changes(settings: Settings, after: str | None, limit: int, as_json: bool) -> None:
    """A page of the event log."""
    with View.open(settings.store.path) as view:
        answer = view.changes(_place(after), limit)
    if as_json:
        print_json(answer)
        return
    if answer["gap"]:
        print("Events between this place and the first one below were forgotten.")
    print_table(
        f"changes of {answer['collection']}, version {answer['version']}",
        {"event": "left", "what": "left"},
        [(event["event-id"], _told(event)) for event in answer["changes"]],
    )
    if answer["cursor"]:
        print(f"go on with --after {answer['cursor']}")


def _place(after: str | None) -> tuple[int, int] | None:
    """`VERSION-ORDINAL`, as events carry it."""
    if after is None:
        return None
    found = re.fullmatch(r"(\d{1,18})-(-?\d{1,9})", after)
    if not found:
        raise InputError(f"--after takes the event-id of an event, like 12-0, not {after!r}.")
    return int(found[1]), int(found[2])


def _told(event: EventRow) -> str:
    if "key" in event:
        came = f"from {event['previous']}" if event["previous"] else "new"
        return f"item {event['key']}: " + (f"{came} to {event['cluster']}" if event["cluster"] else "gone")
    if event["event"] == "reject":
        return f"rejected {event['origin']}: {event['reason']}"
    words = f"{event['event']} {event['cluster']}, {_items(event['size'])}"
    if event["from"]:
        words += f", from {', '.join(map(str, event['from']))}"
    if event["into"]:
        words += f", into {', '.join(map(str, event['into']))}"
    return words


def _items(count: int) -> str:
    return f"{count:,} item" + ("" if count == 1 else "s")


def _shortened(payload: Any) -> str:
    import orjson

    text = orjson.dumps(payload).decode()
    return text if len(text) <= 300 else text[:300] + " ..."


def _print_cursor(answer: ClusterPage | MemberPage) -> None:
    if answer["cursor"]:
        print(f"more with --cursor {answer['cursor']}")
