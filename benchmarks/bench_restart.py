"""How long `shoal serve` takes to be ready again, after a clean stop and after a kill amid records.

Fills a store, then starts the daemon on it: until the API answers from LMDB (`/v1/summary`), until the writer
has loaded and takes records (`/readyz`).
"""

from __future__ import annotations

import signal
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.bench_api import Served, feeding
from benchmarks.mixture import mixture
from benchmarks.report import arguments, finish, print_table
from engine import Engine
from engine.config import Settings

BATCH = 2048
ENDS = {"clean stop": signal.SIGTERM, "kill": signal.SIGKILL}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--times", type=int, default=3, help="restarts after each kind of end")
    parser.add_argument("--seconds", type=float, default=10.0, help="of records before each end")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ENDS}
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder) / "store", mixture(chosen.items, chosen.dim, chosen.seed))
        served = Served(Path(folder))
        served.start()
        for name, number in ENDS.items():
            for _ in range(chosen.times):
                fresh = mixture(BATCH, chosen.dim, chosen.seed + 1)
                with feeding(served.port, fresh, 1):
                    time.sleep(chosen.seconds)
                    served.end(number)
                taken[name].append(served.start("/v1/summary"))
        served.end(signal.SIGTERM)
    figures = {
        name: {"answers_s": [one for one, _ in times], "ready_s": [other for _, other in times]}
        for name, times in taken.items()
    }
    print_table(
        ["after", "the API answers, s", "ready, s"],
        [[name, median(f["answers_s"]), median(f["ready_s"])] for name, f in figures.items()],
    )
    finish({"items": chosen.items, "dim": chosen.dim, **figures}, chosen.json)


def fill(store: Path, rows: Any) -> None:
    with Engine.open(Settings(store={"path": store})) as engine:
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            engine.upsert([str(start + at) for at in range(len(part))], part)


if __name__ == "__main__":
    main()
