"""The generated collections of `bench_blobs`: some topics without a gap between near and far, and none.

A spread is the root of an item's mean squared distance from its centre, as a share of the distance
between the nearest two centres. Centres are unit vectors: evenly on the circle in two dimensions,
orthogonal in more. One blob is as wide as if there were an orthogonal one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Example:
    """A named collection: embeddings (n, d) and the topic of each, (n,)."""

    name: str
    emb: Float32
    labels: Int64


def blobs(count: int, dim: int, items: int, spread: float, seed: int) -> Example:
    """`count` topics of equal size."""
    rng = np.random.default_rng([count, dim, items, round(1000 * spread), seed])
    if dim == 2:
        turns = 2 * np.pi * (np.arange(count) / count + rng.random())
        centers = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    else:
        centers = np.linalg.qr(rng.normal(size=(dim, count)))[0].T
    apart = 2**0.5 if count == 1 else min(float(np.linalg.norm(centers[0] - c)) for c in centers[1:])
    labels = rng.permutation(np.arange(items) % count)
    emb = centers[labels] + spread * apart / dim**0.5 * rng.normal(size=(items, dim))
    return Example(f"{count} x {dim}-d x {items} x {spread}", emb.astype(np.float32), labels)


def directions(dim: int, items: int, seed: int) -> Example:
    """Uniformly random directions: each its own topic."""
    rng = np.random.default_rng([dim, items, seed])
    emb = rng.normal(size=(items, dim)).astype(np.float32)
    return Example(f"{items} random directions, {dim}-d", emb, np.arange(items))


def around(sizes: tuple[int, ...], distance: float, seed: int, dim: int = 384) -> Example:
    """Random unit centres and items at about `distance` from theirs: 1 / (1 + distance^2) similar."""
    rng = np.random.default_rng([*sizes, round(1e6 * distance), seed])
    centers = rng.normal(size=(len(sizes), dim))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    emb = centers[labels] + distance / dim**0.5 * rng.normal(size=(len(labels), dim))
    return Example(f"{sizes} at {distance}", emb.astype(np.float32), labels)


def examples(seed: int) -> Iterator[Example]:
    """What people try first, and near-copies by the hundred."""
    from sklearn.datasets import make_blobs

    for name, sizes, distance in (
        ("300 around one centre, similarity .91", (300,), 0.31),
        ("1,000 around one centre, similarity .9996", (1000,), 0.02),
        ("two such topics of 500", (500, 500), 0.02),
        ("300 near-copies, a step of the grid apart", (300,), 1e-3),
        ("five groups of 200 near-copies", (200,) * 5, 1e-3),
    ):
        found = around(sizes, distance, seed)
        yield Example(name, found.emb, found.labels)
    among = around((100,) * 5, 1e-3, seed)
    alone = directions(384, 500, seed)
    yield Example(
        "five groups of 100 near-copies among 500 random_directions",
        np.concatenate([among.emb, alone.emb / np.linalg.norm(alone.emb, axis=1, keepdims=True)]),
        np.concatenate([among.labels, 5 + alone.labels]),
    )
    for dim in (16, 384):
        emb, labels = make_blobs(300, dim, centers=3, random_state=seed)
        yield Example(f"make_blobs, 3 centres, {dim}-d", emb.astype(np.float32), labels)
