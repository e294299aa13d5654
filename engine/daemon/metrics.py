"""The writer's Prometheus metrics; the API adds its own and serves both.

Counters start with the process. Gauges of the store are read at each scrape.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from engine.storage.store import Store
from engine.streams import Lag
from engine.types import Applied

OUTCOMES = ("inserted", "moved", "unchanged", "updated", "deleted", "unknown", "rejected", "expired")
BATCH_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
COMMITS_REMEMBERED = 100_000  # to tell how old a reader's snapshot is
PUBLISHER_SILENT_S = 30.0  # without a word from the publisher it counts as down


class Metrics:
    """Metrics of one writer, for Prometheus.

    The writer's thread calls `committed`; any thread may call `published` and `text`. `lag` returns the
    source's lag; `clock` seconds.
    """

    def __init__(
        self, store: Store, lag: Callable[[], Lag], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._lag, self._clock = store, lag, clock
        self._lock = threading.Lock()
        self._published: Mapping[str, Any] = {}
        self._heard = -PUBLISHER_SILENT_S
        self._commits: deque[tuple[int, float]] = deque(maxlen=COMMITS_REMEMBERED)  # transaction, when
        self.outcomes: Tally[str] = Tally()
        self.batches = 0
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        self._records = Counter("shoal_records", "Records taken.", ["outcome"], registry=registry)
        self._batches = Counter("shoal_batches", "Batches committed.", registry=registry)
        self._seconds = Histogram(
            "shoal_batch_seconds",
            "Time from a batch to its commit.",
            buckets=BATCH_SECONDS,
            registry=registry,
        )
        self._stages = Counter("shoal_stage_seconds", "Where that time went.", ["stage"], registry=registry)
        self._letters = Counter("shoal_dead_letters", "Records to the dead letters.", registry=registry)
        for outcome in OUTCOMES:
            self._records.labels(outcome)
        registry.register(self)
        self._registry = registry

    def committed(self, applied: Applied, seconds: float) -> None:
        """Count a committed batch."""
        counts = {outcome: getattr(applied, outcome) for outcome in OUTCOMES}
        with self._lock:
            self.outcomes.update(counts)
            self.batches += 1
            number = self._store.environment.transaction
            if self._commits and number < self._commits[-1][0]:  # a compacted file counts from 1 again
                self._commits.clear()
            self._commits.append((number, self._clock()))
        for outcome, count in counts.items():
            self._records.labels(outcome).inc(count)
        self._batches.inc()
        self._seconds.observe(seconds)
        for stage, spent in applied.stats.get("seconds", {}).items():
            self._stages.labels(stage).inc(spent)
        self._letters.inc(applied.rejected)

    def published(self, told: Mapping[str, Any]) -> None:
        """Take the publisher's report: `events`, topic -> number published, and `lag_events`."""
        with self._lock:
            self._published, self._heard = dict(told), self._clock()

    def text(self) -> str:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry).decode()

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges; prometheus_client calls this at each scrape."""
        lag = self._lag()
        yield from self._of_the_store()
        yield _gauge(
            "shoal_source_lag_records", "Records of the source not taken yet.", "partition", lag.records
        )
        yield _gauge("shoal_oldest_unread_seconds", "Age of the oldest of them.", value=lag.oldest_unread_s)
        with self._lock:
            published, alive = self._published, self._clock() - self._heard < PUBLISHER_SILENT_S
        up = {"writer": 1.0, **({"publisher": float(alive)} if published else {})}
        yield _gauge("shoal_up", "Whether a process of the daemon runs.", "process", up)
        if published:
            events = CounterMetricFamily("shoal_events_published", "Events published.", labels=["topic"])
            for topic, count in published.get("events", {}).items():
                events.add_metric([topic], count)
            yield events
            behind = published.get("lag_events", 0)
            yield _gauge("shoal_publish_lag_events", "Events not published yet.", value=behind)

    def _of_the_store(self) -> Iterator[Metric]:
        store = self._store
        with store.snapshot() as tables:
            state = tables.meta.state
            items, clusters = tables.items.count(), tables.sizes.count()
            oldest_s = self._oldest_reader_s()  # here, where no compaction closes the environment
        yield _gauge("shoal_items", "Items in the collection.", value=items)
        yield _gauge("shoal_clusters", "Final clusters.", value=clusters)
        yield _gauge("shoal_levels", "Levels of the hierarchy.", value=state.levels)
        yield _gauge("shoal_version", "The last committed version.", value=state.version)
        yield _gauge("shoal_oldest_reader_seconds", "Age of the oldest snapshot read.", value=oldest_s)
        yield _gauge("shoal_store_bytes", "Bytes of the store's files.", value=folder_bytes(store.path))
        yield _gauge("shoal_disk_free_bytes", "Free on its disk.", value=shutil.disk_usage(store.path).free)

    def _oldest_reader_s(self) -> float:
        """Return how long ago a commit superseded the oldest open read transaction."""
        oldest = self._store.environment.oldest_reader()
        if oldest is None:
            return 0.0
        with self._lock:
            overtaken = next((when for number, when in self._commits if number > oldest), None)
        return 0.0 if overtaken is None else self._clock() - overtaken


def folder_bytes(folder: Path) -> int:
    """Return the disk space of a folder's files."""
    total = 0
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):  # snapshots of the index come and go
            total += 512 * entry.stat().st_blocks
    return total


def _gauge(
    name: str, words: str, label: str = "", values: Mapping[str, float] | None = None, value: float = 0.0
) -> Metric:
    if not label:
        return GaugeMetricFamily(name, words, value=value)
    family = GaugeMetricFamily(name, words, labels=[label])
    for key, number in (values or {}).items():
        family.add_metric([key], number)
    return family
