"""Compares a disturbed store's lives with an undisturbed one's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from tests.faults.story import Story
from tests.faults.topic import Topic

Entry = dict[str, Any]


class Wrong(Exception):
    """What differs."""


def read(store: Path) -> list[Entry]:
    """The journal of a store's lives."""
    journal = store.with_suffix(".journal")
    return [orjson.loads(line) for line in journal.read_bytes().splitlines()] if journal.exists() else []


def compare(story: Story, whole: Path, broken: Path) -> None:
    """Raises Wrong."""
    wanted = {entry["applied"]: entry["digest"] for entry in read(whole) if "applied" in entry}
    durable = 0
    for entry in read(broken):
        version = entry.get("opened", entry.get("applied"))
        if version is None:
            continue
        if version < durable:
            raise Wrong(f"version {durable} was durable, {version} was found")
        durable = version
        if version in wanted and entry["digest"] != wanted[version]:
            tables = [name for name, found in entry["digest"].items() if found != wanted[version][name]]
            raise Wrong(f"version {version} differs in {', '.join(tables)}: {entry}")
    if durable != len(story.batches):
        raise Wrong(f"it ended at version {durable} of {len(story.batches)}")
    _compare_topics(story, *(Topic(store.with_suffix(".topic"), 0, 0, False) for store in (whole, broken)))


def _compare_topics(story: Story, whole: Topic, broken: Topic) -> None:
    """Each event once and in order; the same ones, to the bit, as were published undisturbed."""
    one, other = (topic.events() for topic in (whole, broken))
    places = [place for place, _ in other]
    if sorted(set(places)) != places:
        raise Wrong("events were published twice, or not in order")
    for version in range(1, len(story.batches) + 1):
        ordinals = [ordinal for at, ordinal in places if at == version]
        if ordinals != list(range(len(ordinals))):
            raise Wrong(f"events of version {version} are missing: {ordinals}")
    if story.exact and one != other:
        raise Wrong("other events were published than undisturbed")
