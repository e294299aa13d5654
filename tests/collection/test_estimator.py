"""`engine.HiLander` as scikit-learn expects an estimator to be, and equal to the engine."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from engine import Engine, HiLander
from engine.errors import InputError, ShoalError
from engine.model.adapter import Adapter
from tests.support.random_models import random_lander, random_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits() -> Any:
    found = load_digits()
    return found.data[:500], found.target[:500]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")  # the Array API is not set up
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_scikit_learn_finds_no_fault(metric: str) -> None:
    check_estimator(HiLander(metric=metric))


def test_labels_are_those_of_the_engine(digits: Any, tmp_path: Path) -> None:
    X, y = digits
    found = HiLander().fit(X)
    with Engine.open(tmp_path, index="exact") as engine:
        engine.upsert([str(row) for row in range(len(X))], X)
        keys, clusters = engine.labels()
        order = np.argsort([int(key) for key in keys])
        assert adjusted_rand_score(clusters[order], found.labels_) == 1.0
    assert adjusted_rand_score(y, found.labels_) > 0.5
    assert np.unique(found.labels_).tolist() == list(range(found.labels_.max() + 1))
    assert found.labels_[0] == 0
    assert (found.levels_[:, -1] == found.labels_).all()
    for fine, coarse in zip(found.levels_.T, found.levels_.T[1:], strict=False):
        assert len(np.unique(np.stack([fine, coarse], axis=1), axis=0)) == len(np.unique(fine))


def test_in_parts_as_at_once_and_in_any_order(digits: Any) -> None:
    """`random_model`, at the calibration that both end with."""
    X = digits[0][:300]
    whole = HiLander(model=random_model(3)).fit(X)
    parts = HiLander(model=random_model(3))
    ids = []
    for first in range(0, 300, 60):
        parts.partial_fit(X[first : first + 60])
        assert len(parts.labels_) == first + 60
        ids.append(parts.cluster_ids_)
    assert np.intersect1d(ids[-1], ids[-2]).size  # ids last
    if parts._state.calibration.epoch == whole._state.calibration.epoch:
        assert adjusted_rand_score(whole.labels_, parts.labels_) == 1.0
    order = np.random.default_rng(1).permutation(300)
    turned = HiLander(model=random_model(3)).fit(X[order])
    assert adjusted_rand_score(whole.labels_[order], turned.labels_) == 1.0
    assert (whole.fit(X[:50]).labels_ == HiLander(model=random_model(3)).fit(X[:50]).labels_).all()


def test_predict_is_what_an_engine_assigns(digits: Any, tmp_path: Path) -> None:
    X = digits[0]
    found = HiLander(tau=0.55).fit(X[:400])
    with Engine.open(tmp_path, index="exact", model__tau=0.55) as engine:
        engine.upsert([str(row) for row in range(400)], X[:400])
        told = engine.assign(np.concatenate([X[400:], -X[:20]]))
        label = {engine[str(row)].cluster: found.labels_[row] for row in range(400)}
    wanted = [-1 if each.cluster is None else label[each.cluster] for each in told]
    assert found.predict(np.concatenate([X[400:], -X[:20]])).tolist() == wanted
    assert len(set(wanted)) > 5
    assert -1 in wanted
    assert (found.predict(X[:400]) == found.labels_).all()


def test_probabilities(digits: Any) -> None:
    X = np.concatenate([digits[0][:200], digits[0][:1]])
    found = HiLander().fit(X)
    assert found.probabilities_[0] == found.probabilities_[-1] == 1.0  # two copies
    sizes = np.bincount(found.labels_)[found.labels_]
    assert (found.probabilities_[sizes == 1] == 0.0).all()
    assert (found.probabilities_[sizes > 1] > 0.3).mean() > 0.9
    assert found.probabilities_.max() <= 1.0


def test_a_zero_vector_is_a_cluster_of_one(digits: Any) -> None:
    X = digits[0][:60].copy()
    X[[7, 30]] = 0.0
    found = HiLander().fit(X)
    for row in (7, 30):
        assert (found.labels_ == found.labels_[row]).sum() == 1
        assert found.probabilities_[row] == 0.0
    others = np.delete(np.arange(60), [7, 30])
    assert (HiLander().fit(X[others]).labels_ == _renumbered(found.labels_[others])).all()
    assert found.predict(np.zeros((1, 64))).tolist() == [-1]
    assert HiLander().fit(np.zeros((3, 5))).labels_.tolist() == [0, 1, 2]


def _renumbered(labels: np.ndarray) -> np.ndarray:
    seen: dict[int, int] = {}
    return np.array([seen.setdefault(int(label), len(seen)) for label in labels])


def test_pipeline_clone_and_pickle(digits: Any) -> None:
    X, y = digits
    chain = make_pipeline(StandardScaler(), PCA(20, random_state=0), HiLander(metric="euclidean", tau=0.6))
    labels = chain.fit_predict(X)
    assert adjusted_rand_score(y, labels) > 0.3
    again = clone(chain)
    assert not hasattr(again[-1], "labels_")
    assert again[-1].get_params() == chain[-1].get_params()
    assert (again.fit(X)[-1].labels_ == labels).all()
    copied = pickle.loads(pickle.dumps(chain))
    assert (copied.predict(X[:50]) == labels[:50]).all()
    more = copied[-1].partial_fit(copied[:-1].transform(X[:10] + 0.5))
    assert len(more.labels_) == len(X) + 10


def test_euclidean_finds_blobs_wherever_they_are() -> None:
    """Moved and scaled, the same clusters; also where all directions from the origin are alike."""
    X, y = make_blobs(300, 5, centers=8, cluster_std=0.4, random_state=3)
    found = [HiLander(metric="euclidean").fit(each).labels_ for each in (X, 1e6 + X, 1e-3 * X)]
    assert adjusted_rand_score(y, found[0]) > 0.95
    assert adjusted_rand_score(found[0], found[1]) > 0.99
    assert (found[0] == found[2]).all()
    for unit in (1e-300, 1e-170, 1e160, 1e305):  # squares of these vanish, or overflow
        assert (HiLander(metric="euclidean").fit(unit * X).labels_ == found[0]).all(), unit
    assert HiLander(metric="euclidean").fit(np.ones((4, 3))).labels_.tolist() == [0, 0, 0, 0]


def test_rows_far_outside_the_first_scale_are_told() -> None:
    X, y = make_blobs(300, 3, centers=5, random_state=0)
    X = X[np.argsort(y, kind="stable")]
    with pytest.warns(UserWarning, match="times as far from the first data's mean as those did"):
        HiLander(metric="euclidean").fit(X[:60]).partial_fit(X[60:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HiLander(metric="euclidean").fit(X[::2]).partial_fit(X[1::2])


def test_small_clusters_are_noise_where_asked(digits: Any) -> None:
    X = digits[0][:200]
    every, some = HiLander().fit(X), HiLander(min_cluster_size=4).fit(X)
    sizes = np.bincount(every.labels_)[every.labels_]
    assert (sizes < 4).any()
    assert (some.labels_[sizes < 4] == -1).all()
    assert (some.labels_[sizes >= 4] == _renumbered(every.labels_[sizes >= 4])).all()
    assert (some.levels_ == every.levels_).all()
    assert (some.predict(X) == some.labels_).all()


def test_an_adapter_is_applied_and_saved_with_its_store(digits: Any, tmp_path: Path) -> None:
    X, _ = digits
    X = np.concatenate([X[:200], np.zeros((1, 64)), X[200:300]])
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 20)))[0]
    adapter = Adapter.of({"direct": turned, "bias": 0.05 * np.ones(20)}, {})
    file = tmp_path / "adapter.safetensors"
    adapter.save(file)
    found = HiLander(adapter=file).fit(X[:150]).partial_fit(X[150:])
    usable = X.any(axis=1)
    with Engine.open(tmp_path / "same", adapter=file, index="exact") as engine:
        for rows in (np.arange(150), np.delete(np.arange(150, 301), 50)):
            engine.upsert([str(row) for row in rows], X[rows])
        clusters = [engine.get(str(row)).cluster for row in np.flatnonzero(usable)]
    assert (_renumbered(found.labels_[usable]) == _renumbered(np.array(clusters))).all()
    assert found.labels_[200] == max(found.labels_[:201])
    assert (found.predict(X) == found.labels_)[usable].all()
    assert (pickle.loads(pickle.dumps(found)).predict(X) == found.predict(X)).all()
    found.save(tmp_path / "store")
    with Engine.open(tmp_path / "store", adapter=file) as engine:
        assert len(engine) == 300
        for row in (0, 150, 299):
            assert engine.assign(X[[row]])[0].cluster == engine.get(str(row)).cluster


def test_an_adapter_that_cannot_be_is_refused(digits: Any, tmp_path: Path) -> None:
    X, _ = digits
    file = tmp_path / "adapter.safetensors"
    Adapter.of({"direct": np.eye(20), "bias": np.zeros(20)}, {}).save(file)
    with pytest.raises(InputError, match="the adapter takes embeddings of 20 components"):
        HiLander(adapter=file).fit(X)
    with pytest.raises(InputError, match="an adapter is for embeddings"):
        HiLander(adapter=file, metric="euclidean").fit(X[:, :20])
    model = random_model(3)
    behind = model.with_card(replace(model.card, about={"adapter": "0" * 64}))
    with pytest.raises(InputError, match="trained behind the adapter"):
        HiLander(model=behind).fit(X)
    with pytest.raises(InputError, match="trained behind the adapter"):
        HiLander(model=behind, adapter=file).fit(X[:, :20])


def test_both_thresholds_can_be_set(digits: Any) -> None:
    X, _ = digits
    finest = [HiLander(base_tau=tau).fit(X).levels_[:, 0].max() for tau in (0.3, 0.6, 0.95)]
    assert finest == sorted(set(finest))


class Topics:
    """BERTopic 0.17's calls on its `hdbscan_model`, where that is not hdbscan's."""

    def __init__(self, hdbscan_model: Any) -> None:
        self.model = hdbscan_model

    def fit_transform(self, reduced: np.ndarray, y: Any = None) -> tuple[list[int], Any]:
        try:
            self.model.fit(reduced, y=y)
        except TypeError:
            self.model.fit(reduced)
        topics = self.model.labels_.tolist()
        return topics, self.model.probabilities_ if hasattr(self.model, "probabilities_") else None

    def transform(self, reduced: np.ndarray) -> list[int]:
        return [int(topic) for topic in self.model.predict(reduced)]


def test_bertopic_takes_it_for_hdbscan(digits: Any) -> None:
    X, y = digits
    topics = Topics(hdbscan_model=HiLander(min_cluster_size=10))
    found, probabilities = topics.fit_transform(X)
    assert adjusted_rand_score(y, found) > 0.5
    assert probabilities.shape == (len(X),)
    assert min(found) == -1  # its outliers
    assert sorted(set(found) - {-1}) == list(range(max(found) + 1))
    assert topics.transform(X[:30]) == found[:30]


@pytest.mark.long
def test_bertopic_itself() -> None:
    """Where the extra `peers` is installed."""
    bertopic = pytest.importorskip("bertopic")
    from bertopic.dimensionality import BaseDimensionalityReduction

    rng = np.random.default_rng(1)
    of = rng.integers(0, 6, 240)
    words = [[f"word{topic}x{at}" for at in range(8)] for topic in range(6)]
    texts = [" ".join(rng.choice(words[topic], 6)) for topic in of]
    emb = rng.normal(size=(6, 32))[of] + 0.2 * rng.normal(size=(240, 32))
    model = bertopic.BERTopic(
        hdbscan_model=HiLander(), umap_model=BaseDimensionalityReduction(), embedding_model=None
    )
    topics, probabilities = model.fit_transform(texts, embeddings=emb)
    assert adjusted_rand_score(of, topics) > 0.9
    assert len(probabilities) == 240
    assert model.transform(texts[:9], embeddings=emb[:9])[0] == topics[:9]


def test_saved_as_a_store(digits: Any, tmp_path: Path) -> None:
    X = digits[0][:120]
    found = HiLander(tau=0.5, model=random_lander(1, 64)).fit(X)
    assert not any(tmp_path.iterdir())
    found.save(tmp_path / "store")
    with Engine.open(tmp_path / "store", random_lander(1, 64), index="exact", model__tau=0.5) as engine:
        keys, clusters = engine.labels()
        assert adjusted_rand_score(clusters, found.labels_[[int(key) for key in keys]]) == 1.0
    with pytest.raises(InputError, match="holds a store with 120 items"):
        found.save(tmp_path / "store")


def test_hnsw(digits: Any) -> None:
    X, y = digits
    one, two = (HiLander(index="hnsw", random_state=4).fit(X) for _ in range(2))
    assert adjusted_rand_score(one.labels_, two.labels_) > 0.9
    assert adjusted_rand_score(y, one.labels_) > 0.5
    with pytest.raises(InputError, match='index="hnsw" cannot be pickled'):
        pickle.dumps(one)


@pytest.mark.parametrize(("parameters", "told"), [
    ({"metric": "manhattan"}, "metric is one of cosine, euclidean, not 'manhattan'"),
    ({"min_cluster_size": 0}, "min_cluster_size is an integer from 1 on, not 0"),
    ({"tau": 1.5}, "tau"), ({"max_levels": 0}, "max_levels"), ({"index": "tree"}, "index"),
    ({"model": "none.safetensors"}, "none.safetensors"), ({"model": 3}, "a file, a model or None, not 3"),
    ({"model": random_lander(1, 5)}, "takes embeddings of 5 components, these have 2"),
])  # fmt: skip
def test_parameters_that_make_no_sense_are_refused(parameters: dict[str, Any], told: str) -> None:
    with pytest.raises(ShoalError, match=told):
        HiLander(**parameters).fit([[1.0, 2.0], [2.0, 1.0]])


def test_bad_input() -> None:
    import scipy.sparse

    with pytest.raises(ValueError, match="0 feature"):
        HiLander().fit(np.zeros((3, 0)))
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        HiLander().fit(scipy.sparse.eye(3).tocsr())
    with pytest.raises(ValueError, match="could not convert string"):
        HiLander().fit([["a", "b"]])
    with pytest.raises(ValueError, match="NaN"):
        HiLander().fit([[1.0, float("nan")]])
    assert HiLander().fit([[1.0, 2.0]]).labels_.tolist() == [0]
    with pytest.raises(ValueError, match="2 features"):
        HiLander().fit([[1.0, 2.0]]).predict([[1.0, 2.0, 3.0]])


def test_what_is_masked_is_not_taken_for_a_value(digits: Any) -> None:
    rows = np.ma.array(digits[0][:50], mask=False)
    clusterer = HiLander().fit(rows)
    rows[3, 4] = np.ma.masked
    for take in (clusterer.fit, clusterer.partial_fit, clusterer.predict):
        with pytest.raises(InputError, match="X: some values are masked"):
            take(rows)


def test_parameters_are_those_of_the_first_fit(digits: Any) -> None:
    X, _ = digits
    unfitted = HiLander(index="exact", min_cluster_size=np.int64(2))
    found = pickle.loads(pickle.dumps(unfitted)).fit(X[:100])
    expected = found.predict(X[:20])
    for changed in ({"tau": 0.9}, {"metric": "euclidean"}, {"index": "hnsw"}, {"max_levels": 1}):
        found.set_params(**changed)
        with pytest.raises(InputError, match=f"{next(iter(changed))} was .* `fit` starts over"):
            found.partial_fit(X[100:120])
        assert len(found.labels_) == 100
        assert (found.predict(X[:20]) == expected).all()
        assert len(pickle.loads(pickle.dumps(found)).labels_) == 100
        found.set_params(tau=None, metric="cosine", index="exact", max_levels=None)
    assert len(found.partial_fit(X[100:120]).labels_) == 120
    found.set_params(tau=2.0, metric="euclidean")
    with pytest.raises(ShoalError, match="tau"):
        found.fit(X)
    assert len(found.labels_) == 120
    assert (found.predict(X[:20]) >= 0).any()
    found.set_params(tau=0.9)
    assert len(found.fit(X).labels_) == 500
