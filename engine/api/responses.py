"""What the API answers: the store's answers, and what the API adds to them; the OpenAPI document shows them.

Handlers build dictionaries of these types, and the type checker compares. What the writer answers comes as
JSON: `Explanation` and `Assigned` describe it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, with_config
from typing_extensions import TypedDict

from engine.events import EventRow
from engine.levels import LevelValue
from engine.storage import answers
from engine.storage.answers import ClusterId, Cursor, ItemDetail, ItemKey, Stamped, Version

T = TypeVar("T")

STAMP: dict[str, Any] = {"collection": "articles", "version": 17}
CLUSTER: dict[str, Any] = {
    "cluster": 42,
    "size": 31,
    "finest": 0,
    "coarsest": 1,
    "peak": "articles:7",
    "parent": None,
    "born": 3,
    "changed": 17,
    "ended": None,
    "into": [],
    "growth": 4,
}
EVENT: dict[str, Any] = {
    "schema": 1,
    "collection": "articles",
    "event": "merge",
    "cluster": 42,
    "from": [51],
    "into": [],
    "size": 31,
    "version": 17,
    "event-id": "17-0",
}

NEIGHBOR: dict[str, Any] = {
    "key": "articles:3",
    "copies": 1,
    "size": 1,
    "density": 0.3,
    "similarity": 0.9,
    "linkage": 0.93,
    "cluster": 42,
    "verdict": "parent",
}


CHAIN: list[dict[str, Any]] = [
    {"key": "articles:7", "copies": 1, "size": 1, "density": 0.12, "similarity": 0.9, "linkage": 0.93},
    {"key": "articles:3", "copies": 1, "size": 1, "density": 0.3, "similarity": None, "linkage": None},
]


def example(**fields: Any) -> Callable[[type[T]], type[T]]:
    """Show an example of a type in the OpenAPI document; pydantic compiles the type for that alone."""
    return with_config(ConfigDict(json_schema_extra={"examples": [fields]}, defer_build=True))


ITEM: dict[str, Any] = {
    "key": "articles:7",
    "cluster": 42,
    "path": [42, 9],
    "time": 1700000000000,
    "payload": {"title": "A title"},
    "updated": 3,
}
WINDOW: dict[str, Any] = {"from_version": 1, "to_version": 17, "seconds": 61.5}


@example(**STAMP, **ITEM)
class Item(ItemDetail):
    """An item and its clusters."""


@example(**STAMP, items=[ITEM, None], missing=["articles:8"])
class Lookup(answers.Lookup):
    """Many items of one version."""


class Window(TypedDict):
    """The versions that growth is counted over."""

    from_version: Version
    to_version: Version
    seconds: float


Growth = Annotated[
    int | None, Field(description="Members gained less lost in the window; null: still counting.")
]


@example(**CLUSTER)
class ClusterRow(answers.ClusterRow):
    """A cluster: a set of members, at one level of the hierarchy or several."""

    growth: Growth


@example(**STAMP, clusters=[CLUSTER], cursor="31-42", window=WINDOW)
class ClusterPage(Stamped):
    """A page of clusters."""

    clusters: list[ClusterRow]
    cursor: Cursor
    window: Window


@example(**STAMP, **CLUSTER, children=[9, 13], now=[], history=[EVENT], history_from=1)
class Cluster(answers.ClusterDetail):
    """A cluster, its children and its history."""

    growth: Growth
    history: Annotated[list[EventRow], Field(description="Its lineage events, oldest first, the newest 100.")]
    history_from: Annotated[
        Version | None, Field(description="First version with complete history; null while still loading.")
    ]


@example(
    **STAMP,
    cluster=42,
    size=31,
    items=[{"key": "articles:7", "time": 1700000000000, "tree": 9, "payload": {"title": "A title"}}],
    cursor="9-12",
)
class MemberPage(answers.MemberPage):
    """A page of a cluster's items."""


class CoarserLevel(TypedDict):
    """A level of themes, above the final clusters."""

    level: Annotated[str, Field(description="As the parameter `level` takes it.")]
    tau: Annotated[float, Field(ge=0, lt=1, description="Least linkage that links there.")]


@example(
    **STAMP,
    levels=[{"level": 0, "clusters": 120, "singletons": 60}],
    coarser=[{"level": "+1", "tau": 0.35}],
)
class Levels(answers.Levels):
    """The levels, finest first, and those of themes above the final clusters."""

    coarser: list[CoarserLevel]


@example(**STAMP, changes=[EVENT], cursor="17-0", more=False)
class Changes(Stamped):
    """A page of the event log, oldest first."""

    changes: list[EventRow]
    cursor: Annotated[str, Field(description="Pass it as `after` to continue, also after the last page.")]
    more: Annotated[bool, Field(description="There are further events by now.")]


@example(
    **STAMP,
    items=1797,
    clusters=63,
    levels=2,
    dim=64,
    time=1700000000000,
    epoch=[0.12, 0.08, 1024],
    changes_from=1,
    cursor="17-8",
    window=WINDOW,
    writes=True,
    writer={"alive": True},
)
class Summary(answers.Summary):
    """What the collection holds, and how its reader and writer do."""

    dim: Annotated[int | None, Field(description="Of the vectors; null before the first one.")]
    cursor: Annotated[str, Field(description="Pass it as `after` to GET /v1/changes to read what follows.")]
    window: Window
    writes: Annotated[bool, Field(description="Whether items are taken over HTTP.")]
    writer: Annotated[
        dict[str, Any] | None, Field(description="The writer's status; null: it does not answer.")
    ]


class Node(TypedDict):
    """A vector, or a supernode named by its peak's."""

    key: Annotated[ItemKey, Field(description="Of the item asked for, or of the oldest with this vector.")]
    copies: Annotated[int, Field(ge=1, description="Items with exactly this vector.")]
    size: Annotated[int, Field(ge=1, description="Different vectors in the supernode.")]
    density: float


class Linked(Node):
    """A node of a chain of links, and its link to the next one."""

    similarity: Annotated[float | None, Field(description="null: the peak links to nobody.")]
    linkage: float | None


class Neighbor(Node):
    """A neighbour, and what the node made of it."""

    similarity: float
    linkage: Annotated[float, Field(ge=0, le=1, description="The probability that both belong together.")]
    cluster: Annotated[ClusterId, Field(description="The neighbour's final cluster.")]
    verdict: Annotated[str, Field(description="parent, less-probable, below-tau or lower-density.")]


class ExplainedLevel(Node):
    """What happened at a level."""

    level: Annotated[int, Field(ge=0)]
    cluster: ClusterId
    tau: Annotated[float, Field(description="Least linkage that links at this level.")]
    neighbors: list[Neighbor]
    refused: Annotated[
        Neighbor | None, Field(description="Most probable neighbour ruled out by tau or density.")
    ]
    chain: Annotated[
        list[Linked], Field(description="From the node to the level's peak: the next level's node.")
    ]
    chain_links: Annotated[int, Field(ge=0)]


@example(
    **STAMP,
    key="articles:7",
    cluster=42,
    path=[42, 9],
    tau=0.5,
    levels=[
        {
            "level": 0,
            "cluster": 9,
            "key": "articles:7",
            "copies": 1,
            "size": 1,
            "density": 0.12,
            "tau": 0.6,
            "neighbors": [NEIGHBOR],
            "refused": None,
            "chain": CHAIN,
            "chain_links": 1,
        }
    ],
)
class Explanation(Stamped):
    """Why an item is where it is, from the finest level up."""

    key: ItemKey
    cluster: ClusterId
    path: list[ClusterId]
    tau: Annotated[float, Field(description="Least linkage that links above level 0.")]
    levels: list[ExplainedLevel]


class AssignOne(TypedDict):
    """The cluster that a vector would join."""

    cluster: Annotated[ClusterId | str, Field(description='A final cluster\'s id, or "new".')]
    probability: Annotated[float, Field(ge=0, le=1, description="Of the most probable linkage.")]
    neighbor: Annotated[str | None, Field(description="The key of the item it would link to.")]


@example(**STAMP, answers=[{"cluster": 42, "probability": 0.93, "neighbor": "articles:7"}])
class Assigned(Stamped):
    """The clusters that the vectors would join, in their order."""

    answers: list[AssignOne]


class Near(TypedDict):
    """Another cluster with a similar peak."""

    cluster: ClusterId
    similarity: float


class Face(TypedDict, total=False):
    """The fields of a peak's payload that the map shows."""

    title: str
    image: str


class Disc(Face):
    """A cluster on the map; also what its peak's payload shows of it."""

    cluster: ClusterId
    size: int
    peak: str | None
    born: Version
    changed: Version
    x: float
    y: float
    radius: float
    near: list[Near]


@example(
    **STAMP,
    total=63,
    clusters=[
        {
            "cluster": 42,
            "size": 31,
            "peak": "articles:7",
            "born": 3,
            "changed": 17,
            "x": 0.31,
            "y": -0.4,
            "radius": 0.12,
            "near": [{"cluster": 51, "similarity": 0.61}],
        }
    ],
)
class Map(Stamped):
    """The largest clusters in two dimensions: a square from -1 to 1, similar ones near each other."""

    total: Annotated[int, Field(description="Final clusters, drawn or not.")]
    clusters: list[Disc]


class AssignRequest(BaseModel):
    """One vector, or several."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "oneOf": [{"required": ["embedding"]}, {"required": ["embeddings"]}],
            "examples": [{"embeddings": [[0.1, 0.9, 0.3]]}],
        },
    )
    embedding: list[float] = Field(default_factory=list, min_length=1, max_length=16_384)
    embeddings: list[list[float]] = Field(default_factory=list, min_length=1)


class PutRequest(BaseModel):
    """An item: its vector, and what belongs to it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"embedding": [0.1, 0.9, 0.3], "payload": {"title": "A title"}}]},
    )
    embedding: list[float] = Field(min_length=1, max_length=16_384)
    payload: Any = Field(None, description="A JSON document that comes back with the item.")
    time: float | str | None = Field(
        None,
        description="Event time: a number of seconds, milliseconds, microseconds or nanoseconds since 1970, "
        "told apart by its magnitude, or an ISO 8601 string; null: now.",
    )


class LookupRequest(BaseModel):
    """The keys of items."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"keys": ["articles:7"]}]})
    keys: list[StrictStr | StrictInt] = Field(min_length=1)
    level: LevelValue = None


@example(**STAMP, written=1, doubts=[], ignored=[])
class Written(Stamped):
    """Durable, as of this version."""

    written: Annotated[int, Field(ge=0, description="0: there was no item to delete.")]
    doubts: Annotated[
        list[str], Field(description="Warnings about accepted records, e.g. an implausible time.")
    ]
    ignored: Annotated[list[str], Field(description="Names of fields that were not used.")]


class Line(TypedDict):
    """A line, and what is wrong with it."""

    line: Annotated[int, Field(ge=1)]
    reason: str


@example(
    **STAMP,
    written=2,
    lines=3,
    refused=1,
    errors=[{"line": 3, "reason": "broken JSON: unexpected end of data"}],
    doubts=[],
    ignored={"colour": 3},
)
class BulkWritten(Stamped):
    """All valid lines are durable, as of this version."""

    written: Annotated[int, Field(ge=0, description="Upserts, and deletes of items that there were.")]
    lines: Annotated[int, Field(ge=0, description="Empty ones too.")]
    refused: Annotated[int, Field(ge=0)]
    errors: Annotated[list[Line], Field(description="The first 1,000 of the refused lines.")]
    doubts: Annotated[list[Line], Field(description="The first 1,000 lines taken with an implausible time.")]
    ignored: Annotated[
        dict[str, int], Field(description="Fields that were not used, and how often they came.")
    ]


class Rejected(TypedDict):
    """Records rejected since the start of the process that counts them."""

    source: Annotated[int | None, Field(description="Of the writer's source; null: it does not answer.")]
    last: Annotated[str | None, Field(description="Why the source's last one was rejected.")]
    http: Annotated[int, Field(ge=0, description="Lines and bodies of requests.")]


@example(ready=False, reasons=["the writer does not run"], rejected={"source": None, "last": None, "http": 0})
class Ready(TypedDict):
    """Whether the daemon is ready; if not, why."""

    ready: bool
    reasons: Annotated[list[str], Field(description="Why not.")]
    rejected: Rejected


class Live(TypedDict):
    """This process answers."""

    live: bool
