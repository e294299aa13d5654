"""What the API answers, as the OpenAPI document describes it. Handlers give plain dicts of these shapes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Key = Annotated[str, Field(min_length=1, description="An item's key, 1 to 511 bytes of UTF-8.")]
ClusterId = Annotated[
    int, Field(ge=1, description="A cluster's id; it follows the largest part of its members.")
]
Version = Annotated[int, Field(ge=0, description="The state's version; one per committed batch.")]
Cursor = Annotated[str | None, Field(description="For the next page; null at the end.")]
Time = Annotated[int, Field(description="Milliseconds since 1970.")]

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


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields]})


class Stamped(BaseModel):
    """Every answer says of what it is."""

    collection: str
    version: Version


class Item(Stamped):
    """An item, and where it is."""

    model_config = _example(
        **STAMP,
        key="articles:7",
        cluster=42,
        path=[42, 9],
        time=1700000000000,
        payload={"title": "A title"},
        updated=3,
    )
    key: Key
    cluster: ClusterId
    path: list[ClusterId] = Field(description="Distinct ids from the final cluster to the level-0 tree.")
    time: Time
    payload: Any = None
    updated: Version = Field(description="The version that brought the vector.")


class ClusterRow(BaseModel):
    """A cluster: a set of members, at one level of the hierarchy or several."""

    model_config = _example(**CLUSTER)
    cluster: ClusterId
    size: int = Field(ge=0, description="Items.")
    finest: int = Field(ge=0, description="The finest level at which a tree has just these members.")
    coarsest: int = Field(ge=0)
    peak: str | None = Field(description="The key of the densest item.")
    parent: ClusterId | None = Field(description="The next coarser cluster; null for a final one.")
    born: Version
    changed: Version
    ended: Version | None
    into: list[ClusterId] = Field(description="Once it has ended: where its members went.")
    growth: int | None = Field(description="Members gained less lost in the window; null: still counting.")


class Window(BaseModel):
    """The versions that growth is counted over."""

    from_version: Version
    to_version: Version
    seconds: float


class ClusterPage(Stamped):
    """A page of clusters."""

    model_config = _example(
        **STAMP,
        clusters=[CLUSTER],
        cursor="31-42",
        window={"from_version": 1, "to_version": 17, "seconds": 61.5},
    )
    clusters: list[ClusterRow]
    cursor: Cursor
    window: Window


class Event(BaseModel):
    """Something that happened, as on the outgoing topics: of an item, of a cluster, or a refused record."""

    model_config = ConfigDict(extra="allow", populate_by_name=True, json_schema_extra={"examples": [EVENT]})
    version: Version
    event_id: str = Field(alias="event-id", description="Never repeats; `after` takes it.")
    event: str | None = Field(None, description="emerge, grow, shrink, merge, split, vanish or reject.")
    key: str | None = Field(None, description="Of an item's change of cluster.")
    cluster: ClusterId | None = Field(None, description="null: the item is gone.")
    previous: ClusterId | None = Field(None, description="null: the item is new.")


class Cluster(Stamped, ClusterRow):
    """A cluster, what it is made of, and its past."""

    model_config = _example(**STAMP, **CLUSTER, children=[9, 13], now=[], history=[EVENT], history_from=1)
    children: list[ClusterId] = Field(description="The next finer clusters, 10,000 at most.")
    now: list[ClusterId] = Field(description="Once it has ended: the living final clusters it led to.")
    history: list[Event] = Field(description="Its lineage events, oldest first, the newest 100.")
    history_from: Version | None = Field(description="What came before is not known; null: still reading.")


class Member(BaseModel):
    """An item of a cluster."""

    key: Key
    time: Time
    tree: int = Field(description="Items of one level-0 tree have the same.")
    payload: Any = None


class MemberPage(Stamped):
    """A page of a cluster's items."""

    model_config = _example(
        **STAMP,
        cluster=42,
        size=31,
        items=[{"key": "articles:7", "time": 1700000000000, "tree": 9, "payload": {"title": "A title"}}],
        cursor="9-12",
    )
    cluster: ClusterId
    size: int
    items: list[Member]
    cursor: Cursor


class Level(BaseModel):
    """A level of the hierarchy."""

    level: int = Field(ge=0, description="0 is the finest.")
    clusters: int
    singletons: int = Field(description="Clusters of one item.")


class Levels(Stamped):
    """The levels, finest first."""

    model_config = _example(**STAMP, levels=[{"level": 0, "clusters": 120, "singletons": 60}])
    levels: list[Level]


class Changes(Stamped):
    """A page of the event log, oldest first."""

    model_config = _example(**STAMP, changes=[EVENT], cursor="17-0", more=False)
    changes: list[Event]
    cursor: str | None = Field(description="Go on with it as `after`, also after the last page.")
    more: bool = Field(description="There are further events by now.")


class Summary(Stamped):
    """What the collection holds, and how its reader and writer do."""

    model_config = _example(
        **STAMP,
        items=1797,
        clusters=63,
        levels=2,
        dim=64,
        time=1700000000000,
        epoch=[0.12, 0.08, 1024],
        changes_from=1,
        cursor="17-8",
        window={"from_version": 1, "to_version": 17, "seconds": 61.5},
        writes=True,
        writer={"alive": True},
    )
    items: int
    clusters: int = Field(description="Final clusters.")
    levels: int
    dim: int | None = Field(description="Of the vectors; null before the first one.")
    time: Time = Field(description="Of the version's commit.")
    epoch: list[float] | None = Field(description="The calibration: mean, deviation, items.")
    changes_from: Version = Field(description="The first version of which the event log still tells.")
    cursor: str = Field(description="GET /v1/changes with it as `after` tells what comes next.")
    window: Window
    writes: bool = Field(description="Whether items are taken over HTTP.")
    writer: dict[str, Any] | None = Field(description="What the writer says of itself; null: it is away.")


class Node(BaseModel):
    """A vector, or a supernode named by its peak's."""

    key: Key = Field(description="Of the item that was asked for, or of the oldest one with this vector.")
    copies: int = Field(ge=1, description="Items with exactly this vector.")
    size: int = Field(ge=1, description="Different vectors in the supernode.")
    density: float


class Linked(Node):
    """A node of a chain of links, and its link to the next one."""

    similarity: float | None = Field(description="null: the peak links to nobody.")
    linkage: float | None


class Neighbor(Node):
    """A neighbour, and what the node made of it."""

    similarity: float
    linkage: float = Field(ge=0, le=1, description="The probability that both belong together.")
    cluster: ClusterId = Field(description="The neighbour's final cluster.")
    verdict: str = Field(description="parent, less-probable, below-tau or lower-density.")


class ExplainedLevel(Node):
    """What happened at a level."""

    level: int = Field(ge=0)
    cluster: ClusterId
    neighbors: list[Neighbor]
    refused: Neighbor | None = Field(description="The best that tau or density kept it from.")
    chain: list[Linked] = Field(description="From the node to the level's peak: the next level's node.")
    chain_links: int = Field(ge=0)


class Explanation(Stamped):
    """Why an item is where it is, from the finest level up."""

    model_config = _example(
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
                "neighbors": [NEIGHBOR],
                "refused": None,
                "chain": CHAIN,
                "chain_links": 1,
            }
        ],
    )
    key: Key
    cluster: ClusterId
    path: list[ClusterId]
    tau: float = Field(description="Least linkage that links.")
    levels: list[ExplainedLevel]


class Near(BaseModel):
    """Another cluster with a peak alike."""

    cluster: ClusterId
    similarity: float


class Disc(BaseModel):
    """A cluster on the map; also what its peak's payload shows of it."""

    model_config = ConfigDict(extra="allow")
    cluster: ClusterId
    size: int
    peak: str | None
    x: float
    y: float
    radius: float
    near: list[Near]


class Map(Stamped):
    """The largest clusters in two dimensions: a square from -1 to 1, alike ones near each other."""

    model_config = _example(
        **STAMP,
        total=63,
        clusters=[
            {
                "cluster": 42,
                "size": 31,
                "peak": "articles:7",
                "x": 0.31,
                "y": -0.4,
                "radius": 0.12,
                "near": [{"cluster": 51, "similarity": 0.61}],
            }
        ],
    )
    total: int = Field(description="Final clusters, drawn or not.")
    clusters: list[Disc]


class AssignOne(BaseModel):
    """Where a vector would go."""

    cluster: ClusterId | str = Field(description='A final cluster\'s id, or "new".')
    probability: float = Field(ge=0, le=1, description="Of the most probable linkage.")
    neighbor: str | None = Field(description="The key of the item it would link to.")


class Assigned(Stamped):
    """Where the vectors would go, in their order."""

    model_config = _example(**STAMP, answers=[{"cluster": 42, "probability": 0.93, "neighbor": "articles:7"}])
    answers: list[AssignOne]


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


class Written(Stamped):
    """Durable, as of this version."""

    model_config = _example(**STAMP, written=1, doubts=[], ignored=[])
    written: int = Field(ge=0, description="0: there was no item to delete.")
    doubts: list[str] = Field(description="What was taken although it is hardly right: an implausible time.")
    ignored: list[str] = Field(description="Names of fields that were not used.")


class Line(BaseModel):
    """A line, and what is wrong with it."""

    line: int = Field(ge=1)
    reason: str


class BulkWritten(Stamped):
    """All lines that could be used are durable, as of this version."""

    model_config = _example(
        **STAMP,
        written=2,
        lines=3,
        refused=1,
        errors=[{"line": 3, "reason": "broken JSON: unexpected end of data"}],
        doubts=[],
        ignored={"colour": 3},
    )
    written: int = Field(ge=0, description="Upserts, and deletes of items that there were.")
    lines: int = Field(ge=0, description="Empty ones too.")
    refused: int = Field(ge=0)
    errors: list[Line] = Field(description="The first 1,000 of the refused lines.")
    doubts: list[Line] = Field(description="The first 1,000 lines that were taken with an implausible time.")
    ignored: dict[str, int] = Field(
        description="Names of fields that were not used, and how often they came."
    )


class Ready(BaseModel):
    """Whether the daemon does all that it should."""

    model_config = _example(ready=False, reasons=["the writer does not run"])
    ready: bool
    reasons: list[str] = Field(description="Why not.")


class Live(BaseModel):
    """This process answers."""

    live: bool
