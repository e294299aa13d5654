"""The demo: real handwritten digits streamed through the whole engine, and how their clusters form.

The digits are the 1,797 of 8 x 8 pixels that come with scikit-learn. A vector is a picture's pixels;
labels are only looked at to say how well it goes.
"""

from __future__ import annotations

import base64
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from connectors.memory import MemorySource
from engine.collection.collection import Engine
from engine.errors import counted
from engine.evaluation.evaluate import Churn, Figures, clusters_by_number, measure, rebuilt_clusters
from engine.evaluation.scores import ari
from engine.events import EventRow, read_event_id
from engine.storage.answers import ClusterRow
from engine.storage.reader import View
from engine.types import Applied, Batch, Float64, Int64

EVENTS_TOLD = 5
RATE_BATCHES = 8  # over which the rate is measured
STORIES = ("merge", "split", "grow", "shrink")


@dataclass(frozen=True, slots=True)
class Digits:
    """In the order in which they are streamed; the key of an item is its place there."""

    pixels: Float64  # (n, 64), 0 to 16
    labels: Int64  # (n,)

    @classmethod
    def load(cls, seed: int) -> Digits:
        """Shuffled, for their order in the data set is by writer."""
        found = load_digits()
        order = np.random.default_rng(seed).permutation(len(found.data))
        return cls(found.data[order], found.target[order].astype(np.int64))


def payload(pixels: Float64, label: int) -> dict[str, Any]:
    """Return what the page shows of a digit; the page scales the picture up."""
    picture = base64.b64encode(png(pixels.reshape(8, 8) / 16)).decode()
    return {"title": f"a handwritten {label}", "image": f"data:image/png;base64,{picture}", "label": label}


def png(grey: Float64) -> bytes:
    """Return a PNG of grey levels (h, w), 0 to 1."""
    height, width = grey.shape
    levels = np.round(255 * grey).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in levels)  # each begins with its filter: none
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


@dataclass(frozen=True, slots=True)
class Shown:
    """One of the largest clusters."""

    cluster: int
    size: int
    picture: Float64  # (8, 8), the peak's, 0 to 1
    digit: int  # the commonest one in it
    share: float  # of that digit


@dataclass(frozen=True, slots=True)
class Frame:
    """The clusters and events shown after a batch."""

    items: int
    total: int
    rate: float  # items a second
    version: int
    clusters: int
    largest: Sequence[Shown]
    stories: Sequence[str]  # the last merges, splits and so on


class Demo:
    """Feeds a source to an engine and collects the resulting clusters and events."""

    def __init__(self, engine: Engine, digits: Digits, show: int) -> None:
        self.engine, self.digits, self._show = engine, digits, show
        self.seconds = 0.0
        self._churn = Churn(len(digits.labels))
        self._pace: deque[tuple[int, float]] = deque([(0, 0.0)], maxlen=RATE_BATCHES)  # items, seconds
        self._stories: deque[str] = deque(maxlen=EVENTS_TOLD)
        self._seen: tuple[int, int] | None = None

    def run(
        self,
        source: MemorySource,
        watch: Callable[[Frame], bool],
        take: Callable[[Batch], Applied] | None = None,
    ) -> bool:
        """Run until the stream ends or `watch` returns False; return whether it ended."""
        take = take or self.engine.apply
        position = self.engine.store.position(source.name)
        with View.beside(self.engine.store) as view:
            if position:
                watch(self._frame(view, self.engine.version))
            for chunk in source.chunks(position, self.engine.dim):
                applied = self._apply(chunk.batch, take)
                if not watch(self._frame(view, applied.version)):
                    return False
        return True

    def figures(self) -> Figures:
        """Return the figures of the items streamed so far."""
        clusters = clusters_by_number(self.engine.state)
        rebuilt = ari(rebuilt_clusters(self.engine), clusters)
        return measure(self.digits.labels, clusters, self.seconds, rebuilt, self._churn.rate)

    def _apply(self, batch: Batch, take: Callable[[Batch], Applied]) -> Applied:
        start = time.perf_counter()
        applied = take(batch)
        self.seconds += time.perf_counter() - start
        self._pace.append((len(self.engine), self.seconds))
        self._churn.observe(self.engine)
        return applied

    def _frame(self, view: View, version: int) -> Frame:
        clusters = clusters_by_number(self.engine.state)
        labels = self.digits.labels[: len(clusters)]
        self._listen(view)
        return Frame(
            items=len(clusters),
            total=len(self.digits.labels),
            rate=self._rate(),
            version=version,
            clusters=view.summary()["clusters"],
            largest=[
                self._shown(row, labels[clusters == row["cluster"]])
                for row in view.clusters(limit=self._show)["clusters"]
            ],
            stories=list(self._stories),
        )

    def _rate(self) -> float:
        (items, seconds), (more_items, more_seconds) = self._pace[0], self._pace[-1]
        return (more_items - items) / (more_seconds - seconds) if more_seconds > seconds else 0.0

    def _shown(self, row: ClusterRow, labels: Int64) -> Shown:
        counts = np.bincount(labels, minlength=10)
        digit = int(counts.argmax())
        picture = self.digits.pixels[int(row["peak"] or 0)].reshape(8, 8) / 16
        return Shown(row["cluster"], row["size"], picture, digit, float(counts[digit] / counts.sum()))

    def _listen(self, view: View) -> None:
        """Collect the new events worth showing: those of clusters of some size."""
        while changes := (answer := view.changes(self._seen, limit=1000))["changes"]:
            self._stories.extend(told for event in changes if (told := _story(event)))
            self._seen = read_event_id(str(answer["cursor"]))


def _story(event: EventRow) -> str | None:
    kind = event.get("event")
    if kind not in STORIES or event["size"] < 8:
        return None
    words = f"version {event['version']}: cluster {event['cluster']} "
    others = _named(set(event["from"]) - {event["cluster"]}), _named(set(event["into"]) - {event["cluster"]})
    if kind == "merge":
        return f"{words}took in {others[0] or 'others'}, now {counted(event['size'], 'item')}"
    if kind == "split":
        return f"{words}was split, into {others[1] or 'itself and others'}"
    return f"{words}{'grew' if kind == 'grow' else 'shrank'} to {counted(event['size'], 'item')}"


def _named(clusters: set[int], most: int = 6) -> str:
    names = [str(cluster) for cluster in sorted(clusters)]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
