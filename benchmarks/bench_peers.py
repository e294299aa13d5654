"""Shoal beside other clusterers: the same labelled streams in batches of 256, all in one run.

After each batch every clusterer says the cluster of every item so far. For each:

Fb, ARI   BCubed F and adjusted Rand index against the labels, at the end of the stream
Fb_live   the mean of BCubed F over ten moments of the stream
churn     existing items whose cluster changes, per inserted item, in the second half. Where labels are
          arbitrary from run to run, clusters are matched first, largest overlap first
speed     items per second of processor time, as a ratio to Shoal's in this run: other processes on the
          machine disturb it less than time on the clock. All label every item after each batch

Parameters that a peer needs are those with the best BCubed F on the whole set (DBSTREAM, which takes
long: on its first quarter): chosen with the labels. Items that a peer calls
noise count as clusters of one. Files with `time` are fed in that order, others shuffled with `--seed`.
Needs `pip install -e .[peers]`.
"""

from __future__ import annotations

import importlib.metadata
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.peers import Peer
from benchmarks.report import arguments, finish, print_table
from engine.evaluation import scores
from engine.evaluation.evaluate import read_labelled, stream_order
from engine.types import Float32, Int64

BATCH = 256
MOMENTS = 10  # of the stream, at which the live score is taken
PACKAGES = ("scikit-learn", "fishdbc", "river", "bertopic")
COLUMNS = ("Fb", "ARI", "Fb_live", "churn", "clusters", "noise", "speed")


@dataclass(frozen=True, slots=True)
class Stream:
    """A labelled set in the order it is fed: unit vectors (n, d), classes (n,), texts."""

    name: str
    vectors: Float32
    classes: Int64
    texts: list[str]

    def first(self, count: int) -> Stream:
        """Return its first items."""
        return Stream(self.name, self.vectors[:count], self.classes[:count], self.texts[:count])


@dataclass(frozen=True, slots=True)
class Figures:
    """What one clusterer came to. `speed` is relative to the first one of the run."""

    peer: str
    parameters: str
    Fb: float
    ARI: float
    Fb_live: float
    churn: float
    clusters: int
    noise: int
    items_per_s: float
    items_per_processor_s: float
    speed: float


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "files", type=Path, nargs="+", help="labelled .npz files: emb, labels, maybe time and text"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle where there is no `time`")
    parser.add_argument("--alone", action="store_true", help="Shoal only, as after a change of its model")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown too")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    found: dict[str, list[Figures]] = {}
    for file in chosen.files:
        stream = read(file, chosen.seed)
        found[stream.name] = compare(stream, chosen.alone)
        print(f"\n{stream.name}: {len(stream.classes):,} items, {len(np.unique(stream.classes))} classes\n")
        print_table(["", *COLUMNS], [_row(figures) for figures in found[stream.name]])
        for figures in found[stream.name]:
            print(f"  {figures.peer}: {figures.parameters}")
    if chosen.markdown:
        chosen.markdown.write_text("\n".join(_markdown(name, rows) for name, rows in found.items()))
    finish(
        {
            "batch": BATCH,
            "seed": chosen.seed,
            "versions": {} if chosen.alone else {name: importlib.metadata.version(name) for name in PACKAGES},
            "streams": {name: [asdict(figures) for figures in rows] for name, rows in found.items()},
        },
        chosen.json,
    )


def read(file: Path, seed: int) -> Stream:
    """Return the labelled set in stream order."""
    labelled = read_labelled(file)
    order = stream_order(labelled, seed)
    with np.load(file, allow_pickle=False) as arrays:
        texts = arrays["text"] if "text" in arrays.files else np.full(len(order), "none")
    vectors = labelled.emb[order].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Stream(file.stem, vectors, labelled.labels[order], [str(text) for text in texts[order]])


def compare(stream: Stream, alone: bool) -> list[Figures]:
    """Feed the stream to Shoal and to each peer, one after another."""
    peers.warm(stream.vectors[:512])
    shoal = peers.Shoal()
    own = feed(shoal, stream, "the defaults, no parameter chosen")
    shoal.close()
    rows = [own]
    print(f"{stream.name}: {own}", file=sys.stderr, flush=True)
    for peer, parameters in () if alone else _peers(stream):
        rows.append(feed(peer, stream, parameters, own.items_per_processor_s))
        print(f"{stream.name}: {rows[-1]}", file=sys.stderr, flush=True)
    return rows


def _peers(stream: Stream) -> Iterator[tuple[Peer, str]]:
    """Each peer with the parameters chosen for it, in words."""
    dim = stream.vectors.shape[1]
    (size,) = _best(stream, lambda s: peers.hdbscan(stream.vectors, s), peers.SIZES)
    words = f"min_cluster_size={size}"
    yield peers.Rerun(dim, size), words
    nightly = peers.Nightly(dim, size)
    yield nightly, f"{words}; a night every {nightly.period * BATCH:,} items"

    whole = peers.Fishdbc(0)
    whole.add(stream.vectors, stream.texts)
    (size,) = _best(stream, whole.extract, peers.SIZES)
    yield peers.Fishdbc(size), f"min_cluster_size={size}"

    def of_dbstream(radius: float, fading: float) -> Int64:
        peer = peers.Dbstream(dim, radius, fading)
        peer.add(quarter.vectors, quarter.texts)
        return peer.labels()

    quarter = stream.first(len(stream.classes) // 4)
    radius, fading = _best(quarter, of_dbstream, peers.RADII, peers.FADINGS)
    yield (
        peers.Dbstream(dim, radius, fading),
        f"clustering_threshold={radius}, fading_factor={fading}",
    )
    clusters = len(np.unique(stream.classes))

    def of_bertopic(dim: int | None) -> Int64:
        peer = peers.Bertopic(clusters, dim)
        for first in range(0, len(stream.texts), BATCH):
            peer.add(stream.vectors[first : first + BATCH], stream.texts[first : first + BATCH])
        return peer.labels()

    (kept,) = _best(stream, of_bertopic, peers.DIMENSIONS)
    words = f"n_clusters={clusters}, the true number; n_components={kept}"
    yield peers.Bertopic(clusters, kept), words


def feed(peer: Peer, stream: Stream, parameters: str, base: float | None = None) -> Figures:
    """Stream everything; time only the peer's own work."""
    total, seconds, processor = len(stream.classes), 0.0, 0.0
    changed = inserted = 0
    live: list[float] = []
    before = np.empty(0, np.int64)
    for first in range(0, total, BATCH):
        end = min(first + BATCH, total)
        start, worked = time.perf_counter(), time.process_time()
        peer.add(stream.vectors[first:end], stream.texts[first:end])
        raw = peer.labels()
        seconds += time.perf_counter() - start
        processor += time.process_time() - worked
        labels = separated(raw)
        if not peer.stable:
            labels = matched(before, labels)
        if first >= total / 2:
            changed += int((labels[: len(before)] != before).sum())
            inserted += end - first
        if end * MOMENTS // total > first * MOMENTS // total:
            live.append(scores.bcubed_f(stream.classes[:end], labels))
        before = labels
    rate = total / processor
    return Figures(
        peer=peer.name,
        parameters=parameters,
        Fb=scores.bcubed_f(stream.classes, before),
        ARI=scores.ari(stream.classes, before),
        Fb_live=float(np.mean(live)),
        churn=changed / inserted,
        clusters=len(np.unique(before)) - int((raw == peers.NOISE).sum()),
        noise=int((raw == peers.NOISE).sum()),
        items_per_s=total / seconds,
        items_per_processor_s=rate,
        speed=rate / (base or rate),
    )


def separated(labels: Int64) -> Int64:
    """Give each noise item a label of its own: -1 - its number."""
    return np.where(labels == peers.NOISE, -1 - np.arange(len(labels)), labels)


def matched(before: Int64, labels: Int64) -> Int64:
    """Rename clusters after those before: the pair with the most items in common first, each name once.

    Negative labels are single items and stay as they are.
    """
    old, now = before, labels[: len(before)]
    kept = (old >= 0) & (now >= 0)
    pairs, counts = np.unique(np.stack([old[kept], now[kept]]), axis=1, return_counts=True)
    names: dict[int, int] = {}
    used: set[int] = set()
    for at in np.argsort(-counts, kind="stable").tolist():
        name, label = int(pairs[0, at]), int(pairs[1, at])
        if label not in names and name not in used:
            names[label] = name
            used.add(name)
    fresh = int(before.max(initial=-1)) + 1
    for label in np.unique(labels[labels >= 0]).tolist():
        if label not in names:
            names[label] = fresh
            fresh += 1
    return np.array([names.get(label, label) for label in labels.tolist()], np.int64)


def _best(stream: Stream, labels_of: Callable[..., Int64], *choices: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the parameters whose clusters of the whole set agree best with the labels."""
    return max(product(*choices), key=lambda c: scores.bcubed_f(stream.classes, separated(labels_of(*c))))


def _row(figures: Figures) -> list[Any]:
    return [figures.peer, *(getattr(figures, column) for column in COLUMNS)]


def _markdown(name: str, rows: list[Figures]) -> str:
    lines = [f"### {name}", "", f"| | {' | '.join(COLUMNS)} |", "|---|" + "---|" * len(COLUMNS)]
    for figures in rows:
        cells = [f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" for value in _row(figures)[1:]]
        lines.append(f"| {figures.peer} ({figures.parameters}) | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
