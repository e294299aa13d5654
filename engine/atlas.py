"""A map of the largest clusters in two dimensions: near each other where their peaks are alike.

Distances between peaks are drawn as well as a plane allows (stress majorization of Gansner, Koren and North
2004, weights 1/d^2, which favour small distances); then discs, whose areas are the sizes, are pushed apart.
Each map starts from the one before and is turned onto it, so that what did not change stays where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import orjson

from engine.types import Bool, Float64, Int16
from engine.view import Answer, View

FILL = 0.55  # of the map's area is covered by discs
LEAST_RADIUS = 0.02  # where the map is two wide
GAP = 0.008  # between discs
LEAST_DISTANCE = 0.05  # between peaks, so that weights stay finite
STEPS, WARM_STEPS, PUSHES = 120, 20, 100
KNOWN_MIN = 3  # clusters that were on the map before, to turn a new one by
NEAR = 3  # neighbours told of each cluster
TITLE_CHARS = 80

Place = tuple[float, float]


@dataclass(frozen=True, slots=True)
class AtlasBounds:
    clusters: int = 200  # drawn at most, the largest
    pause_s: float = 2.0  # between two drawings, at least
    image_bytes: int = 4_096  # a longer picture of a peak is left out


class Atlas:
    """The map of a store, drawn anew when the version is another one and the last drawing is old enough.

    Any number of threads may ask: one draws, the others get the drawing there is.
    """

    def __init__(
        self, bounds: AtlasBounds | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bounds, self._clock = bounds or AtlasBounds(), clock
        self._drawing = Lock()
        self._answer: Answer | None = None
        self._drawn_s = -np.inf
        self._places: dict[int, Place] = {}

    def answer(self, view: View) -> Answer:
        """`clusters`, largest first: `x`, `y` and `radius` in a square from -1 to 1, y upwards.

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
        return (
            self._clock() >= self._drawn_s + self._bounds.pause_s and view.version != self._answer["version"]
        )

    def _draw(self, view: View) -> Answer:
        version, clusters, peaks = view.peaks(self._bounds.clusters)
        drawn: list[Answer] = []
        if peaks is not None:
            ids = [row["cluster"] for row in clusters]
            alike = similarities(peaks.vectors)
            sizes = np.array([row["size"] for row in clusters], np.float64)
            places, radii = lay_out(alike, sizes, [self._places.get(cluster) for cluster in ids])
            for i, (row, near) in enumerate(zip(clusters, _nearest(alike, ids), strict=True)):
                disc = {"x": _short(places[i, 0]), "y": _short(places[i, 1]), "radius": _short(radii[i])}
                told = {name: row[name] for name in ("cluster", "size", "peak", "born", "changed")}
                face = _face(peaks.payloads[i], self._bounds.image_bytes)
                drawn.append({**told, **disc, **face, "near": near})
        self._places = {disc["cluster"]: (disc["x"], disc["y"]) for disc in drawn}
        return {"collection": view.collection, "version": version, "clusters": drawn}


def similarities(vectors: Int16) -> Float64:
    """(n, d) grid vectors -> (n, n) cosine similarities."""
    rows = vectors.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1.0)
    return np.clip(rows @ rows.T, -1.0, 1.0)


def lay_out(alike: Float64, sizes: Float64, before: Sequence[Place | None]) -> tuple[Float64, Float64]:
    """(n, n) similarities, (n,) sizes, places of the map before -> centres (n, 2) and radii (n,)."""
    distances = np.maximum(np.sqrt(2.0 - 2.0 * alike), LEAST_DISTANCE)
    known = np.array([place is not None for place in before])
    start = _scaled(_project(distances))
    warm = int(known.sum()) >= KNOWN_MIN
    if warm:
        old = np.array([place or (0.0, 0.0) for place in before])
        start = _continue(start, old, known, alike)
    places = _scaled(_majorize(start * distances.mean(), distances, WARM_STEPS if warm else STEPS))
    if warm:
        places = _turned(places, old, known, sizes)
    radii = np.maximum(np.sqrt(FILL * 4.0 / np.pi * sizes / sizes.sum()), LEAST_RADIUS)
    return _fitted(_push_apart(places, radii), radii)


def _project(distances: Float64) -> Float64:
    """Classical scaling: the two widest axes, their signs fixed. (n, n) -> (n, 2)."""
    squares = distances**2
    np.fill_diagonal(squares, 0.0)
    centred = squares - squares.mean(axis=0) - squares.mean(axis=1)[:, None] + squares.mean()
    values, axes = np.linalg.eigh(-centred / 2.0)
    places = np.zeros((len(distances), 2))
    found = axes[:, ::-1][:, :2] * np.sqrt(np.maximum(values[::-1][:2], 0.0))
    places[:, : found.shape[1]] = found
    signs = np.sign(places[np.abs(places).argmax(axis=0), [0, 1]])
    return places * np.where(signs == 0, 1.0, signs)


def _continue(start: Float64, old: Float64, known: Bool, alike: Float64) -> Float64:
    """Where the known ones were; the new ones beside the known ones they are most like."""
    begun = old.copy()
    weights = np.where(known, np.exp(8.0 * alike), 0.0)[~known]
    begun[~known] = weights @ old / weights.sum(axis=1, keepdims=True) + 0.01 * start[~known]
    return begun


def _majorize(places: Float64, distances: Float64, steps: int) -> Float64:
    """Lowers the weighted stress, which never rises."""
    n = len(distances)
    if n < 3:
        return places
    weights = distances**-2.0
    np.fill_diagonal(weights, 0.0)
    laplacian = np.diag(weights.sum(axis=1)) - weights
    solve = np.linalg.inv(laplacian + 1.0 / n)
    for _ in range(steps):
        apart = np.maximum(_distances(places), 1e-9)
        pull = -weights * distances / apart
        np.fill_diagonal(pull, 0.0)
        np.fill_diagonal(pull, -pull.sum(axis=1))
        places = solve @ (pull @ places)
        places -= places.mean(axis=0)
    return places


def _turned(places: Float64, old: Float64, known: Bool, sizes: Float64) -> Float64:
    """Turned, mirrored and shifted onto the old places as well as it goes (Procrustes)."""
    weights = (sizes * known / (sizes * known).sum())[:, None]
    middle, old_middle = (weights * places).sum(axis=0), (weights * old).sum(axis=0)
    left, _, right = np.linalg.svd((weights * (places - middle)).T @ (old - old_middle))
    return (places - middle) @ (left @ right) + old_middle


def _push_apart(places: Float64, radii: Float64) -> Float64:
    """Discs that overlap push each other, the larger one less."""
    reach = radii[:, None] + radii[None, :] + GAP
    share = radii[None, :] ** 2 / (radii[:, None] ** 2 + radii[None, :] ** 2)
    places = places + 1e-6 * np.arange(len(places))[:, None] * np.array([1.0, -1.0])  # no two in one place
    for _ in range(PUSHES):
        apart = places[:, None] - places[None, :]
        length = np.maximum(np.sqrt((apart**2).sum(axis=2)), 1e-9)
        overlap = np.maximum(reach - length, 0.0)
        np.fill_diagonal(overlap, 0.0)
        if not overlap.any():
            break
        places = places + ((0.5 * share * overlap / length)[:, :, None] * apart).sum(axis=1)
    return places


def _scaled(places: Float64) -> Float64:
    """Around zero, the farthest at a distance of one."""
    places = places - places.mean(axis=0)
    return places / max(float(np.sqrt((places**2).sum(axis=1)).max(initial=0.0)), 1e-9)


def _fitted(places: Float64, radii: Float64) -> tuple[Float64, Float64]:
    """Shrunk where a disc would leave the square."""
    reach = float((np.abs(places) + radii[:, None]).max(initial=0.0))
    scale = 1.0 / max(reach, 1.0)
    return places * scale, radii * scale


def _distances(places: Float64) -> Float64:
    apart: Float64 = np.sqrt(((places[:, None] - places[None, :]) ** 2).sum(axis=2))
    return apart


def _nearest(alike: Float64, ids: Sequence[int]) -> list[list[dict[str, Any]]]:
    """Of each cluster, those whose peaks are most like its own."""
    others = alike - 3.0 * np.eye(len(alike))
    order = np.argsort(-others, axis=1, kind="stable")[:, : min(NEAR, len(ids) - 1)]
    return [
        [{"cluster": ids[j], "similarity": _short(alike[i, j])} for j in row]
        for i, row in enumerate(order.tolist())
    ]


def _face(payload: bytes, image_bytes: int) -> dict[str, str]:
    """What is short enough of a payload to be drawn on a disc."""
    document = orjson.loads(payload) if payload else None
    if not isinstance(document, dict):
        return {}
    title, image = document.get("title"), document.get("image")
    face = {"title": title[:TITLE_CHARS]} if isinstance(title, str) else {}
    if isinstance(image, str) and image.startswith("data:image/") and len(image) <= image_bytes:
        face["image"] = image
    return face


def _short(number: float) -> float:
    return round(float(number), 4)
