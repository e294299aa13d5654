"""From a Kafka topic to its assignments: how long an event takes, and how lag goes back to 0 after a restart.

A broker (see `tests/broker`), `shoal serve` with default settings, and a producer and a consumer here. First
`--items` embeddings go in; the full rate is that of the last quarter of them. Then new embeddings come at
`--share` of it, one by one: the latency of an event is from its sending to the arrival of its first
assignment, as a consumer that reads committed records sees it. Last, the broker is restarted under that load.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from kafka import KafkaConsumer, TopicPartition

from benchmarks.mixture import mixture
from benchmarks.report import arguments, finish, print_table
from tests.broker import Broker
from tests.broker.daemon import Daemon
from tests.broker.topics import RAW, Topics, until

PARTITIONS = 2
WARM_S = 5.0  # not counted
DRAIN_S = 60.0  # for what is on its way
LINGER_MS = 5  # Kafka's default since 4.0, not kafka-python's: a request a record costs twice as much


class Arrivals(threading.Thread):
    """When the first assignment of each key came."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        super().__init__(daemon=True)
        self.at: dict[bytes, float] = {}
        self.stopping = threading.Event()
        self._consumer = KafkaConsumer(
            bootstrap_servers=bootstrap,
            group_id=None,
            isolation_level="read_committed",
            auto_offset_reset="latest",
        )
        parts = [TopicPartition(f"{topic}.assignments", p) for p in range(PARTITIONS)]
        self._consumer.assign(parts)
        for part in parts:
            self._consumer.position(part)

    def run(self) -> None:
        while not self.stopping.is_set():
            found = self._consumer.poll(100, max_records=5_000)
            now = time.monotonic()
            for records in found.values():
                for record in records:
                    self.at.setdefault(record.key, now)
        self._consumer.close()


class Load(threading.Thread):
    """New embeddings at a steady rate; keys begin with `name`."""

    def __init__(self, topics: Topics, topic: str, name: str, vectors: Any, rate: float) -> None:
        super().__init__(daemon=True)
        self.sent: dict[bytes, float] = {}
        self.stopping = threading.Event()
        self._topics, self._topic, self._name = topics, topic, name
        self._vectors, self._rate = vectors, rate

    def run(self) -> None:
        with contextlib.closing(self._topics.producer(linger_ms=LINGER_MS)) as producer:
            begun = time.monotonic()
            for number, vector in enumerate(self._vectors):
                wait_s = begun + number / self._rate - time.monotonic()
                if self.stopping.wait(max(0.0, wait_s)):
                    return
                key = f"{self._name}:{number}".encode()
                self.sent[key] = time.monotonic()
                producer.send(self._topic, vector.tobytes(), key, [RAW])


def fill(daemon: Daemon, topics: Topics, vectors: Any) -> float:
    """Everything at once; returns the rate (items/s) at which the last quarter was taken."""
    with contextlib.closing(topics.producer()) as producer:
        for number, vector in enumerate(vectors):
            producer.send(daemon.topic, vector.tobytes(), b"item:%d" % number, [RAW])
        producer.flush()
    marks: list[tuple[float, int]] = []
    while not marks or marks[-1][1] < len(vectors):
        status = daemon.status()
        if status:
            marks.append((time.monotonic(), status["records"]))
        time.sleep(0.2)
    first = next(mark for mark in marks if mark[1] >= 3 * len(vectors) // 4)
    until(daemon.is_through, 600)
    return (marks[-1][1] - first[1]) / (marks[-1][0] - first[0])


def latency(daemon: Daemon, topics: Topics, vectors: Any, rate: float, seconds: float) -> Any:
    """Of each event sent after the warm-up, in seconds."""
    arrivals = Arrivals(topics.bootstrap, daemon.topic)
    arrivals.start()
    load = Load(topics, daemon.topic, "late", vectors[: int(rate * seconds)], rate)
    begun = time.monotonic()
    load.start()
    load.join()
    until(lambda: load.sent.keys() <= arrivals.at.keys(), DRAIN_S)
    arrivals.stopping.set()
    arrivals.join()
    counted = [key for key, at in load.sent.items() if at - begun > WARM_S]
    return np.array([arrivals.at[key] - load.sent[key] for key in counted])


def restart(broker: Broker, daemon: Daemon, topics: Topics, vectors: Any, rate: float) -> dict[str, float]:
    """The broker killed and started again under load: seconds until all is read and published again."""
    load = Load(topics, daemon.topic, "restart", vectors, rate)
    load.start()
    time.sleep(5)
    broker.kill()
    gone = time.monotonic()
    broker.start()
    back = time.monotonic()
    time.sleep(5)
    load.stopping.set()
    load.join()
    until(daemon.is_through, 300)
    return {"away_s": back - gone, "caught_up_s": time.monotonic() - back, "records": len(load.sent)}


@contextlib.contextmanager
def world(index: str) -> Iterator[tuple[Broker, Topics, Daemon]]:
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder, contextlib.ExitStack() as stack:
        broker = Broker(Path(folder) / "broker")
        broker.start()
        stack.callback(broker.stop)
        topics = Topics(broker.bootstrap)
        daemon = Daemon(Path(folder) / "shoal", broker.bootstrap, topics.make(PARTITIONS), index__kind=index)
        stack.callback(daemon.kill)
        daemon.start()
        yield broker, topics, daemon


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the load whose latency is measured")
    parser.add_argument("--share", type=float, default=0.5, help="of the full rate")
    parser.add_argument("--rate", type=float, help="items/s, instead of a share")
    parser.add_argument("--index", choices=("hnsw", "exact"), default="hnsw")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    rows = mixture(2 * chosen.items, chosen.dim, chosen.seed).astype("<f4")
    with world(chosen.index) as (broker, topics, daemon):
        full = fill(daemon, topics, rows[: chosen.items])
        rate = chosen.rate or chosen.share * full
        late = latency(daemon, topics, rows[chosen.items :], rate, chosen.seconds)
        again = restart(broker, daemon, topics, rows[chosen.items + int(rate * chosen.seconds) :], rate)
        lag = (daemon.status() or {}).get("lag_records")
        code = daemon.stop()
    p50, p95, p99 = np.percentile(late, [50, 95, 99]).tolist()
    figures = {
        "items": chosen.items,
        "dim": chosen.dim,
        "index": chosen.index,
        "full_rate": full,
        "rate": rate,
        "events": len(late),
        "latency_p50_s": p50,
        "latency_p95_s": p95,
        "latency_p99_s": p99,
        "latency_max_s": float(late.max()),
        "restart": again,
        "lag_after": lag,
    }
    print_table(
        ["event to assignment", "items/s", "p50 ms", "p95 ms", "p99 ms", "max ms"],
        [
            [
                f"into {chosen.items:,} x {chosen.dim}",
                round(rate),
                *(round(1000 * x) for x in (p50, p95, p99, late.max())),
            ]
        ],
    )
    print(
        f"full rate {full:.0f} items/s; the broker was away for {again['away_s']:.1f} s under load, and "
        f"{again['caught_up_s']:.1f} s after it was back all was read and published (lag {lag})"
    )
    finish(figures, chosen.json)
    return code


if __name__ == "__main__":
    sys.exit(main())
