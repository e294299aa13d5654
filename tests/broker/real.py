"""Real embeddings through a real broker, with kills and restarts midway:

    python -m tests.broker.real newst.npz clinc150_test.npz --folder /somewhere/real --kills 20 --restarts 3

Embeddings (arrays emb (n, d), of one dimension) go to a topic piece by piece. While a piece is taken, all of
`shoal serve` is killed (SIGKILL), or the broker is and starts again, at a moment drawn from the seed. When it
is through, of every key the last assignment on the topic, read committed, must be the store's, all keys must
be there, and no event twice. In the end the store must hold every vector, its partition must be that of a
rebuild at its epoch with the exact index, and the topics the event log.

Broker, store and topics stay in the folder, with a line of JSON for each piece in `lines.jsonl`: stopped at
any moment, the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from engine.storage.reader import View
from tests.broker import Broker
from tests.broker.daemon import Daemon
from tests.broker.published import assert_published, last_assignments
from tests.broker.topics import RAW, Sent, Topics, until

TOPIC, COLLECTION, PARTITIONS = "real", "real", 3
KILL, RESTART = "kill -9 of the daemon", "kill -9 and restart of the broker"
THROUGH_S = 1_200.0


def load(files: list[Path]) -> dict[bytes, Any]:
    """Key -> vector, float32, in the order in which they are sent."""
    found: dict[bytes, Any] = {}
    for file in files:
        with np.load(file, allow_pickle=False) as arrays:
            for row, vector in enumerate(arrays["emb"].astype("<f4")):
                found[f"{file.stem}:{row}".encode()] = vector
    return found


def labels(store: Path) -> dict[bytes, int]:
    """Key -> final cluster, as a reader of the store sees it."""
    found: dict[bytes, int] = {}
    with View.open(store) as view:
        clusters = _pages(lambda cursor: view.clusters(order="id", cursor=cursor, limit=1_000), "clusters")
        for cluster in [each["cluster"] for each in clusters]:
            items = _pages(lambda at, c=cluster: view.members(c, cursor=at, limit=1_000), "items")  # type: ignore[misc]
            found |= {item["key"].encode(): cluster for item in items}
    return found


def _pages(ask: Any, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    cursor = None
    while True:
        answer = ask(cursor)
        rows += answer[name]
        cursor = answer["cursor"]
        if cursor is None:
            return rows


def take(world: World, piece: list[bytes], fault: str, dice: random.Random) -> dict[str, Any]:
    """One piece, disturbed midway; returns what was compared."""
    before = world.records()
    sent = [Sent(key, world.vectors[key].tobytes(), [RAW]) for key in piece]
    world.topics.produce(TOPIC, sent)
    share = dice.uniform(0.05, 0.95)
    until(lambda: world.records() - before >= share * len(piece), THROUGH_S, 0.01)
    time.sleep(dice.uniform(0.0, 0.3))
    if fault == KILL:
        world.daemon.kill()
        world.daemon.start()
    else:
        world.broker.kill()
        world.broker.start()
    begun = time.monotonic()
    until(world.daemon.is_through, THROUGH_S)
    seconds = time.monotonic() - begun
    stored, published = labels(world.daemon.store), last_assignments(world.topics, TOPIC)
    assert published == stored, f"{len(published.items() ^ stored.items())} assignments differ"
    return {"fault": fault, "midway": round(share, 3), "keys": len(stored), "caught_up_s": round(seconds, 1)}


class World:
    """Broker, daemon and topics of the folder."""

    def __init__(self, folder: Path, vectors: dict[bytes, Any], stack: contextlib.ExitStack) -> None:
        self.vectors = vectors
        self.broker = Broker(folder / "broker")
        self.broker.start()
        stack.callback(self.broker.stop)
        self.topics = Topics(self.broker.bootstrap)
        if TOPIC not in self.topics.names():
            self.topics.make(PARTITIONS, TOPIC)
        self.daemon = Daemon(
            folder / "shoal",
            self.broker.bootstrap,
            TOPIC,
            collection__name=COLLECTION,
            index__kind="exact",
            batch__max=64,
        )
        stack.callback(self.daemon.kill)
        self.daemon.start()

    def records(self) -> int:
        """Taken by the store so far."""
        return self.daemon.offset()


def compare_in_the_end(world: World) -> dict[str, Any]:
    """Raises AssertionError."""
    from engine import config
    from engine.collection.collection import Engine
    from engine.storage import schema
    from engine.storage.schema import PLACE
    from tests.support.sequences import World as Items
    from tests.support.sequences import differences, rebuilt

    flags = {"store.path": str(world.daemon.store), "collection.name": COLLECTION, "index.kind": "exact"}
    with Engine.open(config.load(None, flags)) as engine:
        state, store = engine.state, engine.store
        items = Items(0, "mixed", 10, engine.model)
        items.shape = state.hierarchy.shape
        grid = items.grid(np.stack(list(world.vectors.values())))
        items.live = dict(zip(world.vectors, grid, strict=True))
        other = rebuilt(items, engine.model, state.calibration.epoch, parts=10)
        assert differences(state.hierarchy, other.hierarchy) == []
        events = [(PLACE.unpack(key), schema.unpack_event(body)) for key, body in store.rows("events")]
        keys, clusters = engine.labels()
    held = dict(zip(map(str.encode, keys), clusters.tolist(), strict=True))
    assert last_assignments(world.topics, TOPIC) == held
    assert_published(world.topics, TOPIC, COLLECTION, events)
    return {
        "keys": len(held),
        "clusters": len(set(held.values())),
        "events": len(events),
        "version": store.version,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.broker.real",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--items", type=int, help="only so many of each file")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is stopped
    vectors = load(chosen.files)
    dice = random.Random(chosen.seed)
    faults = [KILL] * chosen.kills + [RESTART] * chosen.restarts
    dice.shuffle(faults)
    keys = list(vectors)
    dice.shuffle(keys)
    keys = keys[: chosen.items]
    vectors = {key: vectors[key] for key in keys}
    chosen.folder.mkdir(parents=True, exist_ok=True)
    record = chosen.folder / "lines.jsonl"
    done = len(record.read_text().splitlines()) if record.exists() else 0
    with contextlib.ExitStack() as stack:
        world = World(chosen.folder, vectors, stack)
        for number in range(done, len(faults)):
            piece = keys[number * len(keys) // len(faults) : (number + 1) * len(keys) // len(faults)]
            line = {
                "piece": number,
                **take(world, piece, faults[number], random.Random(f"{chosen.seed}-{number}")),
            }
            with record.open("a") as lines:
                lines.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
        world.daemon.stop()
        print(json.dumps(compare_in_the_end(world)), flush=True)
    print(f"{len(keys):,} embeddings, {len(faults)} faults: no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main())
