"""A two-dimensional map of the largest clusters: clusters with similar peaks are near each other.

The plane is t-SNE's (van der Maaten and Hinton 2008), exact, for it keeps neighbours next to each other; then
discs, whose areas are the sizes, are pushed apart. Each map goes on from the one before and is turned onto
it, so that what did not change stays where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np
import orjson

from engine.api.responses import Disc, Face, Map, Near
from engine.storage.reader import View
from engine.types import Bool, Float64, Int16

FILL = 0.5  # of the map's area is covered by discs
LEAST_RADIUS, LARGEST_RADIUS = 0.02, 0.45  # where the map is two wide
GAP = 0.01  # between discs
SPREAD = 0.5  # root mean square distance of the discs from the middle
STEPS, EARLY_STEPS, WARM_STEPS, PUSHES = 160, 50, 40, 60
HALVINGS = 25  # of the range of widths
EXAGGERATION = 4.0  # of likeness, in the early steps
PERPLEXITY = 8.0  # about so many neighbours count
KNOWN_MIN = 3  # clusters that were on the map before, to turn a new one by
ENLARGED = 1.25  # at most, to fill the square
NEAR = 3  # neighbours reported for each cluster
TITLE_CHARS = 80
TINY = 1e-12
CLUSTERS = 200  # drawn at most, the largest
PAUSE_S = 2.0  # between two drawings, at least
IMAGE_BYTES = 4_096  # a longer picture of a peak is left out

Place = tuple[float, float]


class Atlas:
    """Cached map of a store; recomputed when the version has changed and the last one is old enough.

    Any number of threads may ask: one draws, the others get the drawing there is.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._drawing = Lock()
        self._answer: Map | None = None
        self._drawn_s = -np.inf
        self._plane: dict[int, Place] = {}  # where clusters were before discs were pushed apart

    def answer(self, view: View) -> Map:
        """Return `clusters`, largest first: `x`, `y` and `radius` in the square from -1 to 1, y upwards.

        The version is the drawing's; the store's may be later. Raises what the view raises.
        """
        if self._drawing.acquire(blocking=self._answer is None):
            try:
                if self._is_stale(view):
                    self._answer = self._draw(view)
                    self._drawn_s = self._clock()
            finally:
                self._drawing.release()
        assert self._answer is not None
        return self._answer

    def _is_stale(self, view: View) -> bool:
        if self._answer is None:
            return True
        rested = self._clock() >= self._drawn_s + PAUSE_S
        return rested and view.version != self._answer["version"]

    def _draw(self, view: View) -> Map:
        found = view.peaks(CLUSTERS)
        drawn: list[Disc] = []
        plane = np.empty((0, 2))
        ids = [row["cluster"] for row in found.clusters]
        if found.items is not None:
            alike = similarities(found.vectors)
            plane = arrange(alike, [self._plane.get(cluster) for cluster in ids])
            places, radii = to_discs(plane, np.array([row["size"] for row in found.clusters], np.float64))
            for i, (row, near) in enumerate(zip(found.clusters, _nearest(alike, ids), strict=True)):
                disc: Disc = {
                    "cluster": row["cluster"],
                    "size": row["size"],
                    "peak": row["peak"],
                    "born": row["born"],
                    "changed": row["changed"],
                    "x": _short(places[i, 0]),
                    "y": _short(places[i, 1]),
                    "radius": _short(radii[i]),
                    "near": near,
                }
                drawn.append({**disc, **_face(found.items.payloads[i])})
        self._plane = {cluster: (x, y) for cluster, (x, y) in zip(ids, plane.tolist(), strict=True)}
        return {
            "collection": view.collection, "version": found.version, "total": found.total, "clusters": drawn
        }  # fmt: skip


def similarities(vectors: Int16) -> Float64:
    """Return cosine similarities (n, n) of grid vectors (n, d)."""
    rows = vectors.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1.0)
    return np.clip(rows @ rows.T, -1.0, 1.0)


def arrange(alike: Float64, before: Sequence[Place | None]) -> Float64:
    """Return unscaled positions (n, 2) from similarities (n, n) and the previous positions where known."""
    known = np.array([place is not None for place in before])
    start = _project(2.0 - 2.0 * alike)
    if len(alike) < 3:
        return start
    likeness = _likeness(alike)
    if known.sum() < KNOWN_MIN:
        early = _descend(1e-2 * start, EXAGGERATION * likeness, EARLY_STEPS, 0.5)
        return _descend(early, likeness, STEPS - EARLY_STEPS, 0.8)
    old = np.array([place or (0.0, 0.0) for place in before])
    return _turned(_descend(_continued(old, known, alike), likeness, WARM_STEPS, 0.5), old, known)


def to_discs(plane: Float64, sizes: Float64) -> tuple[Float64, Float64]:
    """Return centres (n, 2) and radii (n,) of disjoint discs in the square, from positions and sizes (n,)."""
    radii = np.sqrt(FILL * 4.0 / np.pi * sizes / sizes.sum()).clip(LEAST_RADIUS, LARGEST_RADIUS)
    plane = plane - plane.mean(axis=0)
    spread = np.sqrt((plane**2).sum(axis=1).mean())
    return _fitted(_push_apart(plane * SPREAD / max(spread, TINY), radii), radii)


def _project(squares: Float64) -> Float64:
    """Classical multidimensional scaling: squared distances (n, n) -> leading axes (n, 2), signs fixed."""
    centred = squares - squares.mean(axis=0) - squares.mean(axis=1)[:, None] + squares.mean()
    values, axes = np.linalg.eigh(-centred / 2.0)
    places = np.zeros((len(squares), 2))
    found = axes[:, ::-1][:, :2] * np.sqrt(np.maximum(values[::-1][:2], 0.0))
    places[:, : found.shape[1]] = found
    signs = np.sign(places[np.abs(places).argmax(axis=0), [0, 1]])
    return places * np.where(signs == 0, 1.0, signs) / max(float(places.std()), TINY)


def _likeness(alike: Float64) -> Float64:
    """Return t-SNE's joint probabilities (n, n): symmetric, sum 1, with the same perplexity in each row."""
    n = len(alike)
    squares = 2.0 - 2.0 * alike
    entropy = np.log(min(PERPLEXITY, (n - 1) / 2.0))
    near = squares - (squares + 9.0 * np.eye(n)).min(axis=1, keepdims=True)  # the nearest at 0
    near = np.maximum(near, 0.0)
    low, high = np.full(n, 1e-4), np.full(n, 1e8)
    for _ in range(HALVINGS):
        width = np.sqrt(low * high)
        weights = np.exp(-near * width[:, None])
        np.fill_diagonal(weights, 0.0)
        total = weights.sum(axis=1)
        wide = np.log(total) + width * (near * weights).sum(axis=1) / total > entropy
        low, high = np.where(wide, width, low), np.where(wide, high, width)
    given = weights / total[:, None]
    both: Float64 = np.maximum((given + given.T) / (2.0 * n), TINY)
    return both


def _descend(places: Float64, likeness: Float64, steps: int, momentum: float) -> Float64:
    """Gradient descent on the Kullback-Leibler divergence of t-SNE."""
    rate, moved = max(len(places) / 3.0, 40.0), np.zeros_like(places)
    for _ in range(steps):
        close = 1.0 / (1.0 + _squares(places))
        np.fill_diagonal(close, 0.0)
        pull = (likeness - close / close.sum()) * close
        slope = 4.0 * (pull.sum(axis=1)[:, None] * places - pull @ places)
        moved = momentum * moved - rate * slope
        places = places + moved
    centred: Float64 = places - places.mean(axis=0)
    return centred


def _continued(old: Float64, known: Bool, alike: Float64) -> Float64:
    """Return initial positions: previous ones; new clusters next to the most similar known ones."""
    begun = old.copy()
    weights = np.where(known, np.exp(30.0 * (alike - 1.0)), 0.0)[~known] + TINY * known
    begun[~known] = weights @ old / weights.sum(axis=1, keepdims=True)
    return begun + 1e-3 * np.arange(len(old))[:, None] / len(old)  # no two in one place


def _turned(places: Float64, old: Float64, known: Bool) -> Float64:
    """Align with the previous positions by rotation, reflection and translation (orthogonal Procrustes)."""
    middle, old_middle = places[known].mean(axis=0), old[known].mean(axis=0)
    left, _, right = np.linalg.svd((places[known] - middle).T @ (old[known] - old_middle))
    turned: Float64 = (places - middle) @ (left @ right) + old_middle
    return turned


def _push_apart(places: Float64, radii: Float64) -> Float64:
    """Separate overlapping discs; the larger one moves less."""
    reach = radii[:, None] + radii[None, :] + GAP
    share = radii[None, :] ** 2 / (radii[:, None] ** 2 + radii[None, :] ** 2)
    places = places + 1e-6 * np.arange(len(places))[:, None] * np.array([1.0, -1.0])  # no two in one place
    for _ in range(PUSHES):
        length = np.sqrt(np.maximum(_squares(places), TINY))
        overlap = np.maximum(reach - length, 0.0)
        np.fill_diagonal(overlap, 0.0)
        if not overlap.any():
            break
        push = 0.5 * share * overlap / length
        places = places + push.sum(axis=1)[:, None] * places - push @ places
    return places


def _fitted(places: Float64, radii: Float64) -> tuple[Float64, Float64]:
    """Centre in the square and scale to fill it."""
    low, high = (places - radii[:, None]).min(axis=0), (places + radii[:, None]).max(axis=0)
    scale = min(2.0 / max(float((high - low).max()), TINY), ENLARGED)
    return (places - (low + high) / 2.0) * scale, radii * scale


def _squares(places: Float64) -> Float64:
    """Return squared distances (n, n) of positions (n, 2)."""
    apart: Float64 = (places[:, None, 0] - places[None, :, 0]) ** 2
    apart += (places[:, None, 1] - places[None, :, 1]) ** 2
    return apart


def _nearest(alike: Float64, ids: Sequence[int]) -> list[list[Near]]:
    """Return for each cluster those with the most similar peaks."""
    others = alike - 3.0 * np.eye(len(alike))
    order = np.argsort(-others, axis=1, kind="stable")[:, : min(NEAR, len(ids) - 1)]
    return [
        [{"cluster": ids[j], "similarity": _short(alike[i, j])} for j in row]
        for i, row in enumerate(order.tolist())
    ]


def _face(payload: bytes) -> Face:
    """Return the part of a payload that is short enough for a disc."""
    document = orjson.loads(payload) if payload else None
    if not isinstance(document, dict):
        return {}
    title, image = document.get("title"), document.get("image")
    face: Face = {"title": title[:TITLE_CHARS]} if isinstance(title, str) else {}
    if isinstance(image, str) and image.startswith("data:image/") and len(image) <= IMAGE_BYTES:
        face["image"] = image
    return face


def _short(number: float) -> float:
    return round(float(number), 4)
