"""Generates collections that labelled files do not cover.

These are one to eight topics without a gap between near and far, random directions, narrow cones (encoders
whose random pairs have a similarity of .5 to .95), and hundreds of near-copies, a few grid steps apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from engine.training.datasets import Collection
from engine.types import Float32, Float64, Int64

Rng = np.random.Generator


def _between(rng: Rng, low: float, high: float) -> float:
    """Log-uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _unit(x: Float64) -> Float64:
    unit: Float64 = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return unit


def _noise(rng: Rng, n: int, d: int, decay: float) -> Float64:
    """Draw rows of length about 1; the higher `decay`, the lower their effective dimension."""
    spectrum = np.arange(1, d + 1) ** -decay
    spectrum /= np.sqrt((spectrum**2).sum())
    noise: Float64 = rng.normal(size=(n, d)) * spectrum[rng.permutation(d)]
    return noise


def _apart(rng: Rng, count: int, d: int) -> Float64:
    """Draw well-separated directions: of 20 draws the one whose nearest pair is farthest apart."""
    draws = [_unit(rng.normal(size=(count, d))) for _ in range(20 if count > 1 else 1)]
    if d == 2 and rng.random() < 0.5:
        turns = 2 * np.pi * (np.arange(count) / count + rng.random())
        return np.stack([np.cos(turns), np.sin(turns)], axis=1)
    return max(draws, key=_nearest)


def _nearest(centers: Float64) -> float:
    if len(centers) == 1:
        return float(np.sqrt(2.0))
    apart = np.linalg.norm(centers[:, None] - centers, axis=2)
    return float(apart[~np.eye(len(centers), dtype=bool)].min())


def blobs(rng: Rng, n: int) -> tuple[Float32, Int64]:
    """Draw one to eight topics; the noise is .002 to .6 of the distance between centres."""
    d = 2 if rng.random() < 0.12 else int(_between(rng, 2, 800))
    count = int(rng.choice([1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 8]))
    centers = _apart(rng, min(count, 2 * d), d)
    count = len(centers)
    share = np.ones(count) if rng.random() < 0.6 else rng.lognormal(0.0, 0.6, count)
    labels = rng.choice(count, n, p=share / share.sum())
    near = _nearest(centers)
    spread = near * (rng.uniform(0.05, 0.52) if rng.random() < 0.75 else _between(rng, 0.002, 0.1))
    each = np.full(count, spread) if rng.random() < 0.6 else spread * rng.lognormal(-0.1, 0.3, count)
    each = np.minimum(each, 0.52 * near)
    decay = 0.0 if rng.random() < 0.6 else rng.uniform(0.0, 1.0)
    x = centers[labels] + each[labels, None] * _noise(rng, n, d, decay)
    if count > 1 and rng.random() < 0.25:  # all in one cone
        x += rng.uniform(0.2, 2.5) * _unit(rng.normal(size=d))
    return x.astype(np.float32), labels


def random_directions(rng: Rng, n: int) -> tuple[Float32, Int64]:
    """Draw random directions; each item is its own class."""
    d = int(_between(rng, 28, 1100))
    return rng.normal(size=(n, d)).astype(np.float32), np.arange(n)


def cone(rng: Rng, n: int) -> tuple[Float32, Int64]:
    """Draw many small classes in a narrow cone: random pairs have a similarity of .4 to .95."""
    d = int(rng.choice([48, 96, 128, 256, 384, 768]))
    typical = _between(rng, 1.2, 12)
    sizes = np.maximum(1, np.round(typical * rng.lognormal(-0.3, 0.8, int(n / typical) + 2))).astype(int)
    labels = np.repeat(np.arange(len(sizes)), sizes)[:n]
    decay = rng.uniform(0.25, 0.7)
    centers = _noise(rng, len(sizes), d, decay)
    if rng.random() < 0.5:  # fields of several classes
        fields = rng.integers(0, max(2, len(sizes) // 8), len(sizes))
        centers = centers + rng.uniform(0.4, 1.2) * _noise(rng, fields.max() + 1, d, decay)[fields]
    within = rng.uniform(0.15, 0.6) * rng.lognormal(0.0, rng.uniform(0.0, 0.4), len(sizes))
    x = centers[labels] + within[labels, None] * _noise(rng, len(labels), d, decay)
    similar = rng.uniform(0.4, 0.95)
    x += np.sqrt((x**2).sum(axis=1).mean() * similar / (1 - similar)) * _unit(rng.normal(size=d))
    return x.astype(np.float32), labels


def copies(rng: Rng, n: int) -> tuple[Float32, Int64]:
    """Draw groups of near-copies, some grid steps to 2 % apart; in half of the draws among random vectors."""
    d = int(_between(rng, 4, 800))
    each = _between(rng, 15, 800)
    count = max(1, min(int(n / each), 60))
    labels = np.sort(rng.integers(0, count, n))
    apart = _between(rng, 2e-4, 2e-2)
    centers = _unit(rng.normal(size=(count, d)))
    x = centers[labels] + apart * _noise(rng, n, d, 0.0)
    if rng.random() < 0.3:
        x += rng.uniform(0.2, 2.0) * _unit(rng.normal(size=d))
    if d >= 32 and rng.random() < 0.5:
        alone = int(rng.uniform(0.05, 1.0) * n) + 1
        x = np.concatenate([x, rng.normal(size=(alone, d)) / d**0.5])
        labels = np.concatenate([labels, count + np.arange(alone)])
    return x.astype(np.float32), labels


KINDS: tuple[tuple[str, float, Callable[[Rng, int], tuple[Float32, Int64]]], ...] = (
    ("blobs", 0.5, blobs),
    ("random directions", 0.15, random_directions),
    ("cone", 0.15, cone),
    ("copies", 0.2, copies),
)


def drawn(rng: Rng, n: int) -> Collection:
    """Draw one of these kinds, of about `n` items."""
    name, _, make = KINDS[int(rng.choice(len(KINDS), p=[share for _, share, _ in KINDS]))]
    return Collection(name, *make(rng, n))


def in_cone(rng: Rng, collection: Collection) -> Collection:
    """Return the items moved into a cone: with a random common direction added."""
    similar = rng.uniform(0.1, 0.9)
    emb = collection.emb
    length = float(np.sqrt((emb**2).sum(axis=1).mean() * similar / (1 - similar)))
    common = length * _unit(rng.normal(size=(1, emb.shape[1])))
    return replace(collection, emb=emb + common.astype(np.float32))


def with_near_copies(rng: Rng, collection: Collection) -> Collection:
    """Return the items, and 20 to 300 near-copies of up to three of them in the same class."""
    emb, labels = collection.emb, collection.labels
    rows = rng.integers(0, len(emb), int(rng.integers(1, 4)))
    times = rng.integers(20, max(21, min(300, len(emb) // 3 + 1)), len(rows))
    again = np.repeat(rows, times)
    apart = _between(rng, 2e-4, 5e-3) * np.linalg.norm(emb[again], axis=1) / emb.shape[1] ** 0.5
    noise = (apart[:, None] * rng.normal(size=(len(again), emb.shape[1]))).astype(np.float32)
    return replace(
        collection,
        emb=np.concatenate([emb, emb[again] + noise]),
        labels=np.concatenate([labels, labels[again]]),
    )
