"""Quality of clusters: Shoal's models beside other clusterers, same data, same run, one table a set.

Those that can stream are fed batches of 256 and asked for the cluster of every item after each; the others
cluster the whole set once. For each:

Fb, Fp     BCubed and pairwise F against the labels at the end, Fb with its precision and recall
churn      existing items whose cluster changes, per inserted item, in the second half; -: cannot stream
seconds    of processor time for all of it; streams label every item after each batch

*oracle*: threshold, number of clusters or partition are those with the best Fb, chosen with the labels.
Items that a clusterer calls noise count as clusters of one. `--model NAME=FILE` adds a model of Shoal, such
as a `lander` or a fine-tuned one: train it on other classes. FILE may be a settings file (`.toml`) that names
a model and its adapter. Files with `time` are fed in that order, others shuffled with `--seed`; `--items`
takes the first ones only. Needs `pip install -e .[peers,plots]`.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import DBSCAN

from benchmarks import clusterers, peers
from benchmarks.bench_peers import Stream, feed, read, separated
from benchmarks.peers import Peer
from benchmarks.report import arguments, finish, print_table
from engine.evaluation import scores
from engine.evaluation.drawing import figure
from engine.types import Int64

COLUMNS = ("Fb", "precision", "recall", "Fp", "clusters", "churn", "seconds")
QUANTILES = np.linspace(0.5, 0.9995, 60)  # of a tree's heights, tried as thresholds
THRESHOLDS = np.arange(0.3, 0.96, 0.025)  # of similarities
SUBS = (0.5, 0.6, 0.7, 0.8)  # of Links
SHARE, LEAST = 0.25, 2_000  # parameters of slow streams are chosen on this part, of so many items at least


@dataclass(frozen=True, slots=True)
class Row:
    """What one clusterer came to."""

    name: str
    oracle: str  # what was chosen with the labels; empty: nothing
    Fb: float
    precision: float
    recall: float
    Fp: float
    clusters: int
    churn: float | None
    seconds: float


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="labelled .npz files: emb, labels, maybe time")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FILE", help="repeatable")
    parser.add_argument("--items", type=int, help="the first ones of each stream")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle where there is no `time`")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--png", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    models = {name: Path(file) for name, _, file in (each.partition("=") for each in chosen.model)}
    found: dict[str, list[Row]] = {}
    for file in chosen.files:
        stream = read(file, chosen.seed)
        stream = stream.first(chosen.items) if chosen.items else stream
        title = f"{stream.name}: {len(stream.classes):,} items, {len(np.unique(stream.classes))} classes"
        found[title] = []
        for row in rows(stream, models):
            found[title].append(row)
            print(f"{stream.name}: {row}", file=sys.stderr, flush=True)
        print(f"\n{title}\n")
        print_table(["", *COLUMNS, "oracle"], [_cells(row) for row in found[title]])
    if chosen.markdown:
        chosen.markdown.write_text("\n".join(markdown(title, table) for title, table in found.items()))
    if chosen.png:
        draw(found, chosen.png)
    finish({"sets": {title: [asdict(row) for row in table] for title, table in found.items()}}, chosen.json)


def rows(stream: Stream, models: dict[str, Path]) -> Iterator[Row]:
    """Return every clusterer's row: those that stream, then those of the whole set."""
    peers.warm(stream.vectors[:512])
    for peer, name, oracle in _streams(stream, models):
        figures = feed(peer, stream, oracle)
        processor = len(stream.classes) / figures.items_per_processor_s
        yield _row(name, oracle, stream, separated(peer.labels()), figures.churn, processor)
        if isinstance(peer, peers.Shoal):
            peer.close()
    for name, oracle, labels, seconds in _wholes(stream):
        yield _row(name, oracle, stream, separated(labels), None, seconds)


def _streams(stream: Stream, models: dict[str, Path]) -> Iterator[tuple[Peer, str, str]]:
    """Each clusterer that streams, its name, and what was chosen with the labels."""
    vectors, dim = stream.vectors, stream.vectors.shape[1]
    yield peers.Shoal(), "Shoal, universal", ""
    for name, file in models.items():
        yield peers.Shoal(file), f"Shoal, {name}", ""
    whole = peers.Fishdbc(0)
    whole.add(vectors, stream.texts)
    size = _best(stream, ((size, whole.extract(size)) for size in peers.SIZES))[0]
    yield peers.Fishdbc(size), "FISHDBC", f"min_cluster_size {size}"
    some = stream.first(max(int(SHARE * len(stream.classes)), LEAST))

    def fed(peer: Peer) -> Int64:
        peer.add(some.vectors, some.texts)
        return peer.labels()

    tried = product(peers.RADII, peers.FADINGS)
    radius, fading = _best(some, ((each, fed(peers.Dbstream(dim, *each))) for each in tried))[0]
    yield peers.Dbstream(dim, radius, fading), "DBSTREAM (River)", f"radius {radius}, fading {fading}"
    pairs = product(THRESHOLDS[::3].round(3).tolist(), SUBS)
    cluster, sub = _best(some, ((each, fed(peers.LinksStream(*each))) for each in pairs))[0]
    yield peers.LinksStream(cluster, sub), "Links", f"similarities {cluster:g} and {sub:g}"
    radii = np.sqrt(2.0 - 2.0 * THRESHOLDS)
    radius = _best(stream, ((float(at), DBSCAN(eps=at).fit_predict(vectors)) for at in radii))[0]
    yield peers.IncrementalDbscan(dim, radius), "incremental DBSCAN", f"eps {radius:.2f}, min_pts 5"


def _wholes(stream: Stream) -> Iterator[tuple[str, str, Int64, float]]:
    """Each clusterer of the whole set: name, what was chosen with the labels, clusters, seconds."""
    vectors, count = stream.vectors, len(np.unique(stream.classes))
    for size in (2, 5):
        labels, seconds = timed(partial(peers.hdbscan, vectors, size))
        yield f"HDBSCAN, min_cluster_size {size}", "", labels, seconds
    parts, seconds = timed(lambda: list(clusterers.finch(vectors)))
    level, labels = _best(stream, enumerate(parts))
    yield "FINCH", f"partition {level + 1} of {len(parts)}", labels, seconds
    tree, seconds = timed(lambda: clusterers.average_linkage(vectors))
    heights = np.quantile(tree[:, 2], QUANTILES)
    height, labels = _best(stream, ((at, clusterers.cut(tree, at)) for at in heights))
    yield "average linkage", f"distance {height:.3f}", labels, seconds
    labels, seconds = timed(lambda: clusterers.k_means(vectors, count))
    yield "k-means", f"k = {count}, the true number", labels, seconds
    pairs, found = timed(lambda: clusterers.similar_pairs(vectors))
    methods: list[tuple[str, Callable[[clusterers.Pairs, float], Int64]]] = [
        ("connected components", clusterers.components),
        ("Chinese whispers", clusterers.chinese_whispers),
    ]
    least = float(pairs.similarity.min())
    for name, method in methods:
        able = [at for at in THRESHOLDS if at >= least]
        threshold, _ = _best(stream, ((at, method(pairs, at)) for at in able))
        labels, seconds = timed(partial(method, pairs, threshold))
        yield name, f"similarity {threshold:.3f}", labels, found + seconds


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what `work` returns, and its seconds of processor time."""
    start = time.process_time()
    found = work()
    return found, time.process_time() - start


def _best(stream: Stream, tried: Iterable[tuple[Any, Int64]]) -> tuple[Any, Int64]:
    """Return the choice, and its clusters, that agree best with the labels."""
    return max(tried, key=lambda each: scores.bcubed_f(stream.classes, separated(each[1])))


def _row(name: str, oracle: str, stream: Stream, clusters: Int64, churn: float | None, seconds: float) -> Row:
    agreement = scores.bcubed(stream.classes, clusters)
    pairwise = scores.pairwise_f(stream.classes, clusters)
    found = len(np.unique(clusters))
    return Row(
        name, oracle, agreement.f, agreement.precision, agreement.recall, pairwise, found, churn, seconds
    )


def _cells(row: Row) -> list[Any]:
    values = ["-" if getattr(row, column) is None else getattr(row, column) for column in COLUMNS]
    return [row.name, *values, row.oracle]


def markdown(title: str, table: list[Row]) -> str:
    """Return the table of one set."""
    lines = [
        f"### {title}",
        "",
        f"| | {' | '.join(COLUMNS)} | oracle |",
        "|---|" + "---|" * (len(COLUMNS) + 1),
    ]
    for row in table:
        digits = {"seconds": 1, "churn": 1}
        cells = [
            f"{value:,.{digits.get(name, 3)}f}" if isinstance(value, float) else str(value)
            for name, value in zip(["name", *COLUMNS, "oracle"], _cells(row), strict=True)
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(found: dict[str, list[Row]], path: Path) -> None:
    """Draw Fb of every clusterer, a panel for each set; hollow: chosen with the labels."""
    with figure(path, 1, len(found), (6.0 * len(found), 5.0)) as panels:
        for axes, (title, table) in zip(np.ravel(panels), found.items(), strict=True):
            ordered = sorted(table, key=lambda row: row.Fb)
            for at, row in enumerate(ordered):
                color = "C0" if row.name.startswith("Shoal") else "C7"
                axes.barh(at, row.Fb, color="none" if row.oracle else color, edgecolor=color)
            axes.set_yticks(range(len(ordered)), [row.name for row in ordered], fontsize=8)
            axes.set(xlim=(0.0, 1.0), xlabel="BCubed F", title=title)


if __name__ == "__main__":
    main()
