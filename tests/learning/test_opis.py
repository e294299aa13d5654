"""OPIS and its companions: ten points by hand, a plain twin on random data, samples, and bad input."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import numpy as np
import pytest

from engine.errors import InputError
from engine.learning.labelled import LabelledSet, labelled_set, read_labelled
from engine.learning.opis import Request, measure, opis, opis_worst, utility

# Degrees on the unit circle. Two are within 56 degrees of each other below a distance of 0.44, and none
# has a distance between 0.44 and 0.48 of another.
TEN = {0: "A", 20: "A", 85: "A", 100: "B", 110: "B", 180: "B", 245: "C", 250: "C", 260: "C", 305: "D"}


def circle(points: dict[int, str]) -> LabelledSet:
    angles = np.radians(np.array(list(points)))
    return labelled_set(np.stack([np.cos(angles), np.sin(angles)], axis=1), np.array(list(points.values())))


def blobs(seed: int, n: int = 200, classes: int = 9, noise: float = 0.7) -> LabelledSet:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    spread = rng.uniform(0.2, 2.0, classes)[labels][:, None] * noise
    emb = rng.normal(size=(classes, 8))[labels] + spread * rng.normal(size=(n, 8))
    return labelled_set(emb.astype(np.float32), labels)


def by_definition(labelled: LabelledSet, request: Request) -> dict[str, float]:
    """Pair by pair, without any of the module's code."""
    emb, classes = labelled.emb.astype(np.float64), labelled.classes
    n = len(emb)
    pairs = [(i, j, 1.0 - float(emb[i] @ emb[j])) for i in range(n) for j in range(i + 1, n)]
    negative = sorted(d for i, j, d in pairs if classes[i] != classes[j])
    if request.range:
        low, high = request.range
    else:
        low, high = (
            ceil(negative[ceil(rate * len(negative)) - 1] * 2**15) / 2**15
            for rate in request.false_acceptance
        )
    of_class = [c for c in range(len(labelled.names)) if (classes == c).sum() > 1]
    own = [[x for i, j, x in pairs if classes[i] == c and classes[j] == c] for c in of_class]
    others = [[x for i, j, x in pairs if (classes[i] == c) != (classes[j] == c)] for c in of_class]
    table = []
    for d in (low + (high - low) * step / 100 for step in range(101)):
        row = []
        for mine, across in zip(own, others, strict=True):
            psi = sum(x <= d for x in mine) / len(mine)
            phi = sum(x > d for x in across) / len(across)
            row.append(2 * phi * psi / (phi + psi) if phi + psi else 0.0)
        table.append(row)
    variance = [sum((u - sum(row) / len(row)) ** 2 for u in row) / len(row) for row in table]
    worst = []
    for row in table:
        count = ceil(request.epsilon * len(row))
        low_row, high_row = sorted(row)[:count], sorted(row)[count:]
        worst.append((sum(low_row) / len(low_row) - sum(high_row) / len(high_row)) ** 2)
    hits = [
        classes[max((emb[i] @ emb[j], -j) for j in range(n) if j != i)[1] * -1] == classes[i]
        for i in range(n)
        if classes[i] in of_class
    ]
    return {
        "low": low,
        "high": high,
        "opis": sum(variance) / len(variance),
        "opis_worst": sum(worst) / len(worst),
        "recall_at_1": sum(hits) / len(hits),
    }


def test_ten_points_by_hand() -> None:
    found = measure(circle(TEN), Request(range=(0.44, 0.48)))
    # Sensitivity: A has 1 of 3 pairs within, B 1 of 3, C 3 of 3. Specificity: of 21 pairs across, A has
    # 3 within (0-305, 85-100, 85-110), B 2 (100-85, 110-85), C 2 (250-305, 260-305).
    by_hand = np.array([12 / 25, 19 / 39, 19 / 20])
    np.testing.assert_allclose(found.utility, np.tile(by_hand[:, None], 101), atol=1e-12)
    assert found.opis == pytest.approx(by_hand.var())
    assert found.opis_worst == pytest.approx((12 / 25 - (19 / 39 + 19 / 20) / 2) ** 2)
    assert found.recall_at_1 == pytest.approx(7 / 9)  # 85 is next to 100, 180 to 245; D has no other
    np.testing.assert_allclose(found.false_acceptance, 5 / 36, atol=1e-12)
    np.testing.assert_allclose(found.false_rejection, 4 / 9, atol=1e-12)
    assert found.single_items == 1
    assert found.errors is None


def test_the_range_spans_two_false_acceptance_rates() -> None:
    found = measure(circle(TEN), Request(false_acceptance=(0.05, 0.12)))
    # The 36 pairs across, nearest first: 15, 25, 45, 55, 55 degrees ...; 0.05 of them are reached by
    # the second, 0.12 by the fifth.
    for end, degrees in zip(found.range, (25, 55), strict=True):
        assert 0.0 <= end - (1.0 - np.cos(np.radians(degrees))) < 2**-15


def test_the_utility_weighs_specificity_by_c() -> None:
    psi, phi = np.array([0.5, 0.0, 1.0]), np.array([0.25, 0.0, 1.0])
    np.testing.assert_allclose(utility(psi, phi), [1 / 3, 0.0, 1.0])


def test_the_worst_share_is_one_class_at_least_and_leaves_one() -> None:
    curves = np.array([[0.0, 1.0], [1.0, 1.0], [1.0, 0.5]])
    assert opis_worst(curves, 0.01) == pytest.approx((1.0 + 0.25) / 2)
    assert opis_worst(curves, 0.99) == pytest.approx((0.25 + 0.0625) / 2)
    assert opis(curves) == pytest.approx((2 / 9 + 1 / 18) / 2)


@pytest.mark.parametrize("seed", range(6))
def test_exact_figures_are_their_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labelled = blobs(seed, int(rng.integers(30, 90)), int(rng.integers(3, 14)))
    request = Request(false_acceptance=(0.05, 0.3), epsilon=float(rng.uniform(0.05, 0.6)))
    wanted, found = by_definition(labelled, request), measure(labelled, request)
    assert found.range == pytest.approx((wanted["low"], wanted["high"]), abs=1e-12), f"{seed=}"
    for name in ("opis", "opis_worst", "recall_at_1"):
        assert getattr(found, name) == pytest.approx(wanted[name], abs=1e-9), f"{seed=} {name}"


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    labelled = blobs(3, 500)
    whole = measure(labelled)
    monkeypatch.setattr("engine.learning.pairs.BLOCK", 7)
    monkeypatch.setattr("engine.learning.pairs.COLUMNS", 33)
    assert measure(labelled).opis == whole.opis
    assert measure(labelled).recall_at_1 == whole.recall_at_1


@pytest.mark.parametrize("seed", range(4))
def test_samples_are_within_their_errors(seed: int) -> None:
    labelled = blobs(seed, 4000, 60, 0.4)
    exact = measure(labelled, Request(range=(0.3, 0.6)))
    request = Request(
        range=(0.3, 0.6), seed=seed, exact_items=0, queries=800, landmarks=800, classes=40,
        positive_pairs=40 * 50**2,
    )  # fmt: skip
    sampled = measure(labelled, request)
    assert sampled.errors is not None
    assert len(sampled.classes) == 40
    for name in ("opis", "opis_worst", "recall_at_1"):
        error = getattr(sampled.errors, name)
        assert 0.0 < error < 0.3 * getattr(exact, name) + 0.02, f"{seed=} {name}"
        assert abs(getattr(sampled, name) - getattr(exact, name)) < 4 * error, f"{seed=} {name}"


def test_progress_rises_to_one() -> None:
    told: list[float] = []
    measure(blobs(1), progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0


BAD_SETS = {
    "one class only": (np.eye(3), np.zeros(3, int)),
    "one item only": (np.eye(3), np.arange(3)),
    "labels must be 3": (np.eye(3), np.zeros(4, int)),
    "row 1 of emb has a NaN": (np.array([[1.0, 0.0], [np.nan, 1.0], [1.0, 1.0]]), np.array([0, 1, 1])),
    "row 2 of emb is zero": (np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), np.array([0, 1, 1])),
    "of the shape": (np.ones(3), np.zeros(3, int)),
    "integers or strings": (np.eye(3), np.array([0.5, 1.5, 1.5])),
}


@pytest.mark.parametrize("reason", BAD_SETS)
def test_a_set_that_cannot_be_measured_is_refused(reason: str, tmp_path: Path) -> None:
    emb, labels = BAD_SETS[reason]
    np.savez(tmp_path / "bad.npz", emb=emb, labels=labels)
    with pytest.raises(InputError, match=reason):
        read_labelled(tmp_path / "bad.npz")


BAD_REQUESTS = {
    "rising distances": Request(range=(0.5, 0.2)),
    "from 0 to 2": Request(range=(0.5, 3.0)),
    "false-acceptance rates": Request(false_acceptance=(0.1, 0.1)),
    "epsilon": Request(epsilon=1.0),
}


@pytest.mark.parametrize("reason", BAD_REQUESTS)
def test_a_request_that_cannot_be_is_refused(reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        measure(circle(TEN), BAD_REQUESTS[reason])


def test_an_empty_measured_range_is_refused() -> None:
    emb = np.repeat(np.eye(3), 4, axis=0)
    with pytest.raises(InputError, match="is empty"):
        measure(labelled_set(emb, np.repeat(np.arange(3), 4)))


@pytest.mark.parametrize("kind", ["missing", "truncated", "none", "array", "pickle"])
def test_a_file_that_is_none_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    if kind == "truncated":
        np.savez(path, emb=np.eye(50), labels=np.repeat(np.arange(25), 2))
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "none":
        path.write_bytes(b"not an archive")
    elif kind == "array":
        with path.open("wb") as file:
            np.save(file, np.eye(3))
    elif kind == "pickle":
        np.savez(path, emb=np.eye(4), labels=np.array([{}, 1, 1, 2], dtype=object))
    with pytest.raises(InputError):
        read_labelled(path)


def test_names_come_from_the_file(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "set.npz", emb=np.eye(4), labels=np.array([2, 2, 0, 0]), label_names=np.array(list("abc"))
    )
    assert read_labelled(tmp_path / "set.npz").names == ("a", "c")


@pytest.mark.parametrize("length", [1e-200, 1e-30, 1e30, 1e200])
@pytest.mark.filterwarnings("error")
def test_directions_count_whatever_the_length(length: float) -> None:
    emb = np.random.default_rng(1).normal(size=(6, 4))
    labels = np.array([0, 0, 1, 1, 2, 2])
    found, wanted = (labelled_set(each, labels).emb for each in (emb * length, emb))
    assert np.abs(found - wanted).max() < 1e-6
