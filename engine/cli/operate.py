"""`check`, `backup`, `restore`, `rebuild`, `erase`, `compact`: operate a store.

What changes a store goes through the daemon if one has it open, else it is done here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.cli.console import complain, moment, print_json, printable, toml_value
from engine.config import RENEWED, Settings
from engine.daemon.control import Control
from engine.errors import CorruptStore, StoreLocked, WriterAway, counted
from engine.storage.environment import require_file

WAIT_S = 86_400.0  # for an answer of the daemon: a rebuild of a large store takes hours


def check(settings: Settings, sample: int, seed: int, as_json: bool) -> None:
    """Check every invariant and print the findings. Raises CorruptStore where something is wrong.

    Also raises the error that kept it from checking the partition: another model or settings than the
    store's.
    """
    from engine.collection.check import check

    start = time.monotonic()
    report = check(settings, sample, seed)
    if as_json:
        facts = {**asdict(report), "counts": dict(report.counts), "seconds": time.monotonic() - start}
        del facts["hindrance"]  # it is reported under not_looked_at
        print_json({"ok": not report.total and not report.hindrance, **facts})
    else:
        print(
            f"{settings.store.path}: version {report.version}, {counted(report.items, 'item')} in"
            f" {counted(report.clusters, 'final cluster')}, {time.monotonic() - start:.1f} s."
        )
        print(f"looked at: {', '.join(report.looked_at)}")
        if report.recall is not None:
            sampled = counted(report.sample, "item")
            print(f"recall:    {report.recall:.4f} of the nearest neighbours of {sampled}")
        for reason in report.not_looked_at:
            print(f"not looked at: {printable(reason)}")
        for finding in report.findings:
            complain(f"found: {printable(finding)}")
    if report.total:
        raise CorruptStore(
            f"{settings.store.path}: {counted(report.total, 'finding')}; each says how to fix it"
        )
    if not as_json:
        print("nothing is wrong" + (" in what was looked at." if report.not_looked_at else "."))
    if report.hindrance:
        raise report.hindrance


def backup(settings: Settings, target: Path, as_json: bool) -> None:
    """Copy the store, also while a daemon writes it."""
    from engine.storage.backup import back_up

    made = back_up(settings.store.path, target)
    _say_what_brings_over(target, made.format)
    if as_json:
        print_json({"path": str(target), **asdict(made)})
        return
    print(
        f"{target}: version {made.version} of {made.collection}, {counted(made.items, 'item')},"
        f" {made.bytes / 1e6:,.1f} MB, verified."
    )


def restore(settings: Settings, folder: Path, force: bool, as_json: bool) -> None:
    """Put a backup in the place of the store."""
    from engine.storage.backup import restore

    made = restore(folder, settings.store.path, force)
    if as_json:
        aside = made.aside and str(made.aside)
        print_json({"store": str(settings.store.path), "aside": aside, **asdict(made.backup)})
        return
    print(
        f"{settings.store.path}: version {made.backup.version} of {moment(made.backup.time_ms)},"
        f" {counted(made.backup.items, 'item')}; sources resume from its positions."
    )
    if made.aside:
        print(f"the previous store is now {made.aside}")


def rebuild(settings: Settings, as_json: bool, flags: Mapping[str, str | int | float] | None = None) -> None:
    """Make a new generation with these settings; a running daemon adopts those that are set.

    `flags`: settings of the command line that file and environment lack; printed, to be written there.
    """
    body = _renewed(settings)

    def offline() -> dict[str, Any]:
        from engine.collection.rebuild import rebuild_store

        return asdict(rebuild_store(settings))

    made = _through(settings, "rebuild", body, offline)
    if as_json:
        print_json(made)
        return
    print(
        f"{settings.store.path}: {counted(made['items'], 'item')} in"
        f" {counted(made['clusters'], 'final cluster')} after {made['seconds']:.1f} s,"
        f" version {made['version']}."
    )
    if made["changed"]:
        print(f"Changed: {', '.join(made['changed'])}.")
    if made["live"] and any(body.values()):
        print("The daemon uses the new settings from now on. Write them into its configuration, too:")
        _print_settings(
            {f"{section}.{name}": value for section in body for name, value in body[section].items()}
        )
    elif needed := {name: value for name, value in (flags or {}).items() if name.startswith("model.")}:
        print("Commands are refused without the new settings. Write them into the file that -c names:")
        _print_settings(needed)


def _print_settings(flags: Mapping[str, Any]) -> None:
    """Print settings as lines of TOML, each with its section."""
    for name, value in flags.items():
        section, _, key = name.partition(".")
        shown = str(Path(value).absolute()) if key in ("path", "adapter") and value else value
        print(f"  [{section}] {key} = {toml_value(shown)}")


def _renewed(settings: Settings) -> dict[str, Any]:
    """Return the model and index settings that flags, file or environment set; a daemon keeps its others."""
    told = {name: getattr(settings, name).model_dump(mode="json", exclude_unset=True) for name in RENEWED}
    for name in ("path", "adapter"):
        if told["model"].get(name):
            told["model"][name] = str(getattr(settings.model, name).absolute())
    return told


def erase(settings: Settings, key: str, as_json: bool) -> None:
    """Remove an item and every trace of it."""

    def offline() -> dict[str, Any]:
        from engine.collection.collection import Engine

        if settings.source.publishes:
            raise WriterAway(
                "the deletion must be published before the log forgets the item, and only the daemon "
                "publishes: start `shoal serve`, then run this again"
            )
        with Engine.open(settings) as engine:
            return asdict(engine.erase(key))

    made = _through(settings, "erase", {"key": key}, offline)
    made["elsewhere"] = elsewhere(settings)
    if as_json:
        print_json(made)
        return
    gone = "the item is gone" if made["found"] else f"there was no item {printable(repr(key))}"
    print(
        f"{settings.store.path}: {gone}, {counted(made['events'], 'mention')} in the event log with it,"
        f" version {made['version']}; {made['bytes'] / 1e6:,.1f} MB after compaction."
    )
    print("It may remain elsewhere: " + "; ".join(made["elsewhere"]) + ".")


def elsewhere(settings: Settings) -> list[str]:
    """Return the places outside the store where Shoal has put copies of an item, or read it from."""
    places = ["backups of the store, and what was moved aside by a restore", "logs of its sender"]
    kafka = settings.source.kafka
    if kafka:
        topics = ", ".join(f"{kafka.topic}{end}" for end in ("", ".assignments", ".dlq"))
        places.insert(0, f"the Kafka topics {topics}, until they forget or compact it")
    else:
        places.insert(0, "the files or the source it was read from, and their topics")
    return places


def compact(settings: Settings, as_json: bool) -> None:
    """Rewrite the store's file without unused space."""

    def offline() -> dict[str, Any]:
        from engine.storage.store import Store

        with Store.open(settings.store.path, map_bytes=settings.limits.map_size_bytes) as store:
            _say_what_brings_over(settings.store.path, store.format)
            return asdict(store.compact())

    made = _through(settings, "compact", {}, offline)
    if as_json:
        print_json(made)
        return
    print(f"{settings.store.path}: {made['before'] / 1e6:,.1f} MB before, {made['after'] / 1e6:,.1f} MB now.")


def _say_what_brings_over(path: Path, found: int) -> None:
    """Print on standard error that a store of an earlier release needs a rebuild before it can be read."""
    from engine.storage import schema

    if found == schema.REBUILT_FROM:
        old = f"{path} was made by an earlier release (format {found})"
        complain(f"{old}; run `shoal rebuild` once to upgrade it.")


def _through(
    settings: Settings, op: str, body: Mapping[str, Any], offline: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Have the daemon do `op`, or call `offline` where no daemon runs. Raises as either does."""
    path = settings.store.path
    require_file(path)
    start = time.monotonic()
    with Control(path, WAIT_S) as control:
        live = True
        try:
            made = control.call(op, body)
        except WriterAway:
            live = False
            try:
                made = offline()
            except StoreLocked as held:
                raise StoreLocked(f"{held}; or run it through a daemon that is ready") from None
    return {**made, "live": live, "seconds": time.monotonic() - start}
