"""Losses against their formulas: points by hand, and plain twins on random data."""

from __future__ import annotations

from math import cos, exp, log, pi, radians, sin

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.errors import InputError
from engine.learning.losses import Margins, Objective, make_loss

# Degrees on the unit circle, three classes of three.
NINE = {0: 0, 22: 0, 85: 0, 100: 1, 110: 1, 180: 1, 245: 2, 252: 2, 262: 2}


def circle(points: dict[int, int]) -> tuple[Tensor, Tensor]:
    angles = np.radians(np.array(list(points)))
    emb = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return torch.from_numpy(emb), torch.tensor(list(points.values()))


def draw(seed: int, classes: int = 5, each: int = 5, dim: int = 6) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    emb = rng.normal(size=(classes, dim))[labels] + rng.normal(size=(len(labels), dim))
    return torch.from_numpy(emb / np.linalg.norm(emb, axis=1, keepdims=True)), torch.from_numpy(labels)


def margin_loss(emb: Tensor, labels: Tensor, margins: Margins) -> float:
    objective = Objective(make_loss("SupConLoss", 3, emb.shape[1]), 1.0)
    plain = float(objective(emb, labels))
    objective.set_margins(margins)
    return float(objective(emb, labels)) - plain


def test_the_margin_loss_of_nine_points_by_hand() -> None:
    emb, labels = circle(NINE)
    # 40 and 50 degrees. Positive pairs beyond 40: 63, 85, 70, 80; negative ones within 50: 15, 25.
    margins = Margins(cos(radians(40)), cos(radians(50)))
    pulled = margins.positive - sum(cos(radians(d)) for d in (63, 85, 70, 80)) / 4
    pushed = sum(cos(radians(d)) for d in (15, 25)) / 2 - margins.negative
    assert margin_loss(emb, labels, margins) == pytest.approx(pulled + pushed, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_margin_loss_is_its_formula(seed: int) -> None:
    emb, labels = draw(seed)
    margins = Margins(*np.random.default_rng(seed).uniform(-0.5, 0.9, 2))
    pairs = [(i, j, float(emb[i] @ emb[j])) for i in range(len(emb)) for j in range(i)]
    pulled = [margins.positive - s for i, j, s in pairs if labels[i] == labels[j] and s <= margins.positive]
    pushed = [s - margins.negative for i, j, s in pairs if labels[i] != labels[j] and s >= margins.negative]
    wanted = sum(sum(part) / len(part) for part in (pulled, pushed) if part)
    assert margin_loss(emb, labels, margins) == pytest.approx(wanted, abs=1e-9), f"{seed=}"


def test_smooth_ap_of_nine_points_by_hand() -> None:
    loss = make_loss("SmoothAPLoss", 3, 2)
    loss.temperature = 1e-4  # ranks are whole numbers then
    # Place among the class over place among all, an item first in its own list. 85: 22 and 0 behind two of
    # B; 100: 180 behind 85 and 22; 110: 180 behind 85; 180: 110 behind 245, 100 behind 245 and 252.
    precision = [
        1,
        1,
        (1 + 2 / 4 + 3 / 5) / 3,
        (2 + 3 / 5) / 3,
        (2 + 3 / 4) / 3,
        (1 + 2 / 3 + 3 / 5) / 3,
        1,
        1,
        1,
    ]
    assert float(loss(*circle(NINE))) == pytest.approx(1 - sum(precision) / 9, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_smooth_ap_is_its_formula(seed: int) -> None:
    emb, labels = draw(seed)
    similar = (emb @ emb.T).numpy()
    precision = []
    for q in range(len(emb)):
        own = [i for i in range(len(emb)) if labels[i] == labels[q]]

        def rank(k: int, among: list[int], q: int = q) -> float:
            return 1 + sum(1 / (1 + exp((similar[q, k] - similar[q, j]) / 0.01)) for j in among if j != k)

        precision.append(sum(rank(k, own) / rank(k, list(range(len(emb)))) for k in own) / len(own))
    wanted = 1 - sum(precision) / len(precision)
    assert float(make_loss("SmoothAPLoss", 5, 6)(emb, labels)) == pytest.approx(wanted, abs=1e-6), f"{seed=}"


@pytest.mark.parametrize("name", ["NormalizedSoftmaxLoss", "ArcFaceLoss"])
def test_losses_with_class_vectors_are_their_formulas(name: str) -> None:
    loss = make_loss(name, 3, 2)
    emb, labels = circle(NINE)
    loss.W = torch.nn.Parameter(torch.eye(2, 3, dtype=torch.float64) + 0.1)
    vectors = (loss.W / loss.W.norm(dim=0)).detach()
    total = 0.0
    for point, label in zip(emb, labels, strict=True):
        cosines = [float(point @ vectors[:, c]) for c in range(3)]
        if name == "ArcFaceLoss":  # 28.6 degrees farther away, 64 times
            angle = float(np.arccos(cosines[label]))
            beyond = cosines[label] - radians(28.6) * sin(radians(28.6))  # past 180 degrees
            cosines[label] = cos(angle + radians(28.6)) if angle + radians(28.6) <= pi else beyond
            logits = [64 * each for each in cosines]
        else:
            logits = [each / 0.05 for each in cosines]
        total += log(sum(exp(each - logits[label]) for each in logits))
    assert float(loss(emb, labels).detach()) == pytest.approx(total / 9, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("NoSuchLoss", "is no loss"),
        ("Margins", "is no loss"),
        ("ThresholdConsistentMarginLoss", "name another"),
        ("CrossBatchMemory", "is no loss"),
        ("SelfSupervisedLoss", "name another"),
    ],
)
def test_a_name_that_is_no_loss_is_refused(name: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        make_loss(name, 3, 2)
