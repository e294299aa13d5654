"""Collections to train on: labelled files, augmented, and generated mixtures.

A model for unknown embedding spaces has to be trained on many spaces. So a file gives several collections
(its texts embedded by other n-grams, its drawings as pixels), each draw is augmented at random (projected,
whitened, thinned, noisy), and generated mixtures add clusters of all shapes and classes on curved manifolds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter, zoom

from connectors.files.labelled import LabelledFile
from connectors.files.labelled import read_labelled as read_file
from engine.errors import InputError, counted
from engine.numbering import by_occurrence
from engine.types import Float32, Float64, Int64
from engine.vectors import moderate, quantize

Rng = np.random.Generator
LEAST_DIM = 4
UNKNOWN = -1  # the label of an item without one, as in `LabelledFile.classes`
SIDE = 28  # pixels a side, to which pictures are scaled
MOST_TEXTS = 6000  # of a file that are embedded by n-grams


@dataclass(frozen=True, slots=True)
class Collection:
    """Labelled embeddings: `emb` (n, d) and `labels` (n,)."""

    name: str
    emb: Float32
    labels: Int64


@dataclass(frozen=True, slots=True)
class SpaceFiles:
    """Files of one embedding space."""

    labelled: Sequence[Path]  # to train on
    choose: Sequence[Path] = ()  # judge in place of held-out classes
    adapter: Path | None = None  # where a map of the space goes, if one is to be learned


def read_labelled(path: Path) -> Collection:
    """Read a labelled file; classes get numbers from 0. Raises InputError where it is none."""
    return collection_of(path.stem, read_file(path))


def read_space(paths: Sequence[Path]) -> list[Collection]:
    """Read labelled files of one space; the same label is the same class. Raises InputError."""
    files = [read_file(Path(path)) for path in paths]
    named = zip(paths, files, shared_classes(files), strict=True)
    return [Collection(Path(path).stem, unit(file.emb), labels) for path, file, labels in named]


def shared_classes(files: Sequence[LabelledFile]) -> list[Int64]:
    """Number the classes of several files, (n,) each: the same label is the same class; UNKNOWN: no label."""
    numbers: dict[str, int] = {}
    found = []
    for file in files:
        names, of = file.classes()
        own = [numbers.setdefault(name, len(numbers)) for name in names]
        found.append(np.array([*own, UNKNOWN], np.int64)[of])  # -1, without a label, is the last one
    return found


def unit(emb: Float32 | Float64) -> Float32:
    """Return vectors (n, d) scaled to unit length."""
    emb = moderate(emb)
    scaled: Float32 = (emb / np.linalg.norm(emb, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def collection_of(name: str, file: LabelledFile) -> Collection:
    """Return the records of a file whose labels are all known."""
    return Collection(name, moderate(file.emb).astype(np.float32), file.classes()[1])


def label_warnings(collection: Collection) -> list[str]:
    """Return warnings about implausible labels, as sentences; the collection is used nevertheless."""
    found = []
    labels, sizes = np.unique(collection.labels, return_counts=True)
    alone = int((sizes == 1).sum())
    if alone:
        found.append(f"{collection.name} has {counted(alone, 'class', 'classes')} of one item")
    if len(labels) == 1:
        found.append(f"{collection.name} has one class only")
    _, which = np.unique(quantize(collection.emb)[0], axis=0, return_inverse=True)
    pairs = np.unique(np.stack([which.ravel(), collection.labels], axis=1), axis=0)
    torn = int((np.bincount(pairs[:, 0]) > 1).sum())
    if torn:
        found.append(f"{collection.name} has {counted(torn, 'vector')} with several labels")
    return found


def distinct(collection: Collection) -> Collection:
    """Return the collection without duplicates: vectors that are identical on the grid."""
    rows, _ = by_occurrence(quantize(collection.emb)[0])
    return replace(collection, emb=collection.emb[rows], labels=collection.labels[rows])


def need_pairs(collections: Sequence[Collection]) -> None:
    """Raise InputError where no class of any of them has two distinct items."""
    for each in collections:
        if np.unique(distinct(each).labels, return_counts=True)[1].max(initial=0) > 1:
            return
    names = ", ".join(each.name for each in collections)
    raise InputError(f"{names}: no class has two distinct items, there is nothing to learn from")


def other_embeddings(collection: Collection, file: LabelledFile, seed: int) -> list[Collection]:
    """Return other embeddings of the same items, where their file has `text` or `images`."""
    rng = np.random.default_rng(seed)
    if file.texts is not None:
        return _texts(collection, [str(text) for text in file.texts], rng)
    if file.images is not None:
        drawings = _drawings(file.images)
        return [] if drawings is None else _pixels(collection, drawings, rng)
    return []


def _texts(collection: Collection, texts: Sequence[str], rng: Rng) -> list[Collection]:
    """Embed texts by character and word n-grams: TF-IDF, then a random projection or truncated SVD (LSA)."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    seed = int(rng.integers(1 << 31))
    rows = rng.permutation(len(texts))[:MOST_TEXTS]
    texts, labels = [texts[row] for row in rows], collection.labels[rows]
    out = []
    for analyzer, grams, dim, leading in (
        ("char_wb", (2, 4), 256, False),
        ("word", (1, 2), 128, True),
        ("char_wb", (3, 5), 64, True),
    ):
        count = TfidfVectorizer(analyzer=analyzer, ngram_range=grams, max_features=20_000, sublinear_tf=True)
        try:
            counts = count.fit_transform(texts)
        except ValueError:  # there is not a word in them
            continue
        dim = min(dim, counts.shape[1] - 1)
        if dim < LEAST_DIM:
            continue
        if leading:
            emb = TruncatedSVD(dim, n_iter=2, random_state=seed).fit_transform(counts)
        else:
            emb = counts @ rng.normal(size=(counts.shape[1], dim))
        emb = emb.astype(np.float32)
        usable = np.linalg.norm(emb, axis=1) > 1e-6
        kind = f"{collection.name}:{analyzer}{grams[0]}-{grams[1]}"
        out.append(Collection(kind, emb[usable], labels[usable]))
    return out


def _drawings(images: NDArray[Any]) -> Float32 | None:
    """Scale pictures of any size and colour to grey ones, (n, SIDE, SIDE); None: they are no pictures."""
    if images.ndim < 3 or min(images.shape[1:3]) < 2:
        return None
    grey = images.astype(np.float32).reshape(*images.shape[:3], -1).mean(axis=3)
    if grey.shape[1:] != (SIDE, SIDE):
        grey = zoom(grey, (1.0, SIDE / grey.shape[1], SIDE / grey.shape[2]), order=1)
    return np.asarray(grey, dtype=np.float32)


def _pixels(collection: Collection, images: Float32, rng: Rng) -> list[Collection]:
    """Return drawings as coarse pixels, each jittered many times: few, large, curved classes."""
    out = []
    for side in (8, 14):
        chosen = rng.permutation(np.unique(collection.labels))[:150]
        emb, labels = [], []
        for label in chosen:
            drawings = images[collection.labels == label]
            for _ in range(rng.integers(2, 7)):
                for drawing in drawings:
                    emb.append(_coarse(_jitter(drawing, rng, 0.15), side))
                    labels.append(label)
        out.append(
            Collection(
                f"{collection.name}:pixels{side}", np.array(emb, np.float32), np.array(labels, np.int64)
            )
        )
    return out


def _jitter(image: Float32, rng: Rng, amount: float) -> Float32:
    """Apply a small random affine map and blur."""
    side = image.shape[0]
    matrix = np.eye(2) + amount * rng.normal(size=(2, 2))
    center = (side - 1) / 2
    shift = center - matrix @ np.full(2, center) + amount * 6 * rng.normal(size=2)
    moved = affine_transform(image, matrix, shift, order=1)
    return np.asarray(gaussian_filter(moved, rng.uniform(0.3, 1.2)), dtype=np.float32)


def _coarse(image: Float32, side: int) -> Float32:
    """Return the means over square tiles, (side * side,)."""
    tile = image.shape[0] // side
    edge = (image.shape[0] - tile * side) // 2
    cut = image[edge : edge + tile * side, edge : edge + tile * side]
    pixels: Float32 = cut.reshape(side, tile, side, tile).mean(axis=(1, 3)).ravel() + np.float32(1e-3)
    return pixels


def augmented(collection: Collection, rng: Rng) -> Collection:
    """Return the same items as another encoder might embed them; unchanged in half of the draws."""
    emb = collection.emb / np.maximum(np.linalg.norm(collection.emb, axis=1, keepdims=True), 1e-9)
    n, d = emb.shape
    choice = rng.random()
    if choice < 0.5:
        pass
    elif choice < 0.65:  # a random projection loses some
        out = int(rng.integers(min(24, d), d + 1))
        emb = emb @ rng.normal(size=(d, out)).astype(np.float32)
    elif choice < 0.73:
        emb = emb[:, rng.permutation(d)[: rng.integers(d // 3 + 1, d + 1)]]
    elif choice < 0.83:  # whitened in part
        mean = emb.mean(axis=0)
        values, axes = np.linalg.eigh(np.cov((emb - mean).T) + 1e-7 * np.eye(d))
        power = rng.uniform(0.0, 0.4)
        kept = int(rng.integers(min(16, d), d + 1))
        scale = np.maximum(values[-kept:], 1e-6) ** -power
        emb = ((emb - rng.uniform(0, 1) * mean) @ axes[:, -kept:] * scale).astype(np.float32)
    elif choice < 0.91:  # a common direction, more or less of it
        emb = emb + np.float32(rng.uniform(-1.0, 1.5)) * emb.mean(axis=0)
    else:
        noise = rng.normal(size=(n, d)).astype(np.float32) / np.float32(d**0.5)
        emb = emb + np.float32(rng.uniform(0.05, 0.5)) * noise
    usable = np.linalg.norm(emb, axis=1) > 1e-6
    return Collection(collection.name, emb[usable], collection.labels[usable])


def class_sizes(rng: Rng, n: int) -> Int64:
    """Draw class sizes that sum to about n: equal, log-normal, Zipf's, or with many singletons."""
    typical = float(np.exp(rng.uniform(np.log(2), np.log(max(n / 3, 3)))))
    kind = rng.integers(4)
    share: Float64
    count = max(2, int(np.ceil(n / typical)))
    if kind == 0:
        share = np.ones(count)
    elif kind == 1:
        share = rng.lognormal(0.0, rng.uniform(0.3, 1.5), count)
    elif kind == 2:
        share = np.power(np.arange(1.0, count + 1.0), -rng.uniform(0.5, 1.3))
    else:
        share = np.where(rng.random(count) < 0.5, 1e-9, rng.lognormal(0.0, 0.7, count))
    counts: Int64 = np.maximum(1, np.round(share / share.sum() * n)).astype(np.int64)
    return counts


def _mixture(rng: Rng, n: int) -> tuple[Float32, Int64]:
    """Draw a mixture; its centres may form families: heavy tails, modes, unequal spreads."""
    d = int(rng.choice([8, 16, 32, 64, 128, 256, 384]))
    counts = class_sizes(rng, n)
    c = len(counts)
    labels = np.repeat(np.arange(c), counts)
    spectrum = np.arange(1, d + 1) ** -rng.uniform(0.0, 1.0)
    spectrum = spectrum * np.sqrt(d / (spectrum**2).sum())
    families = int(rng.integers(1, max(2, c // 2 + 1)))
    near = rng.uniform(0.3, 1.5)
    centers = rng.normal(size=(families, d))[rng.integers(0, families, c)] + near * rng.normal(size=(c, d))
    spread = rng.uniform(0.25, 1.1) * rng.lognormal(0.0, rng.uniform(0.0, 0.4), c)
    tails = np.sqrt(rng.chisquare(rng.choice([4, 10, 100]), n_items := len(labels)))
    tails = tails.mean() / tails
    modes = centers[labels]
    if rng.random() < 0.3:  # classes of several modes
        offsets = 0.6 * rng.normal(size=(c, 4, d))
        modes = modes + offsets[labels, rng.integers(0, 4, n_items)]
    x = (modes + (spread[labels] * tails)[:, None] * rng.normal(size=(n_items, d))) * spectrum
    x += rng.uniform(0.0, 1.5) * rng.normal(size=d) * spectrum  # a common direction
    if rng.random() < 0.25:
        x = np.maximum(x, 0.0) + 1e-3
    return x.astype(np.float32), labels


def _manifolds(rng: Rng, n: int) -> tuple[Float32, Int64]:
    """Draw few large classes, each a smooth manifold: random waves of a few latent coordinates."""
    d, q = int(rng.choice([16, 32, 64, 128, 256])), int(rng.integers(1, 7))
    c = int(rng.integers(2, 25))
    share = rng.lognormal(0.0, rng.uniform(0.0, 0.8), c)
    labels = np.repeat(np.arange(c), np.maximum(2, (share / share.sum() * n).astype(int)))
    u = rng.uniform(-1, 1, size=(len(labels), q))
    waves = int(rng.integers(8, 40))
    bend = rng.uniform(0.5, 2.5)
    frequency = bend * rng.normal(size=(c, q, waves)) / np.sqrt(q)
    frequency = np.where(rng.random() < 0.5, frequency, frequency[:1])  # one set of waves for all
    phase = rng.uniform(0, 2 * np.pi, size=(c, waves))
    mix = rng.normal(size=(waves, d)) / np.sqrt(waves)
    x = np.empty((len(labels), d))
    for k in range(c):
        rows = labels == k
        x[rows] = np.cos(u[rows] @ frequency[k] + phase[k]) @ mix
    x += rng.uniform(0.0, 0.8) * rng.normal(size=(c, d))[labels] / np.sqrt(2)
    x += rng.uniform(0.02, 0.35) * rng.normal(size=x.shape)
    x += rng.uniform(0.0, 2.0) * rng.normal(size=d)
    if rng.random() < 0.4:
        x = np.maximum(x, 0.0) + 1e-3
    return x.astype(np.float32), labels


def _shapes(rng: Rng, n: int) -> tuple[Float32, Int64]:
    """Draw classes of jittered strokes as coarse pixels, like handwriting."""
    side = int(rng.choice([8, 10, 12]))
    c = int(rng.integers(3, 26))
    share = rng.lognormal(0.0, rng.uniform(0.0, 0.6), c)
    labels = np.repeat(np.arange(c), np.maximum(2, (share / share.sum() * n).astype(int)))
    points = int(rng.integers(4, 8))
    strokes = rng.uniform(-1, 1, size=(c, points, 2))
    n_items = len(labels)
    styles = strokes[labels]
    if rng.random() < 0.5:  # some write it otherwise
        variants = strokes[:, None] + rng.uniform(0.1, 0.45) * rng.normal(size=(c, 3, points, 2))
        styles = variants[labels, rng.integers(0, 3, n_items)]
    wobble = rng.uniform(0.03, 0.22)
    styles = styles + wobble * rng.normal(size=styles.shape)
    affine = np.eye(2) + rng.uniform(0.02, 0.25) * rng.normal(size=(n_items, 2, 2))
    styles = np.einsum("npk,nkl->npl", styles, affine) + rng.uniform(0, 0.12) * rng.normal(
        size=(n_items, 1, 2)
    )
    t = np.linspace(0, 1, 6)[:, None]
    lines = np.concatenate([a + t * (b - a) for a, b in _segments(styles)], axis=1)  # (n, dots, 2)
    grid = np.linspace(-1.2, 1.2, side)
    width = rng.uniform(0.18, 0.4)
    near_x = np.exp(-((lines[:, :, 0, None] - grid) ** 2) / (2 * width**2))
    near_y = np.exp(-((lines[:, :, 1, None] - grid) ** 2) / (2 * width**2))
    ink = np.einsum("npx,npy->nxy", near_x, near_y).reshape(n_items, -1)
    ink = np.minimum(ink, rng.uniform(1.0, 4.0)) + rng.uniform(0, 0.1) * rng.random(ink.shape)
    return ink.astype(np.float32), labels


def _segments(points: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(points[:, None, p], points[:, None, p + 1]) for p in range(points.shape[1] - 1)]


def generated(rng: Rng, n: int) -> Collection:
    """Draw a mixture of about `n` items."""
    kinds: list[tuple[str, float, Callable[[Rng, int], tuple[Float32, Int64]]]] = [
        ("mixture", 0.45, _mixture),
        ("manifolds", 0.25, _manifolds),
        ("shapes", 0.3, _shapes),
    ]
    name, _, make = kinds[int(rng.choice(len(kinds), p=[share for _, share, _ in kinds]))]
    emb, labels = make(rng, n)
    if rng.random() < 0.1:  # noise: classes of one, anywhere
        extra = max(1, len(emb) // 10)
        noise = emb[rng.integers(0, len(emb), extra)] + emb.std() * rng.normal(size=(extra, emb.shape[1]))
        emb = np.concatenate([emb, noise.astype(np.float32)])
        labels = np.concatenate([labels, labels.max() + 1 + np.arange(extra)])
    if rng.random() < 0.02:  # re-posts of some items, in their item's class
        again = rng.integers(0, len(emb), len(emb) // 4)
        emb, labels = np.concatenate([emb, emb[again]]), np.concatenate([labels, labels[again]])
    return Collection(name, emb, labels)


def subset(collection: Collection, rng: Rng, most: int) -> Collection:
    """Draw 2 to `most` items of some classes of a collection, in random order."""
    labels = collection.labels
    n = (
        int(np.exp(rng.uniform(np.log(30), np.log(most))))
        if rng.random() < 0.95
        else int(rng.integers(2, 30))
    )
    classes, of = np.unique(labels, return_inverse=True)
    order = rng.permutation(len(labels))
    if rng.random() < 0.75:  # some classes only
        kept = rng.permutation(len(classes))[: max(2, int(len(classes) * rng.uniform(0.05, 1.0) ** 2))]
        order = order[np.isin(of[order], kept)]
    if rng.random() < 0.3:  # at most so many of a class
        cap = int(np.exp(rng.uniform(np.log(2), np.log(100))))
        first = np.argsort(of[order], kind="stable")
        ranked = of[order][first]
        starts = np.searchsorted(ranked, ranked)
        order = order[np.sort(first[np.arange(len(first)) - starts < cap])]
    rows = order[:n]
    return Collection(collection.name, collection.emb[rows], labels[rows])


def dense(collection: Collection) -> Collection:
    """Return the collection with labels 0, 1, ... and without zero vectors or copies."""
    usable = np.linalg.norm(collection.emb, axis=1) > 1e-6
    found = distinct(replace(collection, emb=collection.emb[usable], labels=collection.labels[usable]))
    return replace(found, labels=np.unique(found.labels, return_inverse=True)[1].astype(np.int64))


def whole_classes(collection: Collection, rng: Rng, share: tuple[float, float], most: int) -> Collection:
    """Draw whole classes of a collection: a `share` (range) of its items, `most` at most.

    At least two classes. A sample of its items would make a class look sparser than it is.
    """
    _, of, counts = np.unique(collection.labels, return_inverse=True, return_counts=True)
    wanted = min(most, len(of) * rng.uniform(*share))
    order = rng.permutation(len(counts))
    fitting = int(np.searchsorted(np.cumsum(counts[order]), wanted, side="right"))
    rows = rng.permutation(np.flatnonzero(np.isin(of, order[: max(2, fitting)])))
    return Collection(collection.name, collection.emb[rows], collection.labels[rows])


def large_part(collection: Collection, rng: Rng, least: int = 1_200, most: int = 12_000) -> Collection:
    """Draw a large part of a collection, augmented or not: all classes, or 30 % of them and more."""
    labels = collection.labels
    rows = rng.permutation(len(labels))
    if rng.random() < 0.5:
        classes = rng.permutation(np.unique(labels))
        kept = classes[: max(2, int(len(classes) * rng.uniform(0.3, 1.0)))]
        rows = rows[np.isin(labels[rows], kept)]
    rows = rows[: int(np.exp(rng.uniform(np.log(least), np.log(most))))]
    part = Collection(collection.name, collection.emb[rows], labels[rows])
    return augmented(part, rng) if rng.random() < 0.5 else part
