"""Types of what a reader returns to people: JSON-ready dictionaries, declared once and checked.

The API documents its responses by them: descriptions and bounds are here, with the fields.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from engine.events import EventRow

ItemKey = Annotated[str, Field(min_length=1, description="An item's key, 1 to 511 bytes of UTF-8.")]
ClusterId = Annotated[
    int, Field(ge=1, description="A cluster's id; it follows the largest part of its members.")
]
Version = Annotated[int, Field(ge=0, description="The state's version; one per committed batch.")]
Time = Annotated[int, Field(description="Milliseconds since 1970.")]
Cursor = Annotated[str | None, Field(description="For the next page; null at the end.")]


class Stamped(TypedDict):
    """What every answer begins with: which collection it is of, and which version."""

    collection: str
    version: Version


class ItemRow(TypedDict):
    """An item and its clusters."""

    key: ItemKey
    cluster: ClusterId
    path: Annotated[
        list[ClusterId], Field(description="Distinct ids from the final cluster to the level-0 tree.")
    ]
    time: Time
    payload: Any
    updated: Annotated[int, Field(ge=0, description="The version that brought the vector.")]


class ItemDetail(Stamped, ItemRow):
    """An item and its clusters, as of a version."""


class Lookup(Stamped):
    """Several items of one version."""

    items: Annotated[
        list[ItemRow | None], Field(description="In the order of the keys; null where there is none.")
    ]
    missing: Annotated[list[str], Field(description="The keys that no item has.")]


class ClusterRow(TypedDict):
    """A cluster: a set of members, at one level of the hierarchy or several."""

    cluster: ClusterId
    size: Annotated[int, Field(ge=0, description="Items.")]
    finest: Annotated[
        int, Field(ge=0, description="The finest level at which a tree has just these members.")
    ]
    coarsest: Annotated[int, Field(ge=0, description="The coarsest such level.")]
    peak: Annotated[str | None, Field(description="The key of the densest item.")]
    parent: Annotated[ClusterId | None, Field(description="The next coarser cluster; null for a final one.")]
    born: Version
    changed: Version
    ended: Version | None
    into: Annotated[list[ClusterId], Field(description="Once it has ended: where its members went.")]


class ClusterPage(Stamped):
    """A page of clusters."""

    clusters: list[ClusterRow]
    cursor: Cursor


class ClusterDetail(Stamped, ClusterRow):
    """A cluster, its next finer ones, and where its members went if it has ended."""

    children: Annotated[list[ClusterId], Field(description="The next finer clusters, 10,000 at most.")]
    now: Annotated[
        list[ClusterId], Field(description="Once it has ended: the living final clusters it led to.")
    ]


Grouped = Annotated[
    int, Field(ge=0, description="The version of which the themes are; clusters that came since stand alone.")
]


class ThemeRow(TypedDict):
    """A theme: final clusters that links join at a lower tau."""

    cluster: Annotated[int, Field(ge=1, description="The smallest id of its final clusters: its oldest one.")]
    size: Annotated[int, Field(ge=0, description="Items.")]
    clusters: Annotated[int, Field(ge=1, description="Final clusters.")]
    largest: Annotated[list[ClusterId], Field(description="The largest of them, 8 at most.")]
    peak: Annotated[str | None, Field(description="The key of the largest one's densest item.")]
    parent: Annotated[
        ClusterId | None, Field(description="The theme of the next coarser level; null: none is coarser.")
    ]


class ThemePage(Stamped):
    """A page of themes."""

    clusters: list[ThemeRow]
    cursor: Cursor
    grouped: Grouped


class ThemeDetail(Stamped, ThemeRow):
    """A theme, and the clusters or themes of the next finer level in it."""

    children: Annotated[list[ClusterId], Field(description="The largest first, 10,000 at most.")]
    grouped: Grouped


class ThemeItem(ItemDetail):
    """An item; its cluster is the theme that it is in."""

    grouped: Grouped


class ThemeLookup(Lookup):
    """Several items; their clusters are the themes that they are in."""

    grouped: Grouped


class _Member(TypedDict):
    key: ItemKey
    time: Time
    tree: Annotated[int, Field(description="Items of one level-0 tree have the same.")]


class Member(_Member, total=False):
    """An item of a cluster; its payload only where payloads were asked for."""

    payload: Any


class MemberPage(Stamped):
    """A page of a cluster's items."""

    cluster: ClusterId
    size: int
    items: list[Member]
    cursor: Cursor


class LevelRow(TypedDict):
    """A level of the hierarchy."""

    level: Annotated[int, Field(ge=0, description="0 is the finest.")]
    clusters: int
    singletons: Annotated[int, Field(description="Clusters of one item.")]


class Levels(Stamped):
    """The levels, finest first."""

    levels: list[LevelRow]


class ChangePage(Stamped):
    """A page of the event log, oldest first."""

    changes: list[EventRow]
    cursor: Annotated[str | None, Field(description="Go on with it as `after`, also after the last page.")]
    gap: Annotated[bool, Field(description="Events after `after` were forgotten before the first one here.")]
    more: Annotated[bool, Field(description="There are further events by now.")]


class Summary(Stamped):
    """What the store holds."""

    items: int
    clusters: Annotated[int, Field(description="Final clusters.")]
    levels: int
    time: Annotated[int, Field(description="Milliseconds since 1970, of the version's commit.")]
    epoch: Annotated[
        list[float] | None, Field(description="The calibration: mean, deviation, items; null before it.")
    ]
    changes_from: Annotated[
        int, Field(ge=0, description="The oldest version still in the event log; 0 if it is empty.")
    ]
