"""`query`, `clusters`, `members`, `changes`: read a store, also while another process writes it."""

from __future__ import annotations

from typing import Any

from engine.cli.console import moment, print_json, print_table, printable
from engine.config import Settings
from engine.daemon.control import Control
from engine.errors import WriterAway, counted
from engine.events import EventRow, read_event_id
from engine.levels import checked, read_level, step_of, within
from engine.storage.answers import ClusterPage, MemberPage, ThemePage
from engine.storage.environment import require_file
from engine.storage.reader import View
from engine.storage.themes import received
from engine.types import Themes


def query(settings: Settings, key: str, level: str | None, as_json: bool) -> None:
    """Print an item and its cluster."""
    chosen = checked(level, read_level, "--level")
    if step := step_of(chosen):
        _query_theme(settings, key, step, as_json)
        return
    with View.open(settings.store.path) as view:
        answer = view.item(key, within(chosen))
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
    settings: Settings, level: str | None, order: str, cursor: str | None, limit: int, as_json: bool
) -> None:
    """Print a page of clusters, or of themes."""
    chosen = checked(level, read_level, "--level")
    if step := step_of(chosen):
        grouping = _grouping(settings, step)
        with View.open(settings.store.path) as view:
            _show_themes(view.themes(grouping, step, order, cursor, limit), step, as_json)
        return
    with View.open(settings.store.path) as view:
        answer = view.clusters(within(chosen), order, cursor, limit)
        summary = None if as_json else view.summary()
    if summary is None:
        print_json(answer)
        return
    where = "final clusters" if level is None else f"clusters of level {level}"
    total = f", {counted(summary['clusters'], 'final cluster')}" if level is None else ""
    rows = [(c["cluster"], c["size"], c["peak"], c["born"], c["changed"]) for c in answer["clusters"]]
    print_table(
        f"{where} of {answer['collection']}, version {answer['version']}: {_items(summary['items'])}{total}",
        {"cluster": "right", "size": "right", "peak": "left", "born": "right", "changed": "right"},
        rows,
    )
    _print_cursor(answer)


def _query_theme(settings: Settings, key: str, step: int, as_json: bool) -> None:
    grouping = _grouping(settings, step)
    with View.open(settings.store.path) as view:
        answer = view.theme_item(grouping, step, key)
        theme = None if as_json else view.theme(grouping, step, answer["path"][0])
    if theme is None:
        print_json(answer)
        return
    joined = counted(theme["clusters"], "cluster")
    print(
        f"{printable(answer['key'])} is in theme {theme['cluster']} of level +{step} with"
        f" {_items(theme['size'])} in {joined}."
    )
    print(f"path     {' > '.join(map(str, answer['path']))}  (final > finest)")
    print(f"version  {answer['version']}")


def _show_themes(answer: ThemePage, step: int, as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    print_table(
        f"themes of {answer['collection']}, {step} above the final clusters, version {answer['version']}",
        {"theme": "right", "size": "right", "clusters": "right", "peak": "left", "largest": "left"},
        [
            (row["cluster"], row["size"], row["clusters"], row["peak"], " ".join(map(str, row["largest"])))
            for row in answer["clusters"]
        ],
    )
    _print_cursor(answer)


def _grouping(settings: Settings, step: int) -> Themes:
    """Return the writer's themes or, without a writer, those computed from the store."""
    path = settings.store.path
    require_file(path)
    with Control(path, settings.api.forward_timeout_s) as control:
        try:
            told = control.call("themes", {"step": step})
        except WriterAway:
            from engine.collection.themes import check_step, themes_of

            check_step(step, len(settings.model.coarser))
            return themes_of(settings)
    return received(told)


def members(settings: Settings, cluster: int, cursor: str | None, limit: int, as_json: bool) -> None:
    """Print a page of a cluster's items."""
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
    """Print a page of the event log."""
    with View.open(settings.store.path) as view:
        answer = view.changes(read_event_id(after) if after else None, limit)
    if as_json:
        print_json(answer)
        return
    if answer["gap"]:
        print("Events between this place and the first one below are no longer in the log.")
    print_table(
        f"changes of {answer['collection']}, version {answer['version']}",
        {"event": "left", "what": "left"},
        [(event["event-id"], _told(event)) for event in answer["changes"]],
    )
    if answer["cursor"]:
        print(f"go on with --after {answer['cursor']}")


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
    return counted(count, "item")


def _shortened(payload: Any) -> str:
    import orjson

    text = orjson.dumps(payload).decode()
    return text if len(text) <= 300 else text[:300] + " ..."


def _print_cursor(answer: ClusterPage | MemberPage | ThemePage) -> None:
    if answer["cursor"]:
        print(f"more with --cursor {answer['cursor']}")
