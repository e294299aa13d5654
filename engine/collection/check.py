"""Is a store what it should be? Everything that has to hold of it, looked at from outside.

    every value against its checksum, every key found           (`walk`, in another process)
    the tables against each other, the log against the items    (`facts`)
    neighbour lists: order, exact similarities, length; recall on a sample against exact search
    clusters, trees and places against the partition recomputed from the lists
    the snapshots beside LMDB against what they are copies of

It reads one version, also while another process writes the next ones, and changes nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engine import vectors
from engine.config import Settings
from engine.errors import CorruptStore, NoStore, ShoalError, StoreError
from engine.storage import invariants, seal
from engine.storage.invariants import Contents
from engine.storage.verify import reading
from engine.system import isolation
from engine.types import Bool, Int32, Int64

TOLD_MAX = 20  # findings of one kind that are told; all are counted
SAMPLE = 1_000  # lists compared with exact search
RECALL_MIN = 0.9  # of a sample of an HNSW store's lists


@dataclass(slots=True)
class Report:
    """What was looked at and what is wrong."""

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

    def note(self, part: str, problems: list[str]) -> None:
        """A part was looked at."""
        self.looked_at.append(part)
        if problems:
            self.counts[part] += len(problems)
            self.findings += [f"{part}: {problem}" for problem in problems[:TOLD_MAX]]
            if len(problems) > TOLD_MAX:
                self.findings.append(f"{part}: and {len(problems) - TOLD_MAX:,} more")

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def check(settings: Settings, sample: int = SAMPLE, seed: int = 0) -> Report:
    """Look at all of the settings' store. Raises NoStore, StoreError (it cannot be read at all).

    `sample`: lists compared with exact search. Damage is in the report, not raised.
    """
    path = settings.store.path
    if not (path / "data.mdb").is_file():
        raise NoStore(f"there is no store in {path}; name another, or make one with `shoal ingest`")
    report = Report(str(path))
    contents = _read(path, report)
    if contents is None:
        return report
    loaded = contents.loaded
    report.version, report.items = loaded.version, len(loaded.items.ids)
    report.collection = str(contents.config.get("collection") or "")
    report.clusters = int(np.count_nonzero(loaded.clusters.parent == 0))
    report.note("tables", invariants.tables(contents))
    report.note("event log", invariants.history(contents))
    complete = contents.config.get("k") or 0
    report.note("lists", lists(contents, int(complete)))
    _search(settings, contents, report, sample, seed)
    _derived(settings, contents, report)
    return report


def _read(path: Path, report: Report) -> Contents | None:
    try:
        seal.is_sealed(path)
        isolation.call("engine.storage.verify.walk", path, "beside")
        report.note("values", [])
        with reading(path, lock=True) as (_, found):
            if found is None:
                raise NoStore(f"{path} holds no store yet; `shoal ingest` makes one")
            return invariants.read(found)
    except CorruptStore as damage:
        report.note("values", [str(damage)])
        return None


def lists(contents: Contents, k: int) -> list[str]:
    """What is wrong with single neighbour lists: order, similarities, strangers, length."""
    items, lists = contents.loaded.items, contents.loaded.lists
    count, width = lists.neighbors.shape if len(lists.ids) else (0, 0)
    if not count:
        return []
    used = lists.neighbors >= 0
    at = np.minimum(np.searchsorted(items.ids, lists.neighbors), count - 1)
    hashes = vectors.hash_keys(items.keys)
    rows = np.arange(count)
    own, ranks = np.nonzero(used)
    exact = np.zeros(lists.dots.shape, np.int32)
    exact[own, ranks] = vectors.dots(items.vectors, own.astype(np.int32), at[own, ranks].astype(np.int32))
    lengths = used.sum(axis=1)
    falls = np.zeros(count, np.bool_)
    if width > 1:
        left, right = lists.dots[:, :-1], lists.dots[:, 1:]
        tie = (left == right) & (hashes[at[:, :-1]] >= hashes[at[:, 1:]])
        falls = (((left < right) | tie) & used[:, 1:]).any(axis=1)
    wrong: dict[str, Bool] = {
        "names an item that is not there": (used & (items.ids[at] != lists.neighbors)).any(axis=1),
        "has a gap": (used != (np.arange(width) < lengths[:, None])).any(axis=1),
        "names the item itself": (used & (at == rows[:, None])).any(axis=1),
        "is not sorted by similarity and hash, or names one twice": falls,
        "has a similarity that is not that of the vectors": (used & (exact != lists.dots)).any(axis=1),
        f"has fewer than {min(k, count - 1)} neighbours": lengths < min(k, count - 1),
    }
    return [
        f"the list of item {lists.ids[row]} {what}; `shoal rebuild` mends it"
        for what, mask in wrong.items()
        for row in np.flatnonzero(mask).tolist()
    ]


def _search(settings: Settings, contents: Contents, report: Report, sample: int, seed: int) -> None:
    """Lists against exact search; all of them must agree where the index is exact."""
    loaded = contents.loaded
    count = len(loaded.items.ids)
    if not count or report.counts["lists"] or report.counts["tables"]:
        if count:
            report.not_looked_at.append("recall of the lists: they are wrong in themselves")
        return
    rows = np.random.default_rng(seed).permutation(count)[: sample or count].astype(np.int32)
    found, hits, cut = _exact(contents, np.sort(rows))
    total = max(1, int((found >= 0).sum()))
    report.recall, report.sample = hits / total, len(rows)
    problems = [
        f"the list of item {item} is not what exact search finds; `shoal rebuild` mends it"
        for item in cut.tolist()
        if settings.index.kind == "exact"
    ]
    if settings.index.kind != "exact" and report.recall < RECALL_MIN:
        problems.append(
            f"only {report.recall:.3f} of the nearest neighbours are in the lists of a sample of"
            f" {len(rows):,} items, at least {RECALL_MIN} are wanted; `shoal rebuild` mends it"
        )
    report.note("lists against exact search", problems)


def _exact(contents: Contents, rows: Int32) -> tuple[Int64, int, Int64]:
    """The k nearest items of each row, how many of them its list has, and the items whose list differs."""
    from engine.index.base import ExactIndex
    from engine.index.columns import Nodes

    loaded, k = contents.loaded, int(contents.config.get("k") or 1)
    nodes = Nodes(loaded.items.vectors.shape[1])
    all_rows = nodes.add(loaded.items.vectors, vectors.hash_keys(loaded.items.keys))
    index = ExactIndex(nodes)
    index.insert(all_rows)
    width = loaded.lists.neighbors.shape[1]
    found, _ = index.search(rows, width)
    near = np.where(found >= 0, loaded.items.ids[found], -1)
    mine = loaded.lists.neighbors[rows]
    hits = sum(
        len(np.intersect1d(own[own >= 0], best[best >= 0]))
        for own, best in zip(mine, near[:, :k], strict=True)
    )
    differs = ((mine >= 0) & (mine != near)).any(axis=1)
    return near[:, :k], hits, loaded.items.ids[rows[differs]]


def _derived(settings: Settings, contents: Contents, report: Report) -> None:
    """What needs the model: the partition; and the snapshots."""
    if report.counts["tables"] or report.counts["lists"]:
        report.not_looked_at.append("partition and snapshots: the tables or lists are wrong in themselves")
        return
    from engine.collection import recheck

    try:
        state = recheck.recompute(settings, contents)
    except (StoreError, ShoalError) as reason:
        report.not_looked_at.append(f"partition: {reason}")
        state = None
    if state is not None:
        report.note("partition", recheck.partition(state, contents))
    report.note("snapshots", recheck.snapshots(settings, contents, state))
