"""`python -m tests.faults.simulate --seeds 1000`: stories of faults, each decided by one seed.

Each story is told twice: to an engine that nothing disturbs, and to one whose processes are killed, lose
power or meet a failing disk, at any file operation or at a named point, time and again. Compared is what
each life found in the store and left there. One line of JSON a seed goes to `--out`; seeds that are in it
already are not told again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults import disk, zygote

MODULE = "tests.faults.simulate"


def main() -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--seeds", type=int, default=50, help="how many stories")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--out", type=Path, help="one line a seed; what is in it is not done again")
    options = parser.parse_args()
    start(MODULE)
    zygote.warm()
    done = seeds_in(options.out)
    failed = 0
    for seed in range(options.first, options.first + options.seeds):
        if seed in done:
            failed += not done[seed]
            continue
        told = simulate(seed)
        line = json.dumps(told)
        if options.out:
            with open(options.out, "a") as file:
                file.write(line + "\n")
        if told["wrong"]:
            failed += 1
            print(f"seed {seed}: {told['story']}\n  {told['wrong']}", flush=True)
            print(f"  again: python -m {MODULE} --first {seed} --seeds 1", flush=True)
        elif not options.out:
            print(line, flush=True)
    print(f"{options.seeds} seeds, {failed} failed", flush=True)
    return 1 if failed else 0


def start(module: str) -> None:
    """This process again, with the disk of `disk.c` preloaded and an environment that bears forks."""
    if "disk.so" not in os.environ.get("LD_PRELOAD", ""):
        folder = disk.scratch()
        library = disk.compile_into(folder)
        zygote.become(module, {"LD_PRELOAD": str(library)})
    library = Path(os.environ["LD_PRELOAD"])
    shutil.rmtree(library.parent)  # it is mapped: the file is not needed any more
    del os.environ["LD_PRELOAD"]


def seeds_in(out: Path | None) -> dict[int, bool]:
    """Seeds done before, and whether each went well."""
    if out is None or not out.exists():
        return {}
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return {line["seed"]: not line["wrong"] for line in lines}


def simulate(seed: int) -> dict[str, Any]:
    """Tells a story twice and compares. `wrong`: empty, or what differs."""
    from tests.faults.judge import Wrong, compare, read
    from tests.faults.life import Life
    from tests.faults.story import draw_faults, tell
    from tests.faults.topic import Topic

    begun = time.perf_counter()
    story = tell(seed)
    folder = disk.scratch()
    lives: Counter[str] = Counter()
    wrong = ""
    try:
        whole, broken = folder / "whole", folder / "broken"
        errors = folder / "errors"

        def live(store: Path, number: int, fault: Any) -> int:
            topic = Topic(store.with_suffix(".topic"), seed, number, is_faulty=store is broken)
            return zygote.wait(zygote.fork(Life(story, store, topic, fault).live, errors))

        if live(whole, 0, None):
            raise Wrong(f"undisturbed: {errors.read_text()}")
        ended = read(whole)[-1]
        endings = []
        for number, fault in enumerate([*draw_faults(story, ended["ended"], ended["points"]), None], 1):
            endings.append((fault, live(broken, number, fault)))
            lives[f"{fault.how} at {fault.where}" if fault else "to the end"] += 1
            if endings[-1][1] == 1:
                raise Wrong(f"life {number}, {fault}: {errors.read_text()}")
            if fault and fault.how != "stop" and endings[-1][1] == 0 and "refused" not in read(broken)[-1]:
                lives["missed"] += 1
        compare(story, whole, broken, endings)
    except Wrong as found:
        wrong = str(found)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = round(time.perf_counter() - begun, 2)
    return {"seed": seed, "story": str(story), "lives": dict(lives), "seconds": seconds, "wrong": wrong}


if __name__ == "__main__":
    sys.exit(main())
