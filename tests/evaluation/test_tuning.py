"""Choosing tau: by pairs and by labels, sure or refused, and its estimate against plain recomputation."""

from __future__ import annotations

import numpy as np
import pytest

from engine.collection.sweep import Sweep
from engine.errors import Undecided
from engine.evaluation import scores
from engine.evaluation.base_tuning import choose_base
from engine.evaluation.granularity import tree_of
from engine.evaluation.judgements import Labels, Pairs
from engine.evaluation.proposal import propose
from engine.evaluation.tuning import _decide, choose, prior, require_gain, score

TAUS = [0.2, 0.3, 0.42, 0.6, 0.99]


def sweep(truth: int, current: int = 2) -> tuple[Sweep, np.ndarray]:
    """1,536 items whose clusters at each tau are four times as small; the labels are those at `truth`."""
    items = np.arange(1536)
    clusters = np.stack([items // size for size in (768, 192, 48, 12, 3)])
    return Sweep([str(item) for item in items], [b""] * len(items), TAUS, clusters, current), clusters[truth]


def judged(one: Sweep, labels: np.ndarray, count: int, seed: int = 0, wrong: float = 0.0) -> Pairs:
    found = propose(tree_of(one.taus, one.clusters), count, np.random.default_rng(seed))
    same = labels[found.first] == labels[found.second]
    flipped = np.random.default_rng(seed).random(len(same)) < wrong
    return Pairs(found.first, found.second, same ^ flipped)


@pytest.mark.parametrize("truth", [1, 3])
def test_the_granularity_of_the_judgements_is_chosen(truth: int) -> None:
    one, labels = sweep(truth)
    for seed in range(3):
        choice = choose(one, judged(one, labels, 100, seed), seed)
        assert choice.chosen == truth, f"{seed=}"
        require_gain(choice)
        assert choice.gain_low > 0
        assert choice.gain_low <= choice.gain <= choice.gain_high
        assert (choice.low <= choice.f).all()
        assert (choice.f <= choice.high).all()


def test_labels_of_some_items_choose_too() -> None:
    one, labels = sweep(1)
    rows = np.sort(np.random.default_rng(1).permutation(len(labels))[:150])
    choice = choose(one, Labels(rows, labels[rows]))
    assert choice.chosen == 1
    require_gain(choice)


def test_labels_of_most_items_are_measured() -> None:
    """F at each tau is that of the labelled items."""
    one, labels = sweep(3)
    rows = np.arange(1000)
    choice = choose(one, Labels(rows, labels[rows]))
    exact = [scores.bcubed_f(labels[rows], part[rows]) for part in one.clusters]
    assert choice.f == pytest.approx(exact, abs=0.01)
    assert choice.chosen == 3


def test_where_all_taus_are_as_good_the_current_one_stays() -> None:
    one, labels = sweep(3)
    same = Sweep(one.keys, one.payloads, TAUS, np.stack([labels] * 5), 2)
    choice = choose(same, Labels(np.arange(1000), labels[:1000]))
    assert choice.chosen == 2
    with pytest.raises(Undecided, match="no tau is expected to be better"):
        require_gain(choice)


def test_level_0_changes_only_where_that_gains_surely() -> None:
    one, labels = sweep(3)
    rows = np.arange(1000)
    measured = Labels(rows, labels[rows])
    choice = choose(one, measured)
    items = np.arange(1536)
    apart = np.stack([*one.clusters[:3], np.where(labels % 8, labels, 10_000 + items), items])
    worse, same, better = (
        Sweep(one.keys, one.payloads, TAUS, clusters, 2, base)
        for clusters, base in ((apart, 0.5), (one.clusters.copy(), 0.7), (one.clusters, 0.8))
    )
    assert choose_base(one, [worse, same], measured, choice) is None
    off = Sweep(one.keys, one.payloads, TAUS, apart, 2)
    found = choose_base(off, [better, worse], measured, choose(off, measured))
    assert found is not None
    assert (found.base_tau, found.tau) == (0.8, 0.6)
    assert 0 < found.gain_low <= found.gain <= found.gain_high
    assert found.sure == 1.0


def test_the_current_tau_stays_where_it_is_best() -> None:
    one, labels = sweep(2)
    choice = choose(one, judged(one, labels, 60))
    assert choice.chosen == choice.current
    assert choice.gain == 0.0
    with pytest.raises(Undecided, match=r"no tau is expected to be better than 0\.42"):
        require_gain(choice)


def test_judgements_at_random_do_not_tell() -> None:
    """Whatever is drawn, hardly a seed is sure of a gain that is none."""
    moved = 0
    for seed in range(10):
        one, labels = sweep(2)
        choice = choose(one, judged(one, labels, 14, seed, wrong=0.3), seed)
        try:
            require_gain(choice)
            moved += 1
        except Undecided:
            pass
    assert moved <= 3


def test_of_two_taus_the_surer_gain_counts() -> None:
    """A bold tau gains more in the mean, and loses much where the judgements mislead."""
    one, _ = sweep(2)
    f = np.full((100, len(one.taus)), 0.5)
    modest, bold = [at for at in range(len(one.taus)) if at != one.current][:2]
    f[:, modest] += 0.02
    f[:, bold] += np.where(np.arange(100) < 85, 0.1, -0.2)
    choice = _decide(one, f, 50)
    assert (choice.chosen, choice.sure) == (modest, 1.0)
    assert choice.gain == pytest.approx(0.02)


def test_what_tells_nothing_is_refused() -> None:
    one, labels = sweep(2)
    pairs = judged(one, labels, 60)
    some = slice(0, 5)
    with pytest.raises(Undecided, match=r"only \d of 5 judged pairs .* at least 10"):
        choose(one, Pairs(pairs.first[some], pairs.second[some], pairs.same[some]))
    for same, word in ((True, "the same"), (False, "different")):
        with pytest.raises(Undecided, match=f"that tell taus apart are {word}"):
            choose(one, Pairs(pairs.first, pairs.second, np.full(len(pairs.first), same)))
    flat = Sweep(one.keys, one.payloads, TAUS, np.stack([one.clusters[0]] * 5), 1)
    with pytest.raises(Undecided, match="the same at every tau"):
        choose(flat, pairs)


def test_the_same_seed_gives_the_same_choice() -> None:
    one, labels = sweep(2)
    pairs = judged(one, labels, 50)
    assert choose(one, pairs, 7).f.tolist() == choose(one, pairs, 7).f.tolist()
    assert choose(one, pairs, 7).f.tolist() != choose(one, pairs, 8).f.tolist()


def test_expected_f_is_bcubed_where_each_stratum_is_all_same_or_all_different() -> None:
    """q of 0 or 1 leaves nothing to estimate."""
    one, labels = sweep(1)
    tree = tree_of(one.taus, one.clusters)
    q = np.array([[0.0, 1.0, 1.0, 1.0, 1.0]])
    found = score(tree.gains, np.zeros(tree.gains.shape), q)
    assert found[0] == pytest.approx([scores.bcubed_f(labels, part) for part in one.clusters])


def test_the_prior_is_a_covariance() -> None:
    mean, covariance = prior([0.05, 0.42, 0.7, 0.99])
    assert (np.diff(mean[:-1]) > 0).all()
    assert np.array_equal(covariance, covariance.T)
    assert np.linalg.eigvalsh(covariance).min() > 0
