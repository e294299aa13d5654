"""Check every invariant of a store from outside.

    every value against its checksum, every key found           (`walk`, in another process)
    the tables against each other, the log against the items    (`facts`)
    neighbour lists: order, exact similarities, length; recall on a sample against exact search
    clusters, trees and places against the partition recomputed from the lists
    the snapshots against the state they cache

It reads one version, also while another process writes, and changes nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engine import vectors
from engine.clustering import pipeline
from engine.clustering.distinct import distinct_hashes
from engine.clustering.resume import Saved, capture
from engine.clustering.state import State
from engine.collection import snapshots
from engine.collection.build import load_adapter, unclustered
from engine.config import Settings
from engine.errors import CorruptStore, ShoalError, counted
from engine.index.base import ExactIndex
from engine.index.columns import Nodes
from engine.model.adapter import Adapter
from engine.numbering import find
from engine.storage import schema, seal, verify
from engine.storage.environment import reading_made, require_file
from engine.storage.verify import Contents
from engine.system import isolation
from engine.system.files import versions
from engine.types import Bool, Int32, Int64

SHOWN_MAX = 20  # findings of a part that are shown; all are counted
SAMPLE = 1_000  # lists compared with exact search
RECALL_MIN = 0.9  # of a sample of an HNSW store's lists
_REBUILD = "run `shoal rebuild` to repair it"


@dataclass(slots=True)
class Report:
    """What was checked and what is wrong."""

    store: str
    collection: str = ""
    version: int = 0
    items: int = 0
    clusters: int = 0
    recall: float | None = None  # of the sample's lists against exact search
    sample: int = 0
    looked_at: list[str] = field(default_factory=list)
    not_looked_at: list[str] = field(default_factory=list)  # and why
    findings: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # findings by part
    hindrance: ShoalError | None = None  # of model and settings: the partition is not looked at

    def note(self, part: str, problems: list[str]) -> None:
        """Record the findings of a part."""
        self.looked_at.append(part)
        if problems:
            self.counts[part] += len(problems)
            self.findings += [f"{part}: {problem}" for problem in problems[:SHOWN_MAX]]
            if len(problems) > SHOWN_MAX:
                self.findings.append(f"{part}: and {len(problems) - SHOWN_MAX:,} more")

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def check(settings: Settings, sample: int = SAMPLE, seed: int = 0) -> Report:
    """Check the settings' store. Raises NoStore, StoreError (it cannot be read at all).

    `sample`: lists compared with exact search. Damage is in the report, not raised.
    """
    path = settings.store.path
    require_file(path)
    report = Report(str(path))
    contents = _read(path, report)
    if contents is None:
        return report
    loaded = contents.loaded
    report.version, report.items = loaded.version, len(loaded.items.ids)
    report.collection = str(contents.config.get("collection") or "")
    report.clusters = int(np.count_nonzero(loaded.clusters.parent == 0))
    report.note("tables", verify.tables(contents))
    report.note("event log", verify.history(contents))
    complete = contents.config.get("k") or 0
    report.note("lists", lists(contents, int(complete)))
    _search(settings, contents, report, sample, seed)
    _computed(settings, contents, report)
    return report


def _read(path: Path, report: Report) -> Contents | None:
    try:
        seal.is_sealed(path)
        isolation.call("engine.storage.verify.walk", path, "beside")
        with reading_made(path) as (found, config):
            schema.require_format(path, config)
            contents = verify.read(found)
    except CorruptStore as damage:
        report.note("values", [str(damage)])
        return None
    report.note("values", [])
    return contents


def adapted(adapter: Adapter, contents: Contents) -> list[str]:
    """Return the nodes whose vector is not what the adapter makes of their items' incoming vectors."""
    loaded, incoming = contents.loaded, contents.incoming
    nodes = loaded.vectors.vectors[np.searchsorted(loaded.vectors.ids, loaded.items.nodes)]
    if incoming is None or incoming.vectors.shape[1:] != (adapter.dim_in,) or len(incoming.ids) != len(nodes):
        return []  # what is wrong is in the tables
    wrong = (adapter.apply(incoming.vectors) != nodes).any(axis=1)
    return [
        f"the vector of item {item} is not adapted to that of its node; {_REBUILD}"
        for item in loaded.items.ids[wrong].tolist()
    ]


def lists(contents: Contents, k: int) -> list[str]:
    """Return what is wrong with single neighbour lists: order, similarities, unknown items, length."""
    nodes, stored = contents.loaded.vectors, contents.loaded.lists
    count, width = stored.neighbors.shape if len(stored.ids) else (0, 0)
    if not count:
        return []
    used = stored.neighbors >= 0
    at, there = find(nodes.ids, stored.neighbors)
    hashes = distinct_hashes(nodes.vectors)
    rows = np.arange(count)
    own, ranks = np.nonzero(used)
    exact = np.zeros(stored.dots.shape, np.int32)
    exact[own, ranks] = vectors.dots(nodes.vectors, own.astype(np.int32), at[own, ranks].astype(np.int32))
    lengths = used.sum(axis=1)
    falls = np.zeros(count, np.bool_)
    if width > 1:
        left, right = stored.dots[:, :-1], stored.dots[:, 1:]
        tie = (left == right) & (hashes[at[:, :-1]] >= hashes[at[:, 1:]])
        falls = (((left < right) | tie) & used[:, 1:]).any(axis=1)
    wrong: dict[str, Bool] = {
        "names a node that is not there": np.any(used & ~there, axis=1),
        "has a gap": (used != (np.arange(width) < lengths[:, None])).any(axis=1),
        "names the node itself": (used & (at == rows[:, None])).any(axis=1),
        "is not sorted by similarity and hash, or names one twice": falls,
        "has a similarity that is not that of the vectors": (used & (exact != stored.dots)).any(axis=1),
        f"has fewer than {counted(min(k, count - 1), 'neighbour')}": lengths < min(k, count - 1),
    }
    return [
        f"the list of node {stored.ids[row]} {what}; {_REBUILD}"
        for what, mask in wrong.items()
        for row in np.flatnonzero(mask).tolist()
    ]


def _search(settings: Settings, contents: Contents, report: Report, sample: int, seed: int) -> None:
    """Compare lists with exact search; all of them must agree where the index is exact."""
    loaded = contents.loaded
    count = len(loaded.vectors.ids)
    if not count or report.counts["lists"] or report.counts["tables"]:
        if count:
            report.not_looked_at.append("recall of the lists: the lists contain errors")
        return
    rows = np.random.default_rng(seed).permutation(count)[: sample or count].astype(np.int32)
    found, hits, cut = _exact(contents, np.sort(rows))
    total = max(1, int((found >= 0).sum()))
    report.recall, report.sample = hits / total, len(rows)
    problems = [
        f"the list of node {node} is not what exact search finds; {_REBUILD}"
        for node in cut.tolist()
        if settings.index.kind == "exact"
    ]
    if settings.index.kind != "exact" and report.recall < RECALL_MIN:
        problems.append(
            f"only {report.recall:.3f} of the nearest neighbours are in the lists of a sample of"
            f" {len(rows):,} nodes, at least {RECALL_MIN} are wanted; {_REBUILD}"
        )
    report.note("lists against exact search", problems)


def _exact(contents: Contents, rows: Int32) -> tuple[Int64, int, Int64]:
    """Return the k nearest nodes of each row, how many its list has, and the nodes whose list differs."""
    loaded, k = contents.loaded, int(contents.config.get("k") or 1)
    grid, ids = loaded.vectors.vectors, loaded.vectors.ids
    nodes = Nodes(grid.shape[1])
    all_rows = nodes.add(grid, distinct_hashes(grid))
    index = ExactIndex(nodes)
    index.insert(all_rows)
    width = loaded.lists.neighbors.shape[1]
    found, _ = index.search(rows, width)
    near = np.where(found >= 0, ids[found], -1)
    mine = loaded.lists.neighbors[rows]
    hits = sum(
        len(np.intersect1d(own[own >= 0], best[best >= 0]))
        for own, best in zip(mine, near[:, :k], strict=True)
    )
    differs = ((mine >= 0) & (mine != near)).any(axis=1)
    return near[:, :k], hits, ids[rows[differs]]


def _computed(settings: Settings, contents: Contents, report: Report) -> None:
    """Check the parts that need the model: the partition, and the snapshots."""
    if report.counts["tables"] or report.counts["lists"]:
        report.not_looked_at.append("partition and snapshots: the tables or lists contain errors")
        return
    try:
        state = recompute(settings, contents)
    except ShoalError as reason:
        report.not_looked_at.append(f"partition: {reason}")
        report.hindrance = reason
        state = None
    if state is not None:
        adapter = load_adapter(settings)
        if adapter:
            report.note("adapted vectors", adapted(adapter, contents))
        report.note("partition", partition(state, contents))
    report.note("snapshots", [*_index(settings, contents), *_levels(settings.store.path, contents, state)])


def recompute(settings: Settings, contents: Contents) -> State:
    """Compute the state from the lists. Raises ConfigMismatch, InputError: the settings are others."""
    state = unclustered(settings, contents.config, contents.loaded)
    if len(contents.loaded.items.ids):
        state.restore_lists(contents.loaded)
        state.hierarchy.restore(state.calibration.epoch)
    return state


def partition(state: State, contents: Contents) -> list[str]:
    """Return where stored trees, clusters and places differ from the recomputed partition.

    Naming it after the stored one must give the same names, and no events.
    """
    loaded = contents.loaded
    if not len(loaded.items.ids):
        return []
    problems = []
    if len(state.hierarchy.levels) != int(loaded.counters.get("levels", 1)):
        problems.append(f"its levels are {len(state.hierarchy.levels)}; {_REBUILD}")
    change = pipeline.regenerate(state, loaded.places, loaded.time_ms)
    moved = [
        node
        for node, tree in zip(change.places.ids.tolist(), change.places.after.tolist(), strict=True)
        if contents.places.get(node) != tree
    ]
    problems += [f"node {node} is in another tree; {_REBUILD}" for node in moved]
    stored = contents.paths
    for tree in sorted(change.trees.keys() | stored.keys()):
        if change.trees.get(tree) != stored.get(tree):
            problems.append(f"tree {tree} is in other clusters; {_REBUILD}")
    problems += [f"cluster {record.id} has another record; {_REBUILD}" for record in change.clusters]
    return problems


def _index(settings: Settings, contents: Contents) -> list[str]:
    """Check that the graph's vectors are those of the nodes, and its nodes existing or former ones."""
    problems = []
    folder, version_now = settings.store.path, contents.loaded.version
    loaded = contents.loaded.vectors
    for version in versions(folder, snapshots.INDEX):
        if version > version_now:  # written since
            continue
        found = snapshots.read_index(folder, version)
        if found is None:
            if version in versions(folder, snapshots.INDEX):
                problems.append(f"index-{version} is damaged; delete it, the next start builds the index")
            continue
        nodes, floats = found
        if not len(loaded.ids):
            continue
        at, held = find(loaded.ids, nodes)
        if held.any() and not np.array_equal(floats[held], vectors.as_float(loaded.vectors[at[held]])):
            problems.append(f"index-{version} has other vectors than the store; delete it")
        if version == version_now and settings.index.kind == "hnsw" and len(nodes) != len(loaded.ids):
            problems.append(
                f"index-{version} has {counted(len(nodes), 'node')}, not {len(loaded.ids)}; delete it"
            )
    return problems


def _levels(folder: Path, contents: Contents, state: State | None) -> list[str]:
    problems = []
    for version in versions(folder, snapshots.LEVELS):
        if version > contents.loaded.version:
            continue
        if not snapshots.is_whole(folder, version):
            if version in versions(folder, snapshots.LEVELS):
                problems.append(f"derived-{version} is damaged; delete it, the next start computes it")
            continue
        if state is None or version != contents.loaded.version:
            continue
        basis = snapshots.dependencies(state, contents.config["model"])
        saved = snapshots.read_levels(folder, version, basis)
        if saved is not None and not _same(saved, capture(state.hierarchy)):
            problems.append(f"derived-{version} is not what follows from the lists; delete it")
    return problems


def _same(saved: list[Saved], computed: list[Saved]) -> bool:
    """Return whether the nodes of each level have the same content, embeddings, linkage and density."""
    if len(saved) != len(computed):
        return False
    for mine, theirs in zip(saved, computed, strict=True):
        one, other = np.argsort(mine.content), np.argsort(theirs.content)
        for name in ("content", "basis", "hidden", "linkage", "density"):
            if not np.array_equal(getattr(mine, name)[one], getattr(theirs, name)[other]):
                return False
        if not np.array_equal(mine.content[mine.root[one]], theirs.content[theirs.root[other]]):
            return False
    return True
