"""`make demo-kafka`: a broker, `shoal serve`, a producer of real embeddings, and a console of what comes out.

    python -m tests.broker.demo [FILE.npz] [--rate 100] [--exit]

FILE has the array emb (n, d), and may have keys and text; without it the embeddings are the 1,797
handwritten digits of scikit-learn. Ctrl-C stops everything; `--exit` does when all is through.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from kafka import KafkaConsumer

from tests.broker import NoBroker, open_broker
from tests.broker.daemon import Daemon
from tests.broker.topics import RAW, Topics

TOPIC = "embeddings"
SHOWN_S = 0.25  # between two lines on assignments


def embeddings(file: Path | None) -> tuple[Any, list[str]]:
    """Vectors (n, d) float32 and their keys."""
    if file is None:
        from sklearn.datasets import load_digits

        vectors = np.random.default_rng(0).permutation(load_digits().data)
        return vectors.astype("<f4"), [f"digit:{i}" for i in range(len(vectors))]
    with np.load(file, allow_pickle=False) as found:
        vectors = found["emb"].astype("<f4")
        keys = (
            found["keys"].tolist() if "keys" in found else [f"{file.stem}:{i}" for i in range(len(vectors))]
        )
    return vectors, [str(key) for key in keys]


def produce(topics: Topics, file: Path | None, rate: float, stopping: threading.Event) -> int:
    """At a steady rate; returns how many."""
    vectors, keys = embeddings(file)
    sent = 0
    with contextlib.closing(topics.producer(linger_ms=5)) as producer:
        begun = time.monotonic()
        for vector, key in zip(vectors, keys, strict=True):
            producer.send(TOPIC, vector.tobytes(), key.encode(), [RAW])
            sent += 1
            if stopping.wait(max(0.0, begun + sent / rate - time.monotonic())):
                break
    return sent


class Console:
    """Prints what comes out, in words; of assignments only some."""

    def __init__(self, bootstrap: str) -> None:
        self.assignments, self._shown = 0, 0.0
        self._consumer = KafkaConsumer(
            bootstrap_servers=bootstrap,
            group_id=None,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            metadata_max_age_ms=1_000,
        )
        self._consumer.subscribe([f"{TOPIC}.assignments", f"{TOPIC}.clusters", f"{TOPIC}.dlq"])

    def look(self) -> None:
        for records in self._consumer.poll(200).values():
            for record in records:
                print_line = self._lines(record)
                for line in print_line:
                    print(line, flush=True)

    def close(self) -> None:
        self._consumer.close()

    def _lines(self, record: Any) -> Iterator[str]:
        if record.topic.endswith(".assignments"):
            self.assignments += 1
            if time.monotonic() - self._shown > SHOWN_S:
                self._shown = time.monotonic()
                told = orjson.loads(record.value) if record.value else {"cluster": None, "previous": None}
                came = f"moved from cluster {told['previous']} to" if told["previous"] else "is in"
                where = f"{came} cluster {told['cluster']}" if told["cluster"] else "is gone"
                yield f"  {record.key.decode():<16} {where:<40} ({self.assignments:,} assignments so far)"
        elif record.topic.endswith(".clusters"):
            told = orjson.loads(record.value)
            if told["event"] in ("merge", "split"):
                other = told["from"] if told["event"] == "merge" else told["into"]
                with_whom = f"from {other}" if told["event"] == "merge" else f"into {other}"
                yield f"{told['event']:>7}: cluster {told['cluster']}, {told['size']} items, {with_whom}"
        else:
            yield f"dead letter: {dict(record.headers)['reason'].decode()}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo-kafka", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--rate", type=float, default=100.0, help="embeddings a second")
    parser.add_argument("--exit", action="store_true", help="end when all is through")
    chosen = parser.parse_args()
    stopping = threading.Event()
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, lambda *_: stopping.set())
    with tempfile.TemporaryDirectory(prefix="shoal-demo-") as folder, contextlib.ExitStack() as stack:
        print("Starting a Kafka broker (the first time its jars are fetched) ...", flush=True)
        broker = open_broker(Path(folder) / "broker")
        stack.callback(broker.stop)
        topics = Topics(broker.bootstrap)
        topics.make(2, TOPIC)
        print(
            f"The broker is at {broker.bootstrap}. Starting shoal serve on the topic {TOPIC} ...", flush=True
        )
        daemon = Daemon(
            Path(folder) / "shoal", broker.bootstrap, TOPIC, collection__name="demo", batch__target_s=0.2
        )
        stack.callback(daemon.kill)
        daemon.start()
        url = next(line["url"] for line in map(orjson.loads, daemon.told().splitlines()) if "url" in line)
        print(f"It is ready; page and API are at {url}. Ctrl-C stops everything.", flush=True)
        sent: list[int] = []
        producer = threading.Thread(
            target=lambda: sent.append(produce(topics, chosen.file, chosen.rate, stopping)), daemon=True
        )
        console = Console(broker.bootstrap)
        stack.callback(console.close)
        producer.start()
        while not stopping.is_set():
            console.look()
            if chosen.exit and sent and daemon.is_through():
                console.look()
                stopping.set()
        producer.join()
        code = daemon.stop()
        print(f"{sent[0]:,} embeddings sent, {console.assignments:,} assignments came out; all stopped.")
        return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NoBroker as problem:
        sys.exit(str(problem))
