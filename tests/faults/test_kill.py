"""`kill -9` of `shoal ingest` at random moments, then the same command again: nothing lost, nothing twice."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import orjson

from engine.storage import schema
from engine.storage.store import Store
from tests.conftest import environment, warm_command
from tests.support.stores import version_of

ITEMS, DIM, BATCH = 1200, 16, 20


def write_file(path: Path) -> None:
    """New keys, moves, and deletes, over and over: later records undo earlier ones."""
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(40, DIM))
    lines = []
    for _ in range(ITEMS):
        key = f"k{rng.integers(700)}"
        if rng.random() < 0.15:
            lines.append({"key": key, "delete": True})
            continue
        vector = centres[rng.integers(40)] + 0.2 * rng.normal(size=DIM)
        lines.append({"key": key, "embedding": vector.tolist(), "payload": {"from": len(lines)}})
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)))


def contents(store: Path) -> dict[str, list[schema.Row]]:
    """Every row of every table, without the times at which the writer happened to commit."""
    with Store.open(store) as opened:
        tables = {table: list(opened.rows(table)) for table in schema.TABLES}
    for table, rows in tables.items():
        if table == "commits":
            tables[table] = [(key, body[8:]) for key, body in rows]
        if table == "meta":
            tables[table] = [
                (key, orjson.dumps(orjson.loads(body) | {"time_ms": 0}, option=orjson.OPT_SORT_KEYS))
                for key, body in rows
                if key != b"identity"
            ]
    return tables


class Ingest:
    """One `shoal ingest` of the file into a store."""

    def __init__(self, folder: Path, store: Path, env: Mapping[str, str]) -> None:
        self.store = store
        arguments = ["ingest", "data.jsonl", "--index", "exact", "--batch", str(BATCH), "--store", store]
        self.process = subprocess.Popen(
            warm_command(*arguments),
            cwd=folder,
            env=environment(env),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_version(self, version: int) -> None:
        """Or for the end, where that is seen first; at 0, for a store that may have none yet."""
        while not (self.store / "data.mdb").exists() or version_of(self.store) < version:
            if self.process.poll() is not None:
                return
            time.sleep(0.002)

    def finish(self) -> int:
        _, err = self.process.communicate(timeout=300)
        assert self.process.returncode in (0, -9), err
        return self.process.returncode


def test_a_killed_ingest_ends_as_one_never_killed(tmp_path: Path, model: Path, long: bool) -> None:
    env = {"SHOAL_MODEL__PATH": str(model)}
    write_file(tmp_path / "data.jsonl")
    start = time.perf_counter()
    assert Ingest(tmp_path, tmp_path / "whole", env).finish() == 0
    versions = version_of(tmp_path / "whole")
    each_s = (time.perf_counter() - start) / versions
    wanted = contents(tmp_path / "whole")

    seed = random.SystemRandom().getrandbits(32)
    moments = random.Random(seed)
    killed = 0
    for attempt in range(30 if long else 2):
        store = tmp_path / f"store {attempt}"
        run = Ingest(tmp_path, store, env)
        run.wait_for_version(moments.randrange(int(0.9 * versions)))
        time.sleep(moments.uniform(0, each_s))
        run.process.kill()
        killed += run.finish() == -9
        assert Ingest(tmp_path, store, env).finish() == 0
        found = contents(store)
        for table, rows in wanted.items():
            assert found[table] == rows, f"{table=} {seed=} {attempt=}"
    assert killed, f"all were finished before they were killed: {versions=} {each_s=}"
