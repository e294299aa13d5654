"""Other clusterers, each fed in micro-batches and asked for the cluster of every item after each batch.

Needs `pip install -e .[peers]`. Each is configured as its documentation shows for streams; what has to be
given (a radius, a number of clusters, a smallest size) is an argument; `bench_peers` chooses it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from sklearn.cluster import HDBSCAN, MiniBatchKMeans
from sklearn.decomposition import IncrementalPCA

from benchmarks.clusterers import Links
from engine import Engine
from engine.config import load
from engine.types import Float32, Int64

NOISE = -1  # a label of items that are in no cluster; each counts as a cluster of one
SIZES = (5, 10, 20)  # smallest cluster, offered to HDBSCAN and FISHDBC
RADII = (0.8, 0.9, 1.0, 1.1)  # offered to DBSTREAM; vectors have length 1
DIMENSIONS = (5, 50, None)  # offered to BERTopic
FADINGS = (0.01, 0.0001)  # its default is the first: half of a weight is forgotten in 100 items


class Peer(Protocol):
    """A clusterer that is fed batches. `stable`: its labels name the same cluster from batch to batch."""

    name: str
    stable: bool

    def add(self, vectors: Float32, texts: list[str]) -> None:
        """Take a batch (b, d) of unit vectors and the items' texts."""

    def labels(self) -> Int64:
        """Return the cluster of each item so far (n,), or NOISE."""


class Shoal:
    """The default settings with a model, by default the shipped one; its store makes batches durable.

    `model`: its weights, or a settings file (`.toml`) that names a model and its adapter.
    """

    name, stable = "Shoal", True

    def __init__(self, model: Path | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="shoal-peers-")
        given = {"store.path": f"{Path(self._folder.name) / 'store'}"}
        settings = model if model and model.suffix == ".toml" else None
        if model and not settings:
            given["model.path"] = str(model)
        self._engine = Engine.open(load(settings, given))
        self._count = 0

    def add(self, vectors: Float32, texts: list[str]) -> None:
        self._engine.upsert([str(self._count + row) for row in range(len(vectors))], vectors)
        self._count += len(vectors)

    def labels(self) -> Int64:
        keys, clusters = self._engine.labels()
        found = np.empty(self._count, np.int64)
        found[np.array([int(key) for key in keys], np.int64)] = clusters
        return found

    def close(self) -> None:
        """Remove the store."""
        self._engine.close()
        self._folder.cleanup()


class Rerun:
    """HDBSCAN over all items, run again after each batch (`scikit-learn`)."""

    name, stable = "HDBSCAN, run again after each batch", False

    def __init__(self, dim: int, size: int) -> None:
        self._vectors = np.empty((0, dim), np.float32)
        self._size = size

    def add(self, vectors: Float32, texts: list[str]) -> None:
        self._vectors = np.concatenate([self._vectors, vectors])

    def labels(self) -> Int64:
        return hdbscan(self._vectors, self._size)


class Nightly:
    """HDBSCAN after the first batch and every `period`; between two runs the nearest item decides.

    hnswlib stands for the vector database: it stores the vectors and answers which one is nearest.
    """

    name, stable = "vector index and a nightly HDBSCAN", False

    def __init__(self, dim: int, size: int, period: int = 10) -> None:
        import hnswlib

        self._vectors = np.empty((0, dim), np.float32)
        self._labels = np.empty(0, np.int64)
        self._size, self.period = size, period
        self._batches = 0
        self._index = hnswlib.Index("ip", dim)
        self._index.init_index(1 << 15, M=16, ef_construction=200)
        self._index.set_ef(200)

    def add(self, vectors: Float32, texts: list[str]) -> None:
        if self._batches:
            nearest = self._index.knn_query(vectors, 1)[0][:, 0].astype(np.int64)
            labels = self._labels[nearest]
        else:
            labels = np.full(len(vectors), NOISE, np.int64)
        known = len(self._vectors)
        self._index.add_items(vectors, np.arange(known, known + len(vectors)))
        self._vectors = np.concatenate([self._vectors, vectors])
        self._labels = np.concatenate([self._labels, labels])
        self._batches += 1
        if self._batches == 1 or self._batches % self.period == 0:
            self._labels = hdbscan(self._vectors, self._size)

    def labels(self) -> Int64:
        return self._labels


class Fishdbc:
    """FISHDBC: an approximate spanning tree that grows, and HDBSCAN's extraction after each batch."""

    name, stable = "FISHDBC", False

    def __init__(self, size: int) -> None:
        from fishdbc import FISHDBC

        self._clusterer = FISHDBC.from_metric("cosine")
        self._size = size

    def add(self, vectors: Float32, texts: list[str]) -> None:
        self._clusterer.update(vectors)

    def labels(self) -> Int64:
        return self.extract(self._size)

    def extract(self, size: int) -> Int64:
        """Return the clusters of another choice, from the same tree."""
        found = self._clusterer.cluster(min_cluster_size=size)
        return np.asarray(found.labels, np.int64)


class Dbstream:
    """DBSTREAM of River. `labels` is its `predict_one` for all items at once: the nearest centre."""

    name, stable = "River's DBSTREAM", False

    def __init__(self, dim: int, radius: float, fading: float) -> None:
        from river.cluster import DBSTREAM

        self._clusterer = DBSTREAM(clustering_threshold=radius, fading_factor=fading)
        self._vectors = np.empty((0, dim), np.float32)

    def add(self, vectors: Float32, texts: list[str]) -> None:
        for vector in vectors.tolist():
            self._clusterer.learn_one(dict(enumerate(vector)))
        self._vectors = np.concatenate([self._vectors, vectors])

    def labels(self) -> Int64:
        centers = self._clusterer.centers  # of what `predict_one` looks at, brought up to date
        if not centers:
            return np.zeros(len(self._vectors), np.int64)
        matrix = np.array([list(center.values()) for center in centers.values()], np.float32)
        distance = (matrix**2).sum(1)[None] - 2 * self._vectors @ matrix.T
        found: Int64 = np.array(list(centers), np.int64)[distance.argmin(1)]
        return found


class LinksStream:
    """Links, an item at a time."""

    name, stable = "Links", False

    def __init__(self, cluster: float, sub: float) -> None:
        self._links = Links(cluster, sub)

    def add(self, vectors: Float32, texts: list[str]) -> None:
        for vector in vectors:
            self._links.learn(vector)

    def labels(self) -> Int64:
        return self._links.labels()


class IncrementalDbscan:
    """Incremental DBSCAN (Ester et al., VLDB 1998) of the package incdbscan."""

    name, stable = "incremental DBSCAN", False

    def __init__(self, dim: int, radius: float, least: int = 5) -> None:
        from incdbscan import IncrementalDBSCAN

        self._clusterer = IncrementalDBSCAN(eps=radius, min_pts=least)
        self._vectors = np.empty((0, dim), np.float32)

    def add(self, vectors: Float32, texts: list[str]) -> None:
        self._clusterer.insert(vectors)
        self._vectors = np.concatenate([self._vectors, vectors])

    def labels(self) -> Int64:
        return np.asarray(self._clusterer.get_cluster_labels(self._vectors), np.int64)


class Bertopic:
    """BERTopic's online mode as documented: IncrementalPCA, MiniBatchKMeans, online c-TF-IDF.

    `dim`: of the reduced vectors, 5 in the documentation; None leaves out the reduction. An item keeps the
    topic that it got in its batch, as the documentation collects them.
    """

    name, stable = "BERTopic, online mode", True

    def __init__(self, clusters: int, dim: int | None) -> None:
        from bertopic import BERTopic
        from bertopic.dimensionality import BaseDimensionalityReduction
        from bertopic.vectorizers import ClassTfidfTransformer, OnlineCountVectorizer

        self._model: Any = BERTopic(
            embedding_model=None,
            umap_model=IncrementalPCA(n_components=dim) if dim else BaseDimensionalityReduction(),
            hdbscan_model=MiniBatchKMeans(n_clusters=clusters, random_state=0),
            vectorizer_model=OnlineCountVectorizer(stop_words="english", decay=0.01),
            ctfidf_model=ClassTfidfTransformer(reduce_frequent_words=True),
        )
        self._labels: list[int] = []

    def add(self, vectors: Float32, texts: list[str]) -> None:
        self._model.partial_fit(texts, vectors.astype(np.float64))  # MiniBatchKMeans keeps to one type
        self._labels += [int(topic) for topic in self._model.topics_]

    def labels(self) -> Int64:
        return np.array(self._labels, np.int64)


def hdbscan(vectors: Float32, size: int) -> Int64:
    """Return HDBSCAN's labels of unit vectors (n, d), by Euclidean distance."""
    if len(vectors) <= size:
        return np.full(len(vectors), NOISE, np.int64)
    model = HDBSCAN(min_cluster_size=size, algorithm="brute", copy=False)
    return np.asarray(model.fit_predict(vectors), np.int64)


def warm(vectors: Float32) -> None:
    """Compile Shoal's functions, which happens once on a machine."""
    shoal = Shoal()
    for part in np.array_split(vectors, 2):
        shoal.add(part, ["" for _ in part])
    shoal.labels()
    shoal.close()
